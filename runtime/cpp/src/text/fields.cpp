#include "text/fields.h"

#include <limits>
#include <utility>

#include "base/error.h"
#include "base/python_text.h"
#include "text/utf8.h"

namespace fopru {

std::string quoted(std::string_view text) {
    constexpr std::size_t longest = 60;
    std::string shown(text.substr(0, longest));
    shown.resize(valid_utf8_prefix(shown));
    return "\"" + shown + (shown.size() < text.size() ? "...\"" : "\"");
}

void throw_damaged(const std::string& path, const std::string& what) {
    throw BundleError("tokenizer.json cannot be loaded (" + path + " " + what + "): copy the bundle again");
}

void throw_unknown(const std::string& path, const std::string& got, const std::string& known) {
    throw BundleError("tokenizer.json has " + path + " " + quoted(got) + ", and this runtime knows " + known +
                      ": pass token ids, or use the Python runtime");
}

Fields::Fields(const Json& json, std::string path) : json_(json), path_(std::move(path)) {
    if (json.object() == nullptr) throw_damaged(path_, "is no object");
}

std::string Fields::path_of(std::string_view key) const {
    return path_.empty() ? std::string(key) : path_ + "." + std::string(key);
}

const Json* Fields::find(std::string_view key) const {
    const Json* member = json_.find(key);
    return member == nullptr || member->is_null() ? nullptr : member;
}

const Json& Fields::at(std::string_view key) const {
    const Json* member = find(key);
    if (member == nullptr) throw_damaged(path_of(key), "is missing");
    return *member;
}

Fields Fields::object(std::string_view key) const { return Fields(at(key), path_of(key)); }

const Json::Array& Fields::array(std::string_view key) const {
    const Json::Array* items = at(key).array();
    if (items == nullptr) throw_damaged(path_of(key), "is no array");
    return *items;
}

const std::string& Fields::text(std::string_view key) const {
    const std::string* value = at(key).text();
    if (value == nullptr || !is_utf8(*value)) throw_damaged(path_of(key), "is no text");
    return *value;
}

std::string Fields::text_or(std::string_view key, std::string_view fallback) const {
    return find(key) == nullptr ? std::string(fallback) : text(key);
}

const std::string& Fields::character(std::string_view key) const {
    const std::string& value = text(key);
    if (characters(value) != 1)
        throw_damaged(path_of(key), "is " + quoted(value) + ", expected one character");
    return value;
}

bool Fields::boolean(std::string_view key) const {
    const bool* value = at(key).boolean();
    if (value == nullptr) throw_damaged(path_of(key), "is neither true nor false");
    return *value;
}

bool Fields::boolean_or(std::string_view key, bool fallback) const {
    return find(key) == nullptr ? fallback : boolean(key);
}

std::uint32_t Fields::number(std::string_view key) const { return id_from_json(at(key), path_of(key)); }

std::uint32_t id_from_json(const Json& json, const std::string& path) {
    const std::int64_t* value = json.integer();
    if (value == nullptr) throw_damaged(path, "is no whole number");
    if (*value < 0 || *value >= std::numeric_limits<std::uint32_t>::max()) {
        throw_damaged(path, "is " + std::to_string(*value) + ", expected 0 to 4294967294");
    }
    return static_cast<std::uint32_t>(*value);
}

}  // namespace fopru
