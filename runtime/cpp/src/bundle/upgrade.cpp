#include "bundle/upgrade.h"

#include <algorithm>

namespace fopru {

namespace {

constexpr const char* geometry[] = {"resize", "crop", "pad_to_square"};

bool is_geometry(const std::string& key) {
    return std::any_of(std::begin(geometry), std::end(geometry),
                       [&](const char* name) { return key == name; });
}

// In its place where the key is there, else at the end: as a dict of Python.
void set(Json::Object& members, const std::string& key, Json value) {
    auto place =
        std::find_if(members.begin(), members.end(), [&](const auto& member) { return member.first == key; });
    if (place == members.end()) {
        members.emplace_back(key, std::move(value));
    } else {
        place->second = std::move(value);
    }
}

// Format 2 joins `vision` and the geometry of `preprocess` as `layout`. Keys of an object are unique, so most
// are only appended: looking each up would be quadratic in what a file claims.
Json::Object from_1(const Json::Object& data, const Json& vision, const Json& preprocess) {
    Json::Object layout{{"kind", Json("single")}}, scale, out;
    for (const auto& [key, value] : *vision.object()) {
        if (key == "kind") layout.front().second = value;
        if (key != "kind" && key != "image_size") layout.emplace_back(key, value);
    }
    for (const char* name : geometry) {
        const Json* value = preprocess.find(name);
        if (value != nullptr) set(layout, name, *value);
    }
    for (const auto& [key, value] : *preprocess.object()) {
        if (!is_geometry(key)) scale.emplace_back(key, value);
    }
    for (const auto& [key, value] : data) {
        if (key != "vision") out.emplace_back(key, value);
    }
    set(out, "preprocess", std::move(scale));
    set(out, "layout", std::move(layout));
    return out;
}

}  // namespace

Json upgraded(const Json& data, std::int64_t version) {
    if (version >= 3) return data;
    Json::Object out = *data.object();
    const Json* vision = data.find("vision");
    const Json* preprocess = data.find("preprocess");
    bool movable = vision != nullptr && preprocess != nullptr && vision->object() != nullptr &&
                   preprocess->object() != nullptr;
    if (version == 1 && movable) out = from_1(*data.object(), *vision, *preprocess);
    // Format 3 only adds keys, whose defaults are what format 2 means.
    set(out, "format_version", Json(3));
    return out;
}

}  // namespace fopru
