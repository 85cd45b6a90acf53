#include "layout/fields.h"

#include <algorithm>
#include <set>

namespace fopru {

namespace {

// Of the wide types that layouts calculate with, through the narrow one that limits their values.
void read_whole(const Json& value, const std::string& where, std::int64_t& out) {
    int narrow = 0;
    read(value, where, narrow);
    out = narrow;
}

template <std::size_t n>
void read_whole(const Json& value, const std::string& where, std::array<std::int64_t, n>& out) {
    std::array<int, n> narrow{};
    read(value, where, narrow);
    std::copy(narrow.begin(), narrow.end(), out.begin());
}

void read_whole(const Json& value, const std::string& where, std::vector<Pair>& out) {
    std::vector<std::array<int, 2>> narrow;
    read(value, where, narrow);
    out.clear();
    for (const auto& pair : narrow) out.push_back({pair[0], pair[1]});
}

void read_whole(const Json& value, const std::string& where, Sizes& out) {
    out.entries.clear();
    for (const auto& [key, entry] : object_of(value, where)) {
        out.entries.emplace_back(key, 0);
        read_whole(entry, where + "." + key, out.entries.back().second);
    }
}

template <class T>
Field field_of(const char* name, T& out, bool required = true) {
    return {name, required,
            [&out](const Json& value, const std::string& where) { read_whole(value, where, out); }};
}

template <class T>
Field field_of(const char* name, std::optional<T>& out) {
    return {name, true, [&out](const Json& value, const std::string& where) {
                out.reset();
                if (!value.is_null()) read_whole(value, where, out.emplace());
            }};
}

}  // namespace

const std::int64_t* Sizes::find(const std::string& name) const {
    for (const auto& entry : entries) {
        if (entry.first == name) return &entry.second;
    }
    return nullptr;
}

std::int64_t Sizes::smallest() const {
    std::int64_t least = entries.front().second;
    for (const auto& entry : entries) least = std::min(least, entry.second);
    return least;
}

bool Sizes::has_exactly(const std::vector<std::string>& names) const {
    std::set<std::string> own;
    for (const auto& entry : entries) own.insert(entry.first);
    return own == std::set<std::string>(names.begin(), names.end());
}

std::string Sizes::text() const {
    Json::Object members;
    for (const auto& [name, value] : entries) members.emplace_back(name, Json(value));
    return python_repr(Json(std::move(members)));
}

Field whole_field(const char* name, std::int64_t& out, bool required) {
    return field_of(name, out, required);
}
Field whole_field(const char* name, std::optional<std::int64_t>& out) { return field_of(name, out); }
Field pair_field(const char* name, Pair& out) { return field_of(name, out); }
Field pair_field(const char* name, std::optional<Pair>& out) { return field_of(name, out); }
Field pairs_field(const char* name, std::vector<Pair>& out) { return field_of(name, out); }
Field colour_field(const char* name, std::optional<Levels>& out) { return field_of(name, out); }
Field sizes_field(const char* name, Sizes& out) { return field_of(name, out); }
Field sizes_field(const char* name, std::optional<Sizes>& out) { return field_of(name, out); }

void read_layout(const Json& json, const std::string& where, const std::vector<Field>& fields) {
    Json::Object members = object_of(json, where);
    members.erase(std::remove_if(members.begin(), members.end(),
                                 [](const auto& entry) { return entry.first == "kind"; }),
                  members.end());
    read_record(Json(std::move(members)), where, fields);
}

}  // namespace fopru
