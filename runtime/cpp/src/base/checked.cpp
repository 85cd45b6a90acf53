#include "base/checked.h"

#include <algorithm>

namespace fopru {

std::optional<std::size_t> checked_bytes(const std::vector<std::int64_t>& dims, std::size_t item) {
    if (std::any_of(dims.begin(), dims.end(), [](std::int64_t dim) { return dim < 0; })) return std::nullopt;
    if (std::find(dims.begin(), dims.end(), 0) != dims.end()) return 0;
    std::optional<std::int64_t> total = static_cast<std::int64_t>(item);
    for (std::int64_t dim : dims) {
        total = checked_mul(*total, dim);
        if (!total) return std::nullopt;
    }
    return static_cast<std::size_t>(*total);
}

}  // namespace fopru
