// The same scores on the host, in plain loops and double precision: what the kernels are compared with, and what a runtime
// without a GPU links in their place.
#pragma once

#include "column_score.h"

extern "C" {

// As fopru_column_score, with host pointers; `stream` is ignored and the scores are written when it returns. Accepts and
// refuses exactly what the kernels do, workspace included (which it leaves alone), so that a call proved here is valid there.
// Allocates O(tokens * head_dim) itself: FOPRU_OUT_OF_MEMORY if it cannot. Threads: as fopru_column_score.
FopruStatus fopru_column_score_reference(const FopruColumnScoreArgs* args, void* stream);

}  // extern "C"
