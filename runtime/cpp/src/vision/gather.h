// Rows put together where the backend has them: one copy for each run of neighbouring rows. runtime/rows.py.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "backend/backend.h"
#include "decode/decoder_run.h"

namespace fopru {

// Rows and which of them, none for all.
struct Part {
    Rows rows;
    std::optional<std::vector<std::int64_t>> index;
};

// New rows of `width`: those of all parts one behind the other, of which `source` are taken; -1 is the last.
// BackendError: a part or a number is out of range.
Rows gather(Backend& backend, const std::vector<Part>& parts, const std::vector<std::int64_t>& source,
            std::int64_t width);
// Numbers from the host as rows of the backend.
Rows upload_rows(Backend& backend, const std::vector<float>& numbers, std::int64_t width);

}  // namespace fopru
