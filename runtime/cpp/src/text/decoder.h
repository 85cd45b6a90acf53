// The "decoder" of tokenizer.json: token texts to readable text.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "base/json.h"

namespace fopru {

// Immutable, so any number of threads may share one.
class Decoder {
public:
    virtual ~Decoder() = default;
    // Texts in, texts out, not always as many; the last step is to put them together.
    virtual std::vector<std::string> apply(std::vector<std::string> tokens) const = 0;
};

// Null for null. BundleError: damaged, or one that this runtime does not know.
std::unique_ptr<const Decoder> make_decoder(const Json* json);

}  // namespace fopru
