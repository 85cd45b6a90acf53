// Internal: what both implementations refuse before they touch any data.
#pragma once

#include "column_score.h"

namespace fopru {

// FOPRU_OK, or the first broken rule of column_score.h in the order of its status codes. Reads no tensor.
FopruStatus check_column_score(const FopruColumnScoreArgs* args);

}  // namespace fopru
