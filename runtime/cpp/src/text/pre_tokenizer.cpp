#include "text/pre_tokenizer.h"

#include <string>
#include <utility>
#include <vector>

#include "text/byte_level.h"
#include "text/characters.h"
#include "text/fields.h"
#include "text/growth.h"
#include "text/pattern.h"
#include "text/split.h"
#include "text/utf8.h"

namespace fopru {
namespace {

constexpr const char* gpt2_pattern =
    "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+";

class ByteLevel : public PreTokenizer {
public:
    ByteLevel(bool add_prefix_space, bool use_regex)
        : add_prefix_space_(add_prefix_space),
          use_regex_(use_regex),
          pattern_(Pattern::from_regex(use_regex ? gpt2_pattern : "", "the pattern of ByteLevel")) {}

    void apply(Pieces& pieces, Work& work) const override {
        split_all(pieces, [this, &work](Piece& piece, Pieces& out) {
            if (add_prefix_space_ && piece.text[0] != ' ') piece.prepend(" ");
            if (use_regex_) {
                split(piece, pattern_.spans(piece.text, work), SplitBehavior::isolated, out);
            } else {
                out.push_back(std::move(piece));
            }
        });
        for (Piece& piece : pieces) {
            if (!piece.token) spell_bytes(piece);
        }
    }

private:
    bool add_prefix_space_, use_regex_;
    Pattern pattern_;
};

class Split : public PreTokenizer {
public:
    Split(Pattern pattern, SplitBehavior behavior, bool invert)
        : pattern_(std::move(pattern)), behavior_(behavior), invert_(invert) {}

    void apply(Pieces& pieces, Work& work) const override {
        split_all(pieces, [this, &work](Piece& piece, Pieces& out) {
            Spans spans = pattern_.spans(piece.text, work);
            for (Span& span : spans) span.match = span.match != invert_;
            split(piece, std::move(spans), behavior_, out);
        });
    }

private:
    Pattern pattern_;
    SplitBehavior behavior_;
    bool invert_;
};

// Splits by what each character is by itself.
class SplitCharacters : public PreTokenizer {
public:
    SplitCharacters(bool (*wanted)(std::uint32_t), SplitBehavior behavior)
        : wanted_(wanted), behavior_(behavior) {}

    void apply(Pieces& pieces, Work&) const override {
        split_all(pieces, [this](Piece& piece, Pieces& out) {
            split(piece, spans_of_characters(piece.text, wanted_), behavior_, out);
        });
    }

private:
    bool (*wanted_)(std::uint32_t);
    SplitBehavior behavior_;
};

class Metaspace : public PreTokenizer {
public:
    enum class Prepend { first, never, always };
    Metaspace(std::string replacement, Prepend prepend, bool split)
        : replacement_(std::move(replacement)),
          character_(code_point_at(replacement_, 0).value),
          prepend_(prepend),
          split_(split) {}

    void apply(Pieces& pieces, Work&) const override {
        split_all(pieces, [this](Piece& piece, Pieces& out) {
            replace_spaces(piece);
            const bool has = piece.text.compare(0, replacement_.size(), replacement_) == 0;
            if (!has && (prepend_ == Prepend::always || (prepend_ == Prepend::first && piece.at_start))) {
                piece.prepend(replacement_);
            }
            if (split_) {
                const auto wanted = [this](std::uint32_t character) { return character == character_; };
                split(piece, spans_of_characters(piece.text, wanted), SplitBehavior::merged_with_next, out);
            } else {
                out.push_back(std::move(piece));
            }
        });
    }

private:
    void replace_spaces(Piece& piece) const {
        std::string out;
        out.reserve(piece.text.size() + 16);
        std::size_t start_bytes = 0;
        for (std::size_t place = 0; place < piece.text.size(); ++place) {
            if (piece.text[place] == ' ') {
                out += replacement_;
            } else {
                out.push_back(piece.text[place]);
            }
            if (place < piece.start_bytes) start_bytes = out.size();
        }
        piece.text = std::move(out);
        piece.start_bytes = start_bytes;
    }

    std::string replacement_;
    std::uint32_t character_;
    Prepend prepend_;
    bool split_;
};

class Sequence : public PreTokenizer {
public:
    explicit Sequence(std::vector<std::unique_ptr<const PreTokenizer>> parts) : parts_(std::move(parts)) {}
    void apply(Pieces& pieces, Work& work) const override {
        std::size_t bytes = check_growth(pieces);
        for (const auto& part : parts_) {
            work.pass(pieces.size(), bytes);
            part->apply(pieces, work);
            bytes = check_growth(pieces);
        }
    }

private:
    std::vector<std::unique_ptr<const PreTokenizer>> parts_;
};

std::unique_ptr<const PreTokenizer> make_metaspace(const Fields& fields) {
    const std::string scheme = fields.text_or("prepend_scheme", "always");
    Metaspace::Prepend prepend = Metaspace::Prepend::always;
    if (scheme == "first") {
        prepend = Metaspace::Prepend::first;
    } else if (scheme == "never") {
        prepend = Metaspace::Prepend::never;
    } else if (scheme != "always") {
        throw_damaged(fields.path_of("prepend_scheme"),
                      "is " + quoted(scheme) + ", expected first, never or always");
    }
    if (!fields.boolean_or("add_prefix_space", true) && prepend != Metaspace::Prepend::never) {
        throw_damaged(fields.path_of("add_prefix_space"), "does not match prepend_scheme");
    }
    return std::make_unique<Metaspace>(fields.character("replacement"), prepend,
                                       fields.boolean_or("split", true));
}

// The depth of sequences in sequences is that of the JSON, which its reader limits.
std::unique_ptr<const PreTokenizer> make(const Fields& fields) {
    const std::string& type = fields.type();
    if (type == "ByteLevel") {
        return std::make_unique<ByteLevel>(fields.boolean("add_prefix_space"),
                                           fields.boolean_or("use_regex", true));
    }
    if (type == "Split") {
        return std::make_unique<Split>(Pattern::from_json(fields), behavior_from_json(fields, "behavior"),
                                       fields.boolean("invert"));
    }
    if (type == "Digits") {
        const bool individual = fields.boolean("individual_digits");
        return std::make_unique<SplitCharacters>(
            is_numeric, individual ? SplitBehavior::isolated : SplitBehavior::contiguous);
    }
    if (type == "Punctuation") {
        const bool given = fields.find("behavior") != nullptr;
        return std::make_unique<SplitCharacters>(
            is_punctuation, given ? behavior_from_json(fields, "behavior") : SplitBehavior::isolated);
    }
    if (type == "Whitespace")
        return std::make_unique<Split>(Pattern::words_and_symbols(), SplitBehavior::removed, true);
    if (type == "WhitespaceSplit")
        return std::make_unique<SplitCharacters>(is_white_space, SplitBehavior::removed);
    if (type == "Metaspace") return make_metaspace(fields);
    if (type == "Sequence") {
        std::vector<std::unique_ptr<const PreTokenizer>> parts;
        const Json::Array& items = fields.array("pretokenizers");
        for (std::size_t i = 0; i < items.size(); ++i) {
            parts.push_back(
                make(Fields(items[i], fields.path_of("pretokenizers") + "[" + std::to_string(i) + "]")));
        }
        return std::make_unique<Sequence>(std::move(parts));
    }
    throw_unknown(
        "the " + fields.path(), type,
        "ByteLevel, Split, Digits, Punctuation, Whitespace, WhitespaceSplit, Metaspace and Sequence");
}

}  // namespace

std::unique_ptr<const PreTokenizer> make_pre_tokenizer(const Json* json) {
    return json == nullptr ? nullptr : make(Fields(*json, "pre_tokenizer"));
}

}  // namespace fopru
