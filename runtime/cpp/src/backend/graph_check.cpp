#include "backend/graph_check.h"

#include <algorithm>

#include "base/error.h"

namespace fopru {

namespace {

constexpr const char* rebuild = ": rebuild the bundle with `python -m export.build`";

std::string dims_text(const std::vector<std::int64_t>& shape, const std::vector<std::string>& names) {
    std::string text;
    for (std::size_t axis = 0; axis < shape.size(); ++axis) {
        const bool named = shape[axis] < 0 && axis < names.size() && !names[axis].empty();
        text += (axis == 0 ? "" : ", ") +
                (named ? names[axis] : shape[axis] < 0 ? std::string("?") : std::to_string(shape[axis]));
    }
    return "[" + text + "]";
}

void check_side(const std::string& where, const std::vector<TensorSpec>& table, const std::vector<TensorName>& real,
                const char* role) {
    for (const TensorSpec& tensor : table) {
        const TensorName* found = nullptr;
        std::string names;
        for (const TensorName& each : real) {
            names += (names.empty() ? "" : ", ") + each.name;
            if (each.name == tensor.name) found = &each;
        }
        if (found == nullptr) {
            throw BundleError(where + " has no " + role + " " + tensor.name + ", which bundle.json lists (it has " +
                              names + ")" + rebuild);
        }
        for (std::size_t axis = 0; axis < std::min(tensor.shape.size(), found->shape.size()); ++axis) {
            const std::int64_t wanted = tensor.shape[axis], has = found->shape[axis];
            if (wanted >= 0 && has >= 0 && wanted != has) {
                throw BundleError(where + ": " + role + " " + tensor.name + " is " + dims_text(found->shape, {}) +
                                  " in the file, but bundle.json says " + dims_text(tensor.shape, tensor.names) +
                                  rebuild);
            }
        }
    }
}

}  // namespace

void check_session(const std::string& graph, const GraphInfo& info, const Session& session) {
    check_side("graph " + graph, info.inputs, session.inputs(), "input");
    check_side("graph " + graph, info.outputs, session.outputs(), "output");
}

}  // namespace fopru
