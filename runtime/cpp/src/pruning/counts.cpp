#include <algorithm>
#include <cmath>

#include "base/error.h"
#include "base/python_text.h"
#include "pruning/pruning.h"

namespace fopru {

std::int64_t kept_count(std::int64_t tokens, double ratio) {
    if (tokens < 1) {
        throw RequestError("cannot prune " + std::to_string(tokens) +
                           " tokens: an image has at least 1 visual token");
    }
    if (!(ratio > 0.0 && ratio <= 1.0)) {  // also for NaN
        throw RequestError("ratio is " + python_float(ratio) +
                           ", but it is the fraction of tokens kept: give a number in (0, 1], e.g. 0.3");
    }
    const double kept = std::floor(static_cast<double>(tokens) * ratio + 0.5);
    if (kept >= static_cast<double>(tokens)) return tokens;
    return std::max<std::int64_t>(static_cast<std::int64_t>(kept), 1);
}

std::string Amount::text() const {
    if (tokens) return "tokens " + std::to_string(*tokens);
    return "ratio " + (ratio ? python_float(*ratio) : "None");
}

}  // namespace fopru
