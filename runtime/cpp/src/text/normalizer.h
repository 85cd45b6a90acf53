// The "normalizer" of tokenizer.json.
#pragma once

#include <memory>

#include "base/json.h"
#include "text/piece.h"
#include "text/work.h"

namespace fopru {

// Immutable, so any number of threads may share one.
class Normalizer {
public:
    virtual ~Normalizer() = default;
    // RequestError where there is not enough `work` left.
    virtual void apply(Piece& piece, Work& work) const = 0;
};

// Null for null. BundleError: damaged, or one that this runtime does not know.
std::unique_ptr<const Normalizer> make_normalizer(const Json* json);

}  // namespace fopru
