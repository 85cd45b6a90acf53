#include "check/golden.h"

#include <stdexcept>

#include "base/error.h"
#include "base/file.h"
#include "base/npz.h"
#include "bundle/decode.h"

namespace fopru {
namespace {

constexpr const char* golden_record = "golden/golden.json";
constexpr const char* golden_tensors = "golden/golden.npz";

BundleError damaged(const Bundle& bundle, const std::string& why) {
    return BundleError("the golden tensors of " + bundle.path() + " cannot be read (" + why +
                       "): copy the bundle again");
}

Json record_text(const Bundle& bundle) {
    const std::string file = bundle.file(golden_record);
    try {
        const MappedFile mapped(file);
        return parse_json(mapped.bytes(), golden_record);
    } catch (const std::runtime_error& error) {  // FileError, or BundleError of the JSON
        throw damaged(bundle, error.what());
    }
}

// Bundle format 1 named K instead of a budget.
Json record_of_2(const Json& record) {
    const Json* keep = record.find("num_keep");
    if (keep == nullptr) return record;
    const Json* ratio = record.find("ratio");
    Json::Object members;
    for (const auto& member : *record.object()) {
        if (member.first != "num_keep" && member.first != "tokens") members.push_back(member);
    }
    members.emplace_back("tokens", ratio == nullptr || ratio->is_null() ? *keep : Json(nullptr));
    return Json(std::move(members));
}

Tensor tensor_of(const NpyArray& array) {
    if (array.dtype.rfind("float", 0) == 0) return float_tensor(array.shape, array.floats());
    return integer_tensor(array.shape, array.integers());
}

Tensor reshaped(const Tensor& tensor, std::vector<std::int64_t> shape) {
    return {std::move(shape), tensor.values};
}

// Bundle format 1 had one axis more, for images of one size, and positions 0, 1, 2, ...
void upgrade_from_1(Tensors& tensors) {
    const Tensor *kept = tensors.find("kept_indices"), *ids = tensors.find("input_ids");
    if (kept == nullptr || ids == nullptr || kept->shape.size() != 2 || ids->shape.size() != 2) return;
    const std::vector<std::int64_t> counts(static_cast<std::size_t>(kept->shape[0]), kept->shape[1]);
    const std::int64_t length = ids->shape[1];
    for (const char* name : {"kept_indices", "token_scores"}) {
        const Tensor* own = tensors.find(name);
        if (own != nullptr) tensors.set(name, reshaped(*own, {static_cast<std::int64_t>(own->size())}));
    }
    for (const char* name : {"pixel_values", "image_features", "pruned_features"}) {
        const Tensor* own = tensors.find(name);
        if (own == nullptr || own->shape.empty() || own->shape.back() < 1) continue;
        const std::int64_t width = own->shape.back();
        tensors.set(name, reshaped(*own, {static_cast<std::int64_t>(own->size()) / width, width}));
    }
    const auto units = static_cast<std::int64_t>(counts.size());
    tensors.set("kept_counts", integer_tensor({units}, counts));
    // As many ids as the file really has, whatever its shape says of empty axes.
    const auto most = static_cast<std::int64_t>(tensors.find("input_ids")->size());
    std::vector<std::int64_t> positions(static_cast<std::size_t>(std::min(length, most)));
    for (std::size_t i = 0; i < positions.size(); ++i) positions[i] = static_cast<std::int64_t>(i);
    const auto columns = static_cast<std::int64_t>(positions.size());
    tensors.set("position_ids", integer_tensor({1, columns}, std::move(positions)));
}

}  // namespace

Golden load_record(const Bundle& bundle) {
    Golden golden;
    read_record(record_of_2(record_text(bundle)), golden_record,
                {required_field("prompt", golden.prompt), required_field("images", golden.images),
                 required_field("ratio", golden.ratio), required_field("tokens", golden.tokens),
                 required_field("strategy", golden.strategy), required_field("new_tokens", golden.new_tokens),
                 required_field("reference", golden.reference)});
    if (golden.images.empty()) {
        throw BundleError(std::string(golden_record) +
                          ": images is empty, expected at least one: " + rebuild_bundle);
    }
    return golden;
}

Tensors load_golden(const Bundle& bundle) {
    const std::string file = bundle.file(golden_tensors);
    Tensors tensors;
    try {
        const MappedFile mapped(file);
        for (const auto& [name, array] : parse_npz(mapped.bytes())) tensors.set(name, tensor_of(array));
    } catch (const std::runtime_error& error) {  // FileError, NpzError
        throw damaged(bundle, error.what());
    }
    if (tensors.find("kept_counts") == nullptr) upgrade_from_1(tensors);
    return tensors;
}

}  // namespace fopru
