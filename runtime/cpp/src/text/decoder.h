// The "decoder" of tokenizer.json: token texts to readable text.
#pragma once

#include <cstddef>
#include <memory>
#include <string>
#include <vector>

#include "base/json.h"
#include "text/work.h"

namespace fopru {

// Immutable, so any number of threads may share one.
class Decoder {
public:
    virtual ~Decoder() = default;
    // Texts in, texts out, not always as many; the last step is to put them together. RequestError where
    // there is not enough `work` left.
    virtual std::vector<std::string> apply(std::vector<std::string> tokens, Work& work) const = 0;
};

// Of all together.
std::size_t bytes_of(const std::vector<std::string>& texts);

// Null for null. BundleError: damaged, or one that this runtime does not know.
std::unique_ptr<const Decoder> make_decoder(const Json* json);

}  // namespace fopru
