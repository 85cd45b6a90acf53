// Strict reading of the records in a bundle's JSON, with the words of runtime/decode.py: an unknown or
// missing key or a wrong type is a BundleError that names its place ("bundle.json.tokens.image").
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "base/json.h"

namespace fopru {

// A key of a record. `read` gets the value and its place.
struct Field {
    const char* name;
    bool required;
    std::function<void(const Json& value, const std::string& where)> read;
};

// Refuses what is no object, then unknown keys, then missing ones; then reads the values in the order of the
// text.
void read_record(const Json& value, const std::string& where, const std::vector<Field>& fields);

void read(const Json& value, const std::string& where, std::string& out);
void read(const Json& value, const std::string& where, bool& out);
void read(const Json& value, const std::string& where, std::int64_t& out);
void read(const Json& value, const std::string& where, int& out);     // further, BundleError beyond 32 bits
void read(const Json& value, const std::string& where, double& out);  // an integer too
inline void read(const Json& value, const std::string&, Json& out) { out = value; }

const Json::Object& object_of(const Json& value, const std::string& where);
// `length` -1: any.
const Json::Array& list_of(const Json& value, const std::string& where, std::int64_t length = -1);
[[noreturn]] void wrong_type(const Json& value, const std::string& where, const std::string& expected);

template <class T>
void read(const Json& value, const std::string& where, std::optional<T>& out);
template <class A, class B>
void read(const Json& value, const std::string& where, std::pair<A, B>& out);  // a list of 2

template <class T>
void read(const Json& value, const std::string& where, std::vector<T>& out) {
    const Json::Array& items = list_of(value, where);
    out.clear();
    for (std::size_t at = 0; at < items.size(); ++at) {
        out.emplace_back();
        read(items[at], where + "[" + std::to_string(at) + "]", out.back());
    }
}

template <class T, std::size_t n>
void read(const Json& value, const std::string& where, std::array<T, n>& out) {
    const Json::Array& items = list_of(value, where, n);
    for (std::size_t at = 0; at < n; ++at) read(items[at], where + "[" + std::to_string(at) + "]", out[at]);
}

template <class T>
void read(const Json& value, const std::string& where, std::map<std::string, T>& out) {
    out.clear();
    for (const auto& [key, entry] : object_of(value, where)) read(entry, where + "." + key, out[key]);
}

template <class T>
void read(const Json& value, const std::string& where, std::optional<T>& out) {
    out.reset();
    if (value.is_null()) return;
    out.emplace();
    read(value, where, *out);
}

template <class A, class B>
void read(const Json& value, const std::string& where, std::pair<A, B>& out) {
    const Json::Array& items = list_of(value, where, 2);
    read(items[0], where + "[0]", out.first);
    read(items[1], where + "[1]", out.second);
}

// Fields of scalars, lists and optionals: `required_field("name", out.name)`.
template <class T>
Field required_field(const char* name, T& out) {
    return {name, true, [&out](const Json& value, const std::string& where) { read(value, where, out); }};
}

template <class T>
Field optional_field(const char* name, T& out) {
    return {name, false, [&out](const Json& value, const std::string& where) { read(value, where, out); }};
}

}  // namespace fopru
