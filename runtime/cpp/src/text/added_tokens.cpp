#include "text/added_tokens.h"

#include <algorithm>
#include <utility>

#include "base/error.h"
#include "text/characters.h"
#include "text/fields.h"
#include "text/growth.h"
#include "text/utf8.h"

namespace fopru {
namespace {

// Of a token, as it is looked for. A text is compared with it from each of its places on, so that the time
// grows with the product of both; tokens in use have some dozens of bytes.
constexpr std::size_t most_token_bytes = 1024;

// Bytes of white space at the end, or the beginning.
std::size_t spaces_at_end(std::string_view text) {
    std::size_t begin = text.size();
    while (begin > 0) {
        const std::size_t last = last_character(text.substr(0, begin));
        if (!is_white_space(code_point_at(text, last).value)) break;
        begin = last;
    }
    return text.size() - begin;
}

std::size_t spaces_at_start(std::string_view text) {
    std::size_t end = 0;
    while (end < text.size()) {
        const CodePoint point = code_point_at(text, end);
        if (!is_white_space(point.value)) break;
        end += point.bytes;
    }
    return end;
}

}  // namespace

AddedTokens::AddedTokens(const Json* json, const Vocabulary& vocabulary, const Normalizer* normalizer) {
    if (json == nullptr) return;
    const Json::Array* items = json->array();
    if (items == nullptr) throw_damaged("added_tokens", "is no array");
    Work work(0);
    next_id_ = static_cast<std::uint32_t>(vocabulary.size());
    for (std::size_t i = 0; i < items->size(); ++i) {
        add((*items)[i], "added_tokens[" + std::to_string(i) + "]", vocabulary, normalizer, work);
    }
    for (Finder* const finder : {&plain_, &normalized_}) {
        std::sort(finder->texts.begin(), finder->texts.end());
        for (std::size_t i = 0; i < finder->texts.size(); ++i) {
            const std::string& text = finder->texts[i].first;
            if (text.empty()) throw_damaged("added_tokens", "has a token that the normalizer makes empty");
            if (i > 0 && text == finder->texts[i - 1].first) {
                throw_damaged("added_tokens", "has " + quoted(text) + " twice");
            }
            finder->begins[static_cast<unsigned char>(text[0])] = true;
        }
    }
}

void AddedTokens::add(const Json& json, const std::string& path, const Vocabulary& vocabulary,
                      const Normalizer* normalizer, Work& work) {
    const Fields fields(json, path);
    Token token{fields.text("content"), "", fields.boolean("single_word"), fields.boolean("lstrip"),
                fields.boolean("rstrip")};
    const bool normalized = fields.boolean("normalized"), special = fields.boolean("special");
    fields.number("id");
    if (token.content.empty()) return;
    // The library lets a later entry of the same text change an earlier one; no file that it writes has that.
    if (ids_.count(token.content) != 0)
        throw_damaged("added_tokens", "has " + quoted(token.content) + " twice");
    const std::optional<std::uint32_t> known = vocabulary.find(token.content);
    const std::uint32_t id = known ? *known : next_id_++;

    token.normalized = token.content;
    if (normalized && normalizer != nullptr) {
        Piece piece;
        piece.text = token.content;
        try {
            work.allow(piece.text.size());
            normalizer->apply(piece, work);
        } catch (const RequestError& error) {
            throw_damaged(path + ".content", std::string("cannot be normalized, as ") + error.what());
        }
        token.normalized = std::move(piece.text);
    }
    if (std::max(token.content.size(), token.normalized.size()) > most_token_bytes) {
        throw_damaged(path + ".content", "has over " + std::to_string(most_token_bytes) + " bytes");
    }
    (normalized ? normalized_ : plain_).texts.emplace_back(token.normalized, id);
    if (special) special_.insert(token.content);
    ids_.emplace(token.content, id);
    tokens_.insert_or_assign(id, std::move(token));
}

std::optional<AddedTokens::Finder::Match> AddedTokens::Finder::find(std::string_view text,
                                                                    std::size_t place) const {
    for (; place < text.size(); ++place) {
        if (!begins[static_cast<unsigned char>(text[place])]) continue;
        // Those that begin as the text does from here, narrowed down letter by letter.
        auto low = texts.begin(), high = texts.end();
        std::optional<Match> longest;
        for (std::size_t length = 0; low != high; ++length) {
            if (low->first.size() == length) {
                longest = Match{place, place + length, low->second};
                ++low;
            }
            if (place + length >= text.size()) break;
            const auto letter = static_cast<unsigned char>(text[place + length]);
            const auto at = [length](const auto& item) {
                return static_cast<unsigned char>(item.first[length]);
            };
            low = std::partition_point(low, high, [&](const auto& item) { return at(item) < letter; });
            high = std::partition_point(low, high, [&](const auto& item) { return at(item) == letter; });
        }
        if (longest) return longest;
    }
    return std::nullopt;
}

void AddedTokens::split(const Piece& piece, const Finder& finder, Pieces& out) const {
    const std::string_view text = piece.text;
    std::size_t covered = 0;
    for (std::optional<Finder::Match> match = finder.find(text, 0); match;
         match = finder.find(text, match->end)) {
        const Token& token = tokens_.at(match->id);
        std::size_t begin = match->begin, end = match->end;
        if (token.single_word) {
            const bool word_before =
                begin > 0 && is_word(code_point_at(text, last_character(text.substr(0, begin))).value);
            const bool word_after = end < text.size() && is_word(code_point_at(text, end).value);
            if (word_before || word_after) continue;
        }
        // White space that an earlier token has taken stays with it, and is not looked at again.
        if (token.lstrip) {
            if (begin > covered) begin -= spaces_at_end(text.substr(covered, begin - covered));
            begin = std::max(begin, covered);
        }
        if (token.rstrip) {
            end = std::max(end, covered);
            end += spaces_at_start(text.substr(end));
        }
        if (covered < begin) out.push_back(piece.slice(covered, begin));
        if (begin < end) {
            // Nobody reads its text, which may be all white space up to the end, for each of many tokens.
            out.emplace_back().token = match->id;
        }
        covered = end;
    }
    if (covered < text.size()) out.push_back(piece.slice(covered, text.size()));
}

Pieces AddedTokens::split(std::string_view text, const Normalizer* normalizer, Work& work) const {
    if (text.empty()) return {};
    Piece whole;
    whole.text = text;
    whole.at_start = true;
    whole.start_bytes = code_point_at(text, 0).bytes;
    Pieces parts, pieces;
    split(whole, plain_, parts);
    std::size_t bytes = 0;
    for (Piece& part : parts) {
        if (part.token) {
            pieces.push_back(std::move(part));
            continue;
        }
        if (normalizer != nullptr) normalizer->apply(part, work);
        bytes += part.text.size();
        check_growth(bytes);
        if (!part.text.empty()) split(part, normalized_, pieces);
    }
    return pieces;
}

const std::string* AddedTokens::text(std::uint32_t id) const {
    const auto found = tokens_.find(id);
    return found == tokens_.end() ? nullptr : &found->second.normalized;
}

}  // namespace fopru
