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

// Format 2 joins `vision` and the geometry of `preprocess` as `layout`.
Json::Object from_1(const Json::Object& data, const Json::Object& vision, const Json::Object& preprocess) {
    Json::Object layout{{"kind", Json("single")}}, scale, out;
    for (const auto& [key, value] : vision) {
        if (key != "image_size") set(layout, key, value);
    }
    for (const char* name : geometry) {
        for (const auto& [key, value] : preprocess) {
            if (key == name) set(layout, key, value);
        }
    }
    for (const auto& [key, value] : preprocess) {
        if (!is_geometry(key)) set(scale, key, value);
    }
    for (const auto& [key, value] : data) {
        if (key != "vision") set(out, key, value);
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
    if (version == 1 && movable) out = from_1(out, *vision->object(), *preprocess->object());
    // Format 3 only adds keys, whose defaults are what format 2 means.
    set(out, "format_version", Json(3));
    return out;
}

}  // namespace fopru
