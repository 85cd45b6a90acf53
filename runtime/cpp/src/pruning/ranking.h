// Means and order as NumPy makes them, so that a tie is a tie in both runtimes.
#pragma once

#include <cstdint>
#include <vector>

namespace fopru {

// `values.mean()` of float32 values that lie side by side, in single precision. `count` from 1.
float mean_of(const float* values, std::int64_t count);

// Places of the `count` largest values, ascending; ties to the lower place, and values that are no number
// come last.
std::vector<std::int64_t> best_places(const std::vector<float>& values, std::int64_t count);

}  // namespace fopru
