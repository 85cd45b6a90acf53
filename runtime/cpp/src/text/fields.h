// Typed members of the objects in tokenizer.json, with the path of each for messages.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/json.h"

namespace fopru {

// An object and where it is. Refers to the JSON, which must outlive it. Every getter throws BundleError where
// the member is missing (unless a default is given) or of another type.
class Fields {
public:
    // Throws BundleError where `json` is no object.
    Fields(const Json& json, std::string path);

    const std::string& path() const { return path_; }
    std::string path_of(std::string_view key) const;

    // Null where the member is missing or null.
    const Json* find(std::string_view key) const;
    const Json& at(std::string_view key) const;
    Fields object(std::string_view key) const;
    const Json::Array& array(std::string_view key) const;
    // UTF-8.
    const std::string& text(std::string_view key) const;
    std::string text_or(std::string_view key, std::string_view fallback) const;
    // Exactly one character, as UTF-8.
    const std::string& character(std::string_view key) const;
    bool boolean(std::string_view key) const;
    bool boolean_or(std::string_view key, bool fallback) const;
    // 0 to 2^32 - 2.
    std::uint32_t number(std::string_view key) const;
    // The "type" of a part.
    const std::string& type() const { return text("type"); }

private:
    const Json& json_;
    std::string path_;
};

// A number from 0 to 2^32 - 2; `path` is for the message.
std::uint32_t id_from_json(const Json& json, const std::string& path);

// Sentences: the file is damaged at `path`, or holds a part that this runtime does not know.
[[noreturn]] void throw_damaged(const std::string& path, const std::string& what);
[[noreturn]] void throw_unknown(const std::string& path, const std::string& got, const std::string& known);

// A short form of untrusted text for a message: quoted, at most 60 bytes, cut between characters.
std::string quoted(std::string_view text);

}  // namespace fopru
