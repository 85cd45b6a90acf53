#include "bundle/decode.h"

#include <algorithm>
#include <climits>
#include <cmath>

#include "base/error.h"
#include "base/python_text.h"

namespace fopru {

namespace {

constexpr std::size_t most_shown = 60;  // characters of a value in a message

}  // namespace

void wrong_type(const Json& value, const std::string& where, const std::string& expected) {
    std::string shown = python_repr(value, most_shown);
    if (characters(shown) > most_shown) shown = first_characters(shown, most_shown - 3) + "...";
    throw BundleError(where + " is " + shown + ", expected " + expected + ": " + rebuild_bundle);
}

const Json::Object& object_of(const Json& value, const std::string& where) {
    const Json::Object* members = value.object();
    if (members == nullptr) wrong_type(value, where, "an object");
    return *members;
}

const Json::Array& list_of(const Json& value, const std::string& where, std::int64_t length) {
    const Json::Array* items = value.array();
    if (items == nullptr) wrong_type(value, where, "a list");
    if (length >= 0 && items->size() != static_cast<std::size_t>(length)) {
        wrong_type(value, where, "a list of " + std::to_string(length));
    }
    return *items;
}

void read_record(const Json& value, const std::string& where, const std::vector<Field>& fields) {
    const Json::Object& members = object_of(value, where);
    auto field_named = [&](const std::string& name) {
        return std::find_if(fields.begin(), fields.end(),
                            [&](const Field& field) { return name == field.name; });
    };
    for (const auto& member : members) {
        if (field_named(member.first) != fields.end()) continue;
        std::vector<std::string> known;
        for (const Field& field : fields) known.emplace_back(field.name);
        throw BundleError(where + " has the unknown key \"" + member.first + "\" (known: " + joined(known) +
                          "): upgrade the runtime, or " + rebuild_bundle);
    }
    for (const Field& field : fields) {
        if (!field.required || value.find(field.name) != nullptr) continue;
        throw BundleError(where + " lacks the key \"" + field.name + "\": " + rebuild_bundle);
    }
    for (const auto& [key, entry] : members) field_named(key)->read(entry, where + "." + key);
}

void read(const Json& value, const std::string& where, std::string& out) {
    const std::string* text = value.text();
    if (text == nullptr) wrong_type(value, where, "a string");
    out = *text;
}

void read(const Json& value, const std::string& where, bool& out) {
    const bool* flag = value.boolean();
    if (flag == nullptr) wrong_type(value, where, "true or false");
    out = *flag;
}

void read(const Json& value, const std::string& where, std::int64_t& out) {
    const std::int64_t* whole = value.integer();
    if (whole == nullptr) wrong_type(value, where, "an integer");
    out = *whole;
}

void read(const Json& value, const std::string& where, int& out) {
    std::int64_t whole = 0;
    read(value, where, whole);
    if (whole < INT_MIN || whole > INT_MAX) wrong_type(value, where, "an integer of 32 bits");
    out = static_cast<int>(whole);
}

void read(const Json& value, const std::string& where, double& out) {
    double number = 0.0;
    if (!value.number(number) || !std::isfinite(number)) wrong_type(value, where, "a number");
    out = number;
}

}  // namespace fopru
