// What probes share: a line of JSON in, a line of JSON out. {"error": sentence} where an error was thrown.
#pragma once

#include <exception>
#include <functional>
#include <iostream>
#include <string>

#include "base/json.h"

namespace fopru {

inline int run_probe(const std::function<Json(const std::string& op, const Json& request)>& answer) {
    std::string line;
    while (std::getline(std::cin, line)) {
        Json reply;
        try {
            Json request = parse_json(line, "the request");
            reply = Json(Json::Object{{"value", answer(*request.find("op")->text(), request)}});
        } catch (const std::exception& error) {
            reply = Json(Json::Object{{"error", Json(error.what())}});
        }
        std::cout << reply.dump() << "\n";
    }
    return 0;
}

// Of tests alone: the keys are there.
inline const std::string& text_of(const Json& request, const char* key) { return *request.find(key)->text(); }

inline std::string bytes_of(const Json& request, const char* key) {  // from hexadecimal digits
    const std::string& digits = text_of(request, key);
    std::string out;
    for (std::size_t at = 0; at + 1 < digits.size(); at += 2) {
        out += static_cast<char>(std::stoi(digits.substr(at, 2), nullptr, 16));
    }
    return out;
}

}  // namespace fopru
