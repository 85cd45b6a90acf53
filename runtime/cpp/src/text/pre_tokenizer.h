// The "pre_tokenizer" of tokenizer.json: a text in pieces that the model takes one by one.
#pragma once

#include <memory>

#include "base/json.h"
#include "text/piece.h"
#include "text/work.h"

namespace fopru {

// Immutable, so any number of threads may share one.
class PreTokenizer {
public:
    virtual ~PreTokenizer() = default;
    // Pieces that are added tokens stay as they are; empty pieces are left out. RequestError where
    // there is not enough `work` left.
    virtual void apply(Pieces& pieces, Work& work) const = 0;
};

// Null for null. BundleError: damaged, or one that this runtime does not know.
std::unique_ptr<const PreTokenizer> make_pre_tokenizer(const Json* json);

}  // namespace fopru
