// What the KV rows of the last answer were made from, to find how far a prompt begins in the same way.
// runtime/prefix.py.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "generate/feature_cache.h"
#include "pruning/pruning.h"

namespace fopru {

// What decides each row of a KV cache: a row is a function of the rows before it and of its own id, its
// feature vector where it is a visual token, and its position. Ratio, strategy and picture need no rule of
// their own: what they change in the prompt ends the common part there.
struct PromptRows {
    struct Image {
        std::int64_t first_row;
        std::string digest;
    };
    std::vector<std::int64_t> ids;
    Positions positions;
    std::vector<Image> images;  // tell apart the rows whose id is that of the image token; in order

    std::int64_t common(const PromptRows& other) const;    // first rows that are the same in both
    void follow(const std::vector<std::int64_t>& tokens);  // add the rows of generated tokens
};

// `ids` with one id `image` per visual token.
PromptRows prompt_rows(const std::vector<std::int64_t>& ids, const Positions& positions,
                       const std::vector<SharedTokens>& images, std::int64_t image);

}  // namespace fopru
