// A probe answers JSON lines with JSON lines: one object each, an error of the library as its kind and
// message.
#pragma once

#include <cstdint>
#include <iostream>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "base/error.h"
#include "base/json.h"

namespace fopru::probe {

// What a test sends is right, so that a member that is missing ends the probe.
inline const Json& member(const Json& json, const char* name) {
    const Json* value = json.find(name);
    if (value == nullptr) throw std::runtime_error(std::string("a line lacks ") + name);
    return *value;
}

inline std::int64_t whole(const Json& json) {
    if (json.integer() == nullptr) throw std::runtime_error("a line has no integer where one is needed");
    return *json.integer();
}

inline double real(const Json& json) {
    double value = 0.0;
    if (!json.number(value)) throw std::runtime_error("a line has no number where one is needed");
    return value;
}

inline const std::string& text(const Json& json) {
    if (json.text() == nullptr) throw std::runtime_error("a line has no text where one is needed");
    return *json.text();
}

inline const Json::Array& items(const Json& json) {
    if (json.array() == nullptr) throw std::runtime_error("a line has no list where one is needed");
    return *json.array();
}

inline std::vector<std::int64_t> wholes(const Json& json) {
    std::vector<std::int64_t> values;
    for (const auto& item : items(json)) values.push_back(whole(item));
    return values;
}

inline std::vector<std::vector<std::int64_t>> lists(const Json& json) {
    std::vector<std::vector<std::int64_t>> values;
    for (const auto& item : items(json)) values.push_back(wholes(item));
    return values;
}

template <class T>
Json list_of(const std::vector<T>& values) {
    Json::Array out;
    for (const auto& value : values) out.emplace_back(value);
    return Json(std::move(out));
}

template <class T>
Json lists_of(const std::vector<std::vector<T>>& values) {
    Json::Array out;
    for (const auto& value : values) out.push_back(list_of(value));
    return Json(std::move(out));
}

inline Json grid_of(const std::optional<std::pair<int, int>>& grid) {
    return grid ? Json(Json::Array{Json(grid->first), Json(grid->second)}) : Json(nullptr);
}

inline Json error_of(const Error& error) {
    static const char* const kinds[] = {"BundleError", "ImageError", "RequestError", "BackendError",
                                        "EngineError"};
    return Json(Json::Object{{"error", Json(kinds[static_cast<int>(error.kind())])},
                             {"message", Json(std::string(error.what()))}});
}

// What `make` gives, or the error that it throws.
template <class Make>
Json answer_of(Make make) {
    try {
        return make();
    } catch (const Error& error) {
        return error_of(error);
    }
}

template <class Answer>
int answer_lines(Answer answer) {
    std::ios::sync_with_stdio(false);
    for (std::string line; std::getline(std::cin, line);) {
        const Json request = parse_json(line, "a line");
        std::cout << answer_of([&] { return answer(request); }).dump() << '\n';
    }
    return 0;
}

}  // namespace fopru::probe
