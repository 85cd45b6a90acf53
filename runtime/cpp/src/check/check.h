// A bundle's golden request, replayed on this device: runtime/check.py.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "check/parity.h"
#include "generate/generator.h"
#include "pruning/pruning.h"

namespace fopru {

struct CheckRequest {
    std::string prompt;
    std::vector<PreparedImage> images;
    Amount amount;
    std::int64_t new_tokens = 0;
};

struct Measured {
    Tensors tensors;  // by the names of `stages()`, and "<stage> of <graph>" of further decoders
    std::optional<UnitScores> units;  // none where near-ties cannot be told
};

// Run every stage, the pruned graph even where everything is kept. `pixel_values` is [-1, last axis],
// `token_scores` and `kept_indices` are 1-D, unit after unit; features are [placeholders, D] of all images.
// The generator should keep nothing between requests. Closes graphs that it is done with. Any Error.
Measured measure(Generator& generator, const CheckRequest& request);

// Throws BundleError: no golden tensors, or damaged ones; any Error: a stage cannot run at all.
ParityReport check_bundle(const std::shared_ptr<const Bundle>& bundle, GeneratorOptions options);

}  // namespace fopru
