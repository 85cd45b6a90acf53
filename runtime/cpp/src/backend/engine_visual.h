// How much an image can be at most, and usually is: units, tokens and rows in the prompt, from the layout.
// runtime/tensorrt/visual.py.
#pragma once

#include <cstdint>
#include <optional>

#include "bundle/manifest.h"
#include "pruning/pruning.h"

namespace fopru {

// The usual picture is one of 768 x 1024 pixels; `most_*` is what the layout allows.
struct VisualSizes {
    std::int64_t units = 0, most_units = 0;      // pictures that the encoder sees
    std::int64_t tokens = 0, most_tokens = 0;    // of one unit
    std::int64_t rows = 0, most_rows = 0;        // in the prompt, pruned to the usual and the greatest ratio
    std::int64_t columns = 0;                    // tokens of a grid row where whole rows are kept, else 1
    std::int64_t windows = 0, most_windows = 0;  // attention windows of a unit; 0: none
};

// `ratio`, else the bundle's own default, else everything.
Amount usual_amount(const PruningInfo& pruning, std::optional<double> ratio);

// `max_tokens` bounds N where images keep their own size. ImageError, RequestError.
VisualSizes visual_sizes(const Manifest& manifest, const Amount& usual, double max_ratio, int max_tokens);

}  // namespace fopru
