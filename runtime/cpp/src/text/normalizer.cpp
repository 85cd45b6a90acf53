#include "text/normalizer.h"
#include "base/python_text.h"

#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "text/byte_level.h"
#include "text/characters.h"
#include "text/fields.h"
#include "text/growth.h"
#include "text/pattern.h"
#include "text/utf8.h"

namespace fopru {
namespace {

// Writes the text anew, character by character; `write(out, character)` may write none, or several.
template <typename Write>
void rewrite(Piece& piece, Write write) {
    std::string out;
    out.reserve(piece.text.size());
    std::size_t start_bytes = 0;
    for (std::size_t place = 0; place < piece.text.size();) {
        const CodePoint point = code_point_at(piece.text, place);
        write(out, point.value);
        if (place < piece.start_bytes) start_bytes = out.size();
        place += point.bytes;
    }
    piece.text = std::move(out);
    piece.start_bytes = start_bytes;
}

class UnicodeForm : public Normalizer {
public:
    explicit UnicodeForm(NormalForm form) : form_(form) {}
    void apply(Piece& piece, Work&) const override {
        // A character of the start may have become several, or have taken in what follows it.
        std::size_t left =
            characters(normalized(std::string_view(piece.text).substr(0, piece.start_bytes), form_));
        piece.text = normalized(piece.text, form_);
        piece.start_bytes = 0;
        for (; left > 0 && piece.start_bytes < piece.text.size(); --left) {
            piece.start_bytes += code_point_at(piece.text, piece.start_bytes).bytes;
        }
    }

private:
    NormalForm form_;
};

class Lowercase : public Normalizer {
public:
    void apply(Piece& piece, Work&) const override { rewrite(piece, append_lower); }
};

class StripAccents : public Normalizer {
public:
    void apply(Piece& piece, Work&) const override {
        rewrite(piece, [](std::string& out, std::uint32_t character) {
            if (!is_mark(character)) append_utf8(out, character);
        });
    }
};

class Nmt : public Normalizer {
public:
    void apply(Piece& piece, Work&) const override {
        rewrite(piece, [](std::string& out, std::uint32_t c) {
            if ((c >= 0x1 && c <= 0x8) || c == 0xB || (c >= 0xE && c <= 0x1F) || c == 0x7F || c == 0x8F ||
                c == 0x9F) {
                return;
            }
            const bool space = c == 0x9 || c == 0xA || c == 0xC || c == 0xD || c == 0x1680 ||
                               (c >= 0x200B && c <= 0x200F) || c == 0x2028 || c == 0x2029 || c == 0x2581 ||
                               c == 0xFEFF || c == 0xFFFD;
            append_utf8(out, space ? ' ' : c);
        });
    }
};

class ByteLevel : public Normalizer {
public:
    void apply(Piece& piece, Work&) const override { spell_bytes(piece); }
};

class Strip : public Normalizer {
public:
    Strip(bool left, bool right) : left_(left), right_(right) {}
    void apply(Piece& piece, Work&) const override {
        std::size_t begin = 0, end = piece.text.size();
        while (left_ && begin < end) {
            const CodePoint point = code_point_at(piece.text, begin);
            if (!is_white_space(point.value)) break;
            begin += point.bytes;
        }
        while (right_ && end > begin) {
            const std::size_t last = last_character(std::string_view(piece.text).substr(0, end));
            if (!is_white_space(code_point_at(piece.text, last).value)) break;
            end = last;
        }
        piece.text = piece.text.substr(begin, end - begin);
        piece.start_bytes = piece.start_bytes > begin ? std::min(piece.start_bytes, end) - begin : 0;
    }

private:
    bool left_, right_;
};

class Prepend : public Normalizer {
public:
    explicit Prepend(std::string prefix) : prefix_(std::move(prefix)) {}
    void apply(Piece& piece, Work&) const override { piece.prepend(prefix_); }

private:
    std::string prefix_;
};

class Replace : public Normalizer {
public:
    Replace(Pattern pattern, std::string content)
        : pattern_(std::move(pattern)), content_(std::move(content)) {}
    void apply(Piece& piece, Work& work) const override {
        std::string out;
        std::size_t start_bytes = 0;
        for (const Span& span : pattern_.spans(piece.text, work)) {
            if (span.match) {
                out += content_;
                check_growth(out.size());
                // New characters belong to the character before them.
                if (span.end <= piece.start_bytes || span.end == 0) start_bytes = out.size();
            } else {
                const std::size_t before = out.size();
                out.append(piece.text, span.begin, span.end - span.begin);
                if (span.begin < piece.start_bytes) {
                    start_bytes = before + std::min(span.end, piece.start_bytes) - span.begin;
                }
            }
        }
        piece.text = std::move(out);
        piece.start_bytes = start_bytes;
    }

private:
    Pattern pattern_;
    std::string content_;
};

class Sequence : public Normalizer {
public:
    explicit Sequence(std::vector<std::unique_ptr<const Normalizer>> parts) : parts_(std::move(parts)) {}
    void apply(Piece& piece, Work& work) const override {
        for (const auto& part : parts_) {
            work.pass(1, piece.text.size());
            part->apply(piece, work);
            check_growth(piece.text.size());
        }
    }

private:
    std::vector<std::unique_ptr<const Normalizer>> parts_;
};

// The depth of sequences in sequences is that of the JSON, which its reader limits.
std::unique_ptr<const Normalizer> make(const Fields& fields) {
    const std::string& type = fields.type();
    if (type == "NFC") return std::make_unique<UnicodeForm>(NormalForm::nfc);
    if (type == "NFD") return std::make_unique<UnicodeForm>(NormalForm::nfd);
    if (type == "NFKC") return std::make_unique<UnicodeForm>(NormalForm::nfkc);
    if (type == "NFKD") return std::make_unique<UnicodeForm>(NormalForm::nfkd);
    if (type == "Lowercase") return std::make_unique<Lowercase>();
    if (type == "StripAccents") return std::make_unique<StripAccents>();
    if (type == "Nmt") return std::make_unique<Nmt>();
    if (type == "ByteLevel") return std::make_unique<ByteLevel>();
    if (type == "Strip")
        return std::make_unique<Strip>(fields.boolean("strip_left"), fields.boolean("strip_right"));
    if (type == "Prepend") return std::make_unique<Prepend>(fields.text("prepend"));
    if (type == "Replace")
        return std::make_unique<Replace>(Pattern::from_json(fields), fields.text("content"));
    if (type == "Sequence") {
        std::vector<std::unique_ptr<const Normalizer>> parts;
        const Json::Array& items = fields.array("normalizers");
        for (std::size_t i = 0; i < items.size(); ++i) {
            parts.push_back(
                make(Fields(items[i], fields.path_of("normalizers") + "[" + std::to_string(i) + "]")));
        }
        return std::make_unique<Sequence>(std::move(parts));
    }
    throw_unknown("the " + fields.path(), type,
                  "NFC, NFD, NFKC, NFKD, Lowercase, StripAccents, Nmt, ByteLevel, Strip, Prepend, Replace "
                  "and Sequence");
}

}  // namespace

std::unique_ptr<const Normalizer> make_normalizer(const Json* json) {
    return json == nullptr ? nullptr : make(Fields(*json, "normalizer"));
}

}  // namespace fopru
