// The BPE model.
#include <cstdio>
#include <limits>
#include <utility>

#include "base/error.h"
#include "text/fields.h"
#include "text/merges.h"
#include "text/model.h"
#include "text/utf8.h"

namespace fopru {
namespace {

// The two texts of a merge: a pair, or one text with a space in it.
std::pair<std::string_view, std::string_view> texts_of_merge(const Json& json, const std::string& path) {
    if (const std::string* text = json.text()) {
        const std::size_t space = text->find(' ');
        if (space == std::string::npos || text->find(' ', space + 1) != std::string::npos) {
            throw_damaged(path, "is " + quoted(*text) + ", expected two texts with a space between them");
        }
        return {std::string_view(*text).substr(0, space), std::string_view(*text).substr(space + 1)};
    }
    const Json::Array* pair = json.array();
    if (pair == nullptr || pair->size() != 2 || (*pair)[0].text() == nullptr ||
        (*pair)[1].text() == nullptr) {
        throw_damaged(path, "is no pair of texts");
    }
    return {*(*pair)[0].text(), *(*pair)[1].text()};
}

Merges merges_from_json(const Fields& fields, const Vocabulary& vocabulary, std::size_t prefix_bytes) {
    const Json::Array& items = fields.array("merges");
    if (items.size() > std::numeric_limits<std::uint32_t>::max() / 4)
        throw_damaged(fields.path_of("merges"), "is too large");
    Merges merges(items.size());
    std::uint32_t rank = 0;
    std::string joined;
    for (const Json& item : items) {
        // Files of old may have a first line with a version.
        if (item.text() != nullptr && item.text()->rfind("#version", 0) == 0) continue;
        const std::string path = fields.path_of("merges") + "[" + std::to_string(rank) + "]";
        const auto [left, right] = texts_of_merge(item, path);
        if (right.size() < prefix_bytes) throw_damaged(path, "is shorter than continuing_subword_prefix");
        joined.assign(left).append(right.substr(prefix_bytes));
        const auto id = [&](std::string_view text) {
            const std::optional<std::uint32_t> found = vocabulary.find(text);
            if (!found)
                throw_damaged(path,
                              "makes or takes " + quoted(text) + ", which the vocabulary does not have");
            return *found;
        };
        const std::uint32_t first = id(left), second = id(right);
        if (!merges.put(first, second, {rank, id(joined)})) {
            throw_damaged(fields.path_of("merges"), "has pairs that were made to be looked up slowly");
        }
        ++rank;
    }
    return merges;
}

class Bpe : public Model {
public:
    explicit Bpe(const Fields& fields)
        : vocabulary_(fields.at("vocab"), fields.path_of("vocab")),
          prefix_(fields.text_or("continuing_subword_prefix", "")),
          suffix_(fields.text_or("end_of_word_suffix", "")),
          unknown_(fields.text_or("unk_token", "")),
          has_unknown_(fields.find("unk_token") != nullptr),
          fuse_unknown_(fields.boolean_or("fuse_unk", false)),
          byte_fallback_(fields.boolean_or("byte_fallback", false)),
          ignore_merges_(fields.boolean_or("ignore_merges", false)),
          merges_(merges_from_json(fields, vocabulary_, prefix_.size())) {
        double dropout = 0;
        if (const Json* json = fields.find("dropout")) {
            if (!json->number(dropout)) throw_damaged(fields.path_of("dropout"), "is no number");
        }
        if (dropout != 0) throw_unknown("a model with dropout", std::to_string(dropout), "none");
        unknown_id_ = vocabulary_.find(unknown_);
        find_single_characters();
    }

    const Vocabulary& vocabulary() const override { return vocabulary_; }

    void append(std::string_view piece, std::vector<std::int64_t>& ids) const override {
        if (ignore_merges_) {
            if (const std::optional<std::uint32_t> id = vocabulary_.find(piece)) {
                ids.push_back(*id);
                return;
            }
        }
        std::vector<std::uint32_t> symbols = symbols_of(piece);
        merge_all(merges_, symbols);
        ids.insert(ids.end(), symbols.begin(), symbols.end());
    }

private:
    static constexpr std::uint32_t absent = 0xFFFFFFFF;

    // The characters of byte-level models, and most of the others', are found without hashing.
    void find_single_characters() {
        single_.assign(0x800, absent);
        std::string text;
        for (std::uint32_t character = 0; character < single_.size(); ++character) {
            text.clear();
            append_utf8(text, character);
            if (const std::optional<std::uint32_t> id = vocabulary_.find(text)) single_[character] = *id;
        }
        for (std::uint32_t byte = 0; byte < 256; ++byte) {
            char name[8];
            std::snprintf(name, sizeof name, "<0x%02X>", byte);
            bytes_.push_back(vocabulary_.find(name).value_or(absent));
        }
    }

    // The id of the character at `place`, as it is written there: with the prefix inside a word, the suffix
    // at its end. `spelled` is that writing where it is not the character itself.
    std::uint32_t id_of(std::string_view piece, std::size_t place, const CodePoint& point,
                        std::string& spelled) const {
        const bool first = place == 0, last = place + point.bytes == piece.size();
        const std::string_view text = piece.substr(place, point.bytes);
        spelled.clear();
        if ((first || prefix_.empty()) && (!last || suffix_.empty())) {
            if (point.value < single_.size()) return single_[point.value];
            return vocabulary_.find(text).value_or(absent);
        }
        if (!first) spelled += prefix_;
        spelled += text;
        if (last) spelled += suffix_;
        return vocabulary_.find(spelled).value_or(absent);
    }

    std::vector<std::uint32_t> symbols_of(std::string_view piece) const {
        std::vector<std::uint32_t> symbols;
        symbols.reserve(piece.size());
        std::string spelled;
        bool pending = false;  // an unknown token that is not yet written
        for (std::size_t place = 0; place < piece.size();) {
            const CodePoint point = code_point_at(piece, place);
            const std::string_view text = piece.substr(place, point.bytes);
            const std::uint32_t id = id_of(piece, place, point, spelled);
            place += point.bytes;
            if (id != absent) {
                if (pending) symbols.push_back(*unknown_id_);
                pending = false;
                symbols.push_back(id);
                continue;
            }
            // The tokenizers library writes these before an unknown token that is pending; so it is here.
            if (byte_fallback_ && append_bytes(spelled.empty() ? text : std::string_view(spelled), symbols))
                continue;
            if (!has_unknown_) continue;
            if (!unknown_id_) {
                throw RequestError("the tokenizer has no token for " + quoted(text) +
                                   ", and its unknown token " + quoted(unknown_) +
                                   " is not in the vocabulary: leave the character out");
            }
            if (pending && !fuse_unknown_) symbols.push_back(*unknown_id_);
            pending = true;
        }
        if (pending) symbols.push_back(*unknown_id_);
        return symbols;
    }

    // All bytes as tokens, or none.
    bool append_bytes(std::string_view text, std::vector<std::uint32_t>& symbols) const {
        const auto id = [this](char byte) { return bytes_[static_cast<unsigned char>(byte)]; };
        for (const char byte : text) {
            if (id(byte) == absent) return false;
        }
        for (const char byte : text) symbols.push_back(id(byte));
        return true;
    }

    Vocabulary vocabulary_;
    std::string prefix_, suffix_, unknown_;
    bool has_unknown_, fuse_unknown_, byte_fallback_, ignore_merges_;
    Merges merges_;
    std::optional<std::uint32_t> unknown_id_;
    std::vector<std::uint32_t> single_;  // [0x800] ids of the first code points
    std::vector<std::uint32_t> bytes_;   // [256] ids of <0x00> to <0xFF>
};

}  // namespace

std::unique_ptr<const Model> make_model(const Json& json) {
    const Fields fields(json, "model");
    // Files of old have no type.
    const std::string type = fields.text_or("type", fields.find("merges") != nullptr ? "BPE" : "");
    if (type != "BPE") throw_unknown("the model", type, "BPE");
    return std::make_unique<Bpe>(fields);
}

}  // namespace fopru
