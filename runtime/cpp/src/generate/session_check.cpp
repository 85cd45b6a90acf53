#include "generate/session_check.h"

#include <algorithm>

#include "base/error.h"
#include "base/python_text.h"

namespace fopru {

namespace {

std::string dims(const std::vector<std::int64_t>& shape, const std::vector<std::string>& names) {
    std::vector<std::string> texts;
    for (std::size_t i = 0; i < shape.size(); ++i) {
        const bool named = i < names.size() && !names[i].empty();
        texts.push_back(shape[i] >= 0 ? std::to_string(shape[i]) : named ? names[i] : "?");
    }
    return "[" + joined(texts) + "]";
}

bool differ(const std::vector<std::int64_t>& table, const std::vector<std::int64_t>& real) {
    for (std::size_t i = 0; i < std::min(table.size(), real.size()); ++i) {
        if (table[i] >= 0 && real[i] >= 0 && table[i] != real[i]) return true;
    }
    return false;
}

void check_tensors(const std::string& where, const std::vector<TensorSpec>& table,
                   const std::vector<TensorName>& real) {
    for (const TensorSpec& tensor : table) {
        const auto found = std::find_if(real.begin(), real.end(),
                                        [&](const TensorName& own) { return own.name == tensor.name; });
        if (found == real.end()) {
            std::vector<std::string> names;
            for (const TensorName& own : real) names.push_back(own.name);
            const auto space = where.rfind(' ');
            throw BundleError(where.substr(0, where.find(':')) + " has no " + where.substr(space + 1) + " " +
                              tensor.name + ", which bundle.json lists (it has " + joined(names) +
                              "): " + rebuild_bundle);
        }
        if (differ(tensor.shape, found->shape)) {
            throw BundleError(where + " " + tensor.name + " is " + dims(found->shape, {}) +
                              " in the file, but bundle.json says " + dims(tensor.shape, tensor.names) +
                              ": " + rebuild_bundle);
        }
    }
}

}  // namespace

void check_session(const std::string& graph, const GraphInfo& info, const Session& session) {
    check_tensors("graph " + graph + ": input", info.inputs, session.inputs());
    check_tensors("graph " + graph + ": output", info.outputs, session.outputs());
}

}  // namespace fopru
