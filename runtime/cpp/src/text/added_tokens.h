// The "added_tokens" of tokenizer.json: texts that are tokens wherever they stand.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "base/json.h"
#include "text/normalizer.h"
#include "text/piece.h"
#include "text/vocabulary.h"

namespace fopru {

// Immutable, so any number of threads may share one.
class AddedTokens {
public:
    // `json` null: none. `normalizer` null: none; used by the constructor only. BundleError: damaged, or two
    // tokens with the same text. Ids are given out as the tokenizers library does: that of the vocabulary
    // where it has the text, else the next free one; the file's own "id" is not looked at.
    AddedTokens(const Json* json, const Vocabulary& vocabulary, const Normalizer* normalizer);

    // The text in pieces, those that are no tokens normalized. The text must be UTF-8.
    Pieces split(std::string_view text, const Normalizer* normalizer, Work& work) const;

    // What the token is for decoding.
    const std::string* text(std::uint32_t id) const;
    bool special(std::string_view text) const { return special_.count(std::string(text)) != 0; }

private:
    struct Token {
        std::string content;     // as in the file
        std::string normalized;  // as it is found in a text
        bool single_word, lstrip, rstrip;
    };
    // Texts that are looked for together, the longest at the leftmost place first.
    struct Finder {
        std::vector<std::pair<std::string, std::uint32_t>> texts;  // ascending
        bool begins[256] = {};
        struct Match {
            std::size_t begin, end;
            std::uint32_t id;
        };
        std::optional<Match> find(std::string_view text, std::size_t place) const;
    };

    void add(const Json& json, const std::string& path, const Vocabulary& vocabulary,
             const Normalizer* normalizer, Work& work);
    void split(const Piece& piece, const Finder& finder, Pieces& out) const;

    std::uint32_t next_id_ = 0;
    std::unordered_map<std::string, std::uint32_t> ids_;
    std::unordered_map<std::uint32_t, Token> tokens_;
    std::unordered_set<std::string> special_;
    Finder plain_, normalized_;
};

}  // namespace fopru
