// The "model" of tokenizer.json: a piece of text to token ids.
#pragma once

#include <cstdint>
#include <memory>
#include <string_view>
#include <vector>

#include "base/json.h"
#include "text/vocabulary.h"

namespace fopru {

// Immutable, so any number of threads may share one.
class Model {
public:
    virtual ~Model() = default;
    virtual const Vocabulary& vocabulary() const = 0;
    // Puts the ids of `piece` (UTF-8, not empty) at the end of `ids`. RequestError where the model has no
    // token for a character and none for unknown ones.
    virtual void append(std::string_view piece, std::vector<std::int64_t>& ids) const = 0;
};

// BundleError: damaged, or one that this runtime does not know.
std::unique_ptr<const Model> make_model(const Json& json);

}  // namespace fopru
