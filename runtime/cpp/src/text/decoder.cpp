#include "text/decoder.h"
#include "base/words.h"

#include <optional>
#include <utility>

#include "base/python_text.h"
#include "text/byte_level.h"
#include "text/fields.h"
#include "text/growth.h"
#include "text/pattern.h"
#include "text/utf8.h"

namespace fopru {
namespace {

using Texts = std::vector<std::string>;

class ByteLevel : public Decoder {
public:
    Texts apply(Texts tokens, Work&) const override {
        std::string bytes;
        for (const std::string& token : tokens) append_bytes(bytes, token);
        return {utf8_lossy(std::move(bytes))};
    }

private:
    // A token with a character that stands for no byte is taken as it is.
    static void append_bytes(std::string& bytes, const std::string& token) {
        const std::size_t before = bytes.size();
        for (std::size_t place = 0; place < token.size();) {
            const CodePoint point = code_point_at(token, place);
            const int byte = byte_of_character(point.value);
            if (byte < 0) {
                bytes.resize(before);
                bytes += token;
                return;
            }
            bytes.push_back(static_cast<char>(byte));
            place += point.bytes;
        }
    }
};

class ByteFallback : public Decoder {
public:
    Texts apply(Texts tokens, Work&) const override {
        Texts out;
        std::string bytes;
        const auto flush = [&] {
            if (bytes.empty()) return;
            if (is_utf8(bytes)) {
                out.push_back(bytes);
            } else {
                out.insert(out.end(), bytes.size(), "\xEF\xBF\xBD");
            }
            bytes.clear();
        };
        for (std::string& token : tokens) {
            if (const std::optional<char> byte = byte_of(token)) {
                bytes.push_back(*byte);
            } else {
                flush();
                out.push_back(std::move(token));
            }
        }
        flush();
        return out;
    }

private:
    // <0x41>; a sign before one digit counts too, as in Rust's parser.
    static std::optional<char> byte_of(const std::string& token) {
        if (token.size() != 6 || token.compare(0, 3, "<0x") != 0 || token[5] != '>') return std::nullopt;
        const int low = digit(token[4]), high = token[3] == '+' ? 0 : digit(token[3]);
        if (low < 0 || high < 0) return std::nullopt;
        return static_cast<char>(high * 16 + low);
    }
    static int digit(char c) {
        if (c >= '0' && c <= '9') return c - '0';
        if (c >= 'a' && c <= 'f') return c - 'a' + 10;
        if (c >= 'A' && c <= 'F') return c - 'A' + 10;
        return -1;
    }
};

class Fuse : public Decoder {
public:
    Texts apply(Texts tokens, Work&) const override { return {joined(tokens, "")}; }
};

class Strip : public Decoder {
public:
    Strip(std::string content, std::size_t start, std::size_t stop)
        : content_(std::move(content)), start_(start), stop_(stop) {}

    Texts apply(Texts tokens, Work&) const override {
        const std::size_t bytes = content_.size();
        for (std::string& token : tokens) {
            std::size_t begin = 0, end = token.size();
            for (std::size_t i = 0; i < start_ && token.compare(begin, bytes, content_) == 0; ++i)
                begin += bytes;
            for (std::size_t i = 0; i < stop_ && end >= begin + bytes; ++i) {
                if (token.compare(end - bytes, bytes, content_) != 0) break;
                end -= bytes;
            }
            token = token.substr(begin, end - begin);
        }
        return tokens;
    }

private:
    std::string content_;
    std::size_t start_, stop_;
};

class Replace : public Decoder {
public:
    Replace(Pattern pattern, std::string content)
        : pattern_(std::move(pattern)), content_(std::move(content)) {}
    Texts apply(Texts tokens, Work& work) const override {
        std::size_t bytes = 0;
        for (std::string& token : tokens) {
            token = pattern_.replaced(token, content_, work);
            bytes += token.size();
            check_growth(bytes);
        }
        return tokens;
    }

private:
    Pattern pattern_;
    std::string content_;
};

class Metaspace : public Decoder {
public:
    Metaspace(std::string replacement, bool prepended)
        : replacement_(std::move(replacement)), prepended_(prepended) {}
    Texts apply(Texts tokens, Work&) const override {
        // All of them go from the first token, where there should be one at most: so does the tokenizers
        // library.
        for (std::size_t i = 0; i < tokens.size(); ++i) {
            tokens[i] = replaced(tokens[i], replacement_, i == 0 && prepended_ ? "" : " ");
        }
        return tokens;
    }

private:
    std::string replacement_;
    bool prepended_;
};

class EndOfWord : public Decoder {
public:
    explicit EndOfWord(std::string suffix) : suffix_(std::move(suffix)) {}
    Texts apply(Texts tokens, Work&) const override {
        for (std::size_t i = 0; i < tokens.size(); ++i) {
            tokens[i] = replaced(tokens[i], suffix_, i + 1 == tokens.size() ? "" : " ");
        }
        return tokens;
    }

private:
    std::string suffix_;
};

class Sequence : public Decoder {
public:
    explicit Sequence(std::vector<std::unique_ptr<const Decoder>> parts) : parts_(std::move(parts)) {}
    Texts apply(Texts tokens, Work& work) const override {
        for (const auto& part : parts_) {
            work.pass(tokens.size(), bytes_of(tokens));
            tokens = part->apply(std::move(tokens), work);
        }
        return tokens;
    }

private:
    std::vector<std::unique_ptr<const Decoder>> parts_;
};

// The depth of sequences in sequences is that of the JSON, which its reader limits.
std::unique_ptr<const Decoder> make(const Fields& fields) {
    const std::string& type = fields.type();
    if (type == "ByteLevel") return std::make_unique<ByteLevel>();
    if (type == "ByteFallback") return std::make_unique<ByteFallback>();
    if (type == "Fuse") return std::make_unique<Fuse>();
    if (type == "Strip") {
        return std::make_unique<Strip>(fields.character("content"), fields.number("start"),
                                       fields.number("stop"));
    }
    if (type == "Replace")
        return std::make_unique<Replace>(Pattern::from_json(fields), fields.text("content"));
    if (type == "Metaspace") {
        const bool prepended = fields.text_or("prepend_scheme", "always") != "never" &&
                               fields.boolean_or("add_prefix_space", true);
        return std::make_unique<Metaspace>(fields.character("replacement"), prepended);
    }
    if (type == "BPEDecoder") {
        const std::string& suffix = fields.text("suffix");
        if (suffix.empty()) throw_damaged(fields.path_of("suffix"), "is empty");
        return std::make_unique<EndOfWord>(suffix);
    }
    if (type == "Sequence") {
        std::vector<std::unique_ptr<const Decoder>> parts;
        const Json::Array& items = fields.array("decoders");
        for (std::size_t i = 0; i < items.size(); ++i) {
            parts.push_back(
                make(Fields(items[i], fields.path_of("decoders") + "[" + std::to_string(i) + "]")));
        }
        return std::make_unique<Sequence>(std::move(parts));
    }
    throw_unknown("the " + fields.path(), type,
                  "ByteLevel, ByteFallback, Fuse, Strip, Replace, Metaspace, BPEDecoder and Sequence");
}

}  // namespace

std::size_t bytes_of(const std::vector<std::string>& texts) {
    std::size_t bytes = 0;
    for (const std::string& text : texts) bytes += text.size();
    return bytes;
}

std::unique_ptr<const Decoder> make_decoder(const Json* json) {
    return json == nullptr ? nullptr : make(Fields(*json, "decoder"));
}

}  // namespace fopru
