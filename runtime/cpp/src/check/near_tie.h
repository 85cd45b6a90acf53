// Whether another choice of tokens is a near-tie, and how good it is.
#pragma once

#include <optional>

#include "check/parity.h"

namespace fopru {

struct Choices {
    const Tensors& reference;
    const Tensors& measured;
    const UnitScores& units;
};

// Accept differing indices only where the score of every differing token ties with the boundary's: true, and
// `result` says which. A reference whose counts, scores and indices do not belong together accepts nothing.
bool judge_tie(StageResult& result, const Choices& choices);

// Sum of the reference's scores of what is kept, between the least it could be (0) and the reference's own
// (1); none where indices and scores do not belong together.
std::optional<double> chosen_fraction(const Choices& choices);

}  // namespace fopru
