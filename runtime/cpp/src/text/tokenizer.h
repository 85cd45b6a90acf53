// `tokenizer.json` of the tokenizers library: text to ids and back.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/json.h"

namespace fopru {

// Immutable, so any number of threads may share one.
class Tokenizer {
public:
    virtual ~Tokenizer() = default;
    // UTF-8 in; RequestError where it is not. As `Tokenizer.encode(text, add_special_tokens=...)`.
    virtual std::vector<std::int64_t> encode(std::string_view text, bool add_special_tokens) const = 0;
    // As `Tokenizer.decode(ids, skip_special_tokens=True)`; ids without a token are left out. Bytes that are
    // no character become U+FFFD.
    virtual std::string decode(const std::int64_t* ids, std::size_t count) const = 0;
    virtual std::optional<std::string> token_text(std::int64_t id) const = 0;
};

// BundleError: damaged, or a part that this runtime does not know: the message names it.
std::unique_ptr<const Tokenizer> make_tokenizer(const Json& json);

// A growing list of ids as pieces of text that never end inside a character: `TextPieces` of
// runtime/detokenize.py.
class TextPieces {
public:
    explicit TextPieces(const Tokenizer& tokenizer) : tokenizer_(tokenizer) {}
    std::string push(std::int64_t token);
    std::string flush();

private:
    std::string advance(bool final);
    const Tokenizer& tokenizer_;
    std::vector<std::int64_t> ids_;
    std::size_t start_ = 0, shown_ = 0;
};

// Text up to the first stop string: `StopStrings` of runtime/detokenize.py.
class StopStrings {
public:
    explicit StopStrings(std::vector<std::string> strings);
    std::string push(std::string text);
    std::string flush();
    bool found() const { return found_; }

private:
    std::vector<std::string> strings_;
    std::size_t longest_ = 0;
    std::string held_;
    bool found_ = false;
};

}  // namespace fopru
