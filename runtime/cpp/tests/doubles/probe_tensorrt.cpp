// Reads JSON lines, prints JSON lines: which engine is found for a graph, and what a device is called.
#include <iostream>
#include <string>

#include "backend/tensorrt/engine_files.h"
#include "backend/tensorrt/identity.h"
#include "base/error.h"
#include "base/json.h"
#include "bundle/bundle.h"

namespace {

using fopru::Json;

std::string text_of(const Json& record, const char* key) {
    const Json* found = record.find(key);
    return found == nullptr || found->text() == nullptr ? "" : *found->text();
}

Json answer(const Json& record) {
    if (record.find("release") != nullptr) {
        const auto jetpack = fopru::jetpack_of(text_of(record, "release"));
        return jetpack ? Json(*jetpack) : Json();
    }
    if (record.find("hash") != nullptr) {
        const auto bundle = fopru::Bundle::open(text_of(record, "bundle"), false);
        return fopru::graph_hash(bundle->manifest(), text_of(record, "hash"));
    }
    const int sm = static_cast<int>(*record.find("sm")->integer());
    const fopru::EngineIdentity identity =
        fopru::identity_of(text_of(record, "gpu"), sm, text_of(record, "tensorrt"), text_of(record, "root"));
    if (record.find("file") == nullptr) return Json::Array{identity.tag(), identity.text()};
    return fopru::find_engine_of_file(text_of(record, "file"), identity, text_of(record, "folder"));
}

}  // namespace

int main() {
    for (std::string line; std::getline(std::cin, line);) {
        Json::Object result;
        try {
            result.emplace_back("value", answer(fopru::parse_json(line, "input")));
        } catch (const fopru::Error& error) {
            const char* kind = error.kind() == fopru::ErrorKind::engine ? "EngineError" : "BundleError";
            result.emplace_back("error", Json::Array{kind, error.what()});
        }
        std::cout << Json(std::move(result)).dump() << "\n";
    }
    return 0;
}
