// The "post_processor" of tokenizer.json: tokens around those of a text.
#pragma once

#include <cstdint>
#include <vector>

#include "base/json.h"

namespace fopru {

// Immutable, so any number of threads may share one. What concerns offsets and pairs of texts is left out.
class PostProcessor {
public:
    // `json` null: nothing is added. BundleError: damaged, or one that this runtime does not know.
    explicit PostProcessor(const Json* json);

    std::vector<std::int64_t> apply(std::vector<std::int64_t> ids, bool add_special_tokens) const;

private:
    // A special token's ids, or the text's where `text` is true.
    struct Part {
        bool text;
        std::vector<std::int64_t> ids;
    };
    void read(const class Fields& fields);
    void read_template(const Fields& fields);

    // One list of parts for each processor that adds tokens, in order.
    std::vector<std::vector<Part>> templates_;
};

}  // namespace fopru
