#include <algorithm>

#include "base/error.h"
#include "base/python_text.h"
#include "bundle/contract.h"
#include "bundle/manifest_check.h"

namespace fopru {

namespace {

bool is_fixed(const TensorSpec& tensor, std::size_t axis) { return tensor.names[axis].empty(); }

// What the manifest wrote: a dim named "" is a name too, but then -1 stands beside it.
std::string dims(const TensorSpec& tensor) {
    std::vector<std::string> out;
    for (std::size_t axis = 0; axis < tensor.shape.size(); ++axis) {
        out.push_back(is_fixed(tensor, axis) ? std::to_string(tensor.shape[axis]) : tensor.names[axis]);
    }
    return "[" + joined(out) + "]";
}

void check_tensor(const std::string& where, const TensorSpec& wanted, const TensorSpec* found) {
    if (found == nullptr || found->dtype != wanted.dtype) {
        throw BundleError(where + " is " + (found == nullptr ? "absent" : found->dtype) + ", expected " +
                          wanted.dtype + ": " + rebuild_bundle);
    }
    bool same = found->shape.size() == wanted.shape.size();
    for (std::size_t axis = 0; same && axis < wanted.shape.size(); ++axis) {
        if (!is_fixed(wanted, axis)) continue;
        same = is_fixed(*found, axis) && found->shape[axis] == wanted.shape[axis];
    }
    if (same) return;
    throw BundleError(where + " has the shape " + dims(*found) + ", but the rest of bundle.json makes it " +
                      dims(wanted) + ": " + rebuild_bundle);
}

void check_tensors(const std::string& where, const std::vector<TensorSpec>& wanted,
                   const std::vector<TensorSpec>& found) {
    std::map<std::string, const TensorSpec*> by_name;
    for (const TensorSpec& tensor : found) by_name[tensor.name] = &tensor;
    for (const TensorSpec& tensor : wanted) {
        auto place = by_name.find(tensor.name);
        check_tensor(where + " " + tensor.name, tensor, place == by_name.end() ? nullptr : place->second);
    }
}

}  // namespace

void check_tables(const Manifest& manifest) {
    for (const contract::NamedContract& wanted : contract::contracts(manifest)) {
        const GraphInfo& info = manifest.graphs.at(wanted.graph);
        check_tensors("graph " + wanted.graph + ": input", wanted.tensors.inputs, info.inputs);
        check_tensors("graph " + wanted.graph + ": output", wanted.tensors.outputs, info.outputs);
    }
}

}  // namespace fopru
