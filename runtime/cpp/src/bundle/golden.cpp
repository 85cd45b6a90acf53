#include "bundle/golden.h"

#include <cstring>

#include "base/error.h"
#include "base/file.h"
#include "bundle/decode.h"

namespace fopru {

namespace {

constexpr std::uint64_t most_record_bytes = 16 << 20;
constexpr std::size_t most_tensor_bytes = std::size_t{4} << 30;

BundleError damaged(const Bundle& bundle, const std::string& why) {
    return BundleError("the golden tensors of " + bundle.path() + " cannot be read (" + why +
                       "): copy the bundle again");
}

// Bundle format 1 named K instead of a budget.
Json record_of_2(Json data) {
    const Json* keep = data.find("num_keep");
    if (keep == nullptr) return data;
    const Json* ratio = data.find("ratio");
    Json tokens = ratio == nullptr || ratio->is_null() ? *keep : Json();
    Json::Object out;
    for (const auto& [key, value] : *data.object()) {
        if (key != "num_keep" && key != "tokens") out.emplace_back(key, value);
    }
    out.emplace_back("tokens", std::move(tokens));
    return out;
}

NpyArray int64_array(const std::vector<std::int64_t>& values, std::vector<std::int64_t> shape) {
    NpyArray out{"int64", std::move(shape), std::vector<unsigned char>(values.size() * sizeof(std::int64_t))};
    if (!values.empty()) std::memcpy(out.bytes.data(), values.data(), out.bytes.size());
    return out;
}

// The same values with other dims: the last axis alone, or all in one.
void flatten(NpzArrays& tensors, const char* name, bool keep_last) {
    auto found = tensors.find(name);
    if (found == tensors.end()) return;
    NpyArray& array = found->second;
    std::int64_t last = keep_last && !array.shape.empty() ? array.shape.back() : 1;
    std::int64_t rows = last > 0 ? static_cast<std::int64_t>(array.elements()) / last : 0;
    array.shape = keep_last ? std::vector<std::int64_t>{rows, last} : std::vector<std::int64_t>{rows};
}

// Bundle format 1 had one axis more, for images of one size, and positions 0, 1, 2, ...
void upgrade(NpzArrays& tensors) {
    auto kept = tensors.find("kept_indices"), ids = tensors.find("input_ids");
    if (kept == tensors.end() || ids == tensors.end() || kept->second.shape.size() != 2) return;
    std::vector<std::int64_t> shape = kept->second.shape;
    if (ids->second.shape.size() != 2) throw NpzError("input_ids has not two axes");
    // Dims of an array without elements may be of any size.
    if (kept->second.elements() == 0 || ids->second.elements() == 0) throw NpzError("an array is empty");
    for (const char* name : {"kept_indices", "token_scores"}) flatten(tensors, name, false);
    for (const char* name : {"pixel_values", "image_features", "pruned_features"}) flatten(tensors, name, true);
    tensors["kept_counts"] =
        int64_array(std::vector<std::int64_t>(static_cast<std::size_t>(shape[0]), shape[1]), {shape[0]});
    std::vector<std::int64_t> positions(static_cast<std::size_t>(ids->second.shape[1]));
    for (std::size_t at = 0; at < positions.size(); ++at) positions[at] = static_cast<std::int64_t>(at);
    tensors["position_ids"] = int64_array(positions, {1, ids->second.shape[1]});
}

}  // namespace

Golden load_golden_record(const Bundle& bundle) {
    std::string file = bundle.file(golden_record);
    Json data;
    try {
        data = record_of_2(parse_json(read_file(file, most_record_bytes), golden_record));
    } catch (const std::exception& error) {
        throw damaged(bundle, error.what());
    }
    Golden out;
    read_record(data, golden_record,
                {required_field("prompt", out.prompt), required_field("images", out.images),
                 required_field("ratio", out.ratio), required_field("tokens", out.tokens),
                 required_field("strategy", out.strategy), required_field("new_tokens", out.new_tokens),
                 required_field("reference", out.reference)});
    if (out.images.empty()) {
        throw BundleError(std::string(golden_record) +
                          ": images is empty, expected at least one: rebuild the bundle with `python -m export.build`");
    }
    return out;
}

NpzArrays load_golden_tensors(const Bundle& bundle) {
    std::string path = bundle.file(golden_tensors);
    try {
        MappedFile file(path);
        NpzArrays tensors = parse_npz(file.bytes(), most_tensor_bytes);
        if (tensors.count("kept_counts") == 0) upgrade(tensors);
        return tensors;
    } catch (const FileError& error) {
        throw damaged(bundle, error.what());
    } catch (const NpzError& error) {
        throw damaged(bundle, error.what());
    }
}

}  // namespace fopru
