// A part of a text on its way to tokens.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace fopru {

// `at_start` is whether the piece begins where the whole text did, and `start_bytes` how many of its first
// bytes come from the first character of its part of the text: what Metaspace's `prepend_scheme: first` asks,
// which the tokenizers library answers with its offsets.
struct Piece {
    std::string text;
    // Set for an added token: the piece has no text, and is not normalized, split or tokenized any more.
    std::optional<std::uint32_t> token;
    bool at_start = false;
    std::size_t start_bytes = 0;

    // Bytes [begin, end) as a piece of their own.
    Piece slice(std::size_t begin, std::size_t end) const {
        Piece part;
        part.text.assign(text, begin, end - begin);
        part.at_start = at_start && begin < start_bytes;
        const std::size_t stop = start_bytes < end ? start_bytes : end;
        // A part that begins later has a first character of its own; no part of it is at the start any more.
        part.start_bytes = part.at_start ? stop - begin : 0;
        return part;
    }

    void prepend(const std::string& prefix) {
        if (text.empty()) return;
        text.insert(0, prefix);
        if (start_bytes > 0) start_bytes += prefix.size();
    }
};

using Pieces = std::vector<Piece>;

}  // namespace fopru
