#include "bundle/contract.h"

#include <algorithm>
#include <cstring>

namespace fopru::contract {

namespace {

constexpr const char* parts[] = {"key", "value"};

// Layouts say -1 for a dim that varies; its name follows from what it counts.
TensorSpec named(const std::string& name, const std::string& dtype, const std::vector<std::int64_t>& shape,
                 const char* first_axis) {
    TensorSpec out{name, dtype, shape, std::vector<std::string>(shape.size())};
    for (std::size_t axis = 0; axis < shape.size(); ++axis) {
        if (shape[axis] < 0) out.names[axis] = axis == 0 ? first_axis : "tokens";
    }
    return out;
}

TensorSpec pixels_of(const Layout& layout) {
    bool single = std::strcmp(layout.kind(), "single") == 0;
    return named(pixel_values, "float32", layout.pixel_shape(), single ? "images" : "units");
}

std::vector<TensorSpec> encoder_inputs(const Layout& layout) {
    std::vector<TensorSpec> out{pixels_of(layout)};
    for (const TensorInput& input : layout.extra_inputs()) {
        out.push_back(named(input.name, input.dtype, input.shape,
                            input.name == "window_tokens" ? "windows" : "tokens"));
    }
    return out;
}

// The first axis of whatever the encoder returns.
Dim units_of(const TensorSpec& pixels) {
    if (!pixels.names[0].empty()) return Dim(pixels.names[0].c_str());
    return Dim(pixels.shape[0]);
}

}  // namespace

std::string past_name(int layer, const char* part) {
    return "past_key_values." + std::to_string(layer) + "." + part;
}

std::string present_name(int layer, const char* part) {
    return "present." + std::to_string(layer) + "." + part;
}

TensorSpec tensor(const std::string& name, const std::string& dtype, const std::vector<Dim>& dims) {
    TensorSpec out{name, dtype, {}, {}};
    for (const Dim& dim : dims) {
        out.shape.push_back(dim.value);
        out.names.push_back(dim.name);
    }
    return out;
}

GraphContract vision_contract(const Layout& layout, std::int64_t width) {
    std::vector<TensorSpec> inputs = encoder_inputs(layout);
    std::optional<std::int64_t> tokens = layout.unit_tokens();
    Dim rows = tokens ? Dim(layout.prefix_tokens() + *tokens) : Dim("tokens");
    return {inputs, {tensor(image_features, "float32", {units_of(inputs[0]), rows, width})}};
}

GraphContract pruned_vision_contract(const Layout& layout, std::int64_t width, bool grid_input) {
    std::vector<TensorSpec> inputs = encoder_inputs(layout);
    Dim units = units_of(inputs[0]);
    inputs.push_back(tensor(num_keep, "int64", {1}));
    if (layout.masked()) inputs.push_back(tensor(token_mask, "bool", {units, "tokens"}));
    if (grid_input) inputs.push_back(tensor(grid, "int64", {2}));
    return {
        inputs,
        {tensor(image_features, "float32", {units, "kept_rows", width}),
         tensor(kept_indices, "int64", {units, "kept"}), tensor(token_scores, "float32", {units, "tokens"})}};
}

GraphContract embed_contract(std::int64_t width) {
    return {{tensor(input_ids, "int64", {"batch", "seq"})},
            {tensor(inputs_embeds, "float32", {"batch", "seq", width})}};
}

GraphContract decoder_contract(const DecoderInfo& info, const std::string& cache, int most_layers) {
    std::vector<Dim> past, present;
    if (cache == shared) {
        past = present = {"batch", info.kv_heads, "capacity", info.head_dim};
    } else if (cache == append) {
        past = {"batch", "past", info.kv_heads, info.head_dim};
        present = {"batch", "seq", info.kv_heads, info.head_dim};
    } else {
        past = {"batch", info.kv_heads, "past", info.head_dim};
        present = {"batch", info.kv_heads, "total", info.head_dim};
    }
    std::vector<Dim> positions{"batch", "seq"};
    if (info.position_axes != 1) positions.insert(positions.begin(), info.position_axes);
    GraphContract out{{tensor(inputs_embeds, "float32", {"batch", "seq", info.hidden_size}),
                       tensor(attention_mask, "int64", {"batch", "total"}),
                       tensor(position_ids, "int64", positions), tensor(num_logits_to_keep, "int64", {})},
                      {tensor(logits, "float32", {"batch", "logits", info.vocab_size})}};
    for (int layer = 0; layer < std::min(info.layers, most_layers); ++layer) {
        for (const char* part : parts) {
            out.inputs.push_back(tensor(past_name(layer, part), info.cache_dtype, past));
            out.outputs.push_back(tensor(present_name(layer, part), info.cache_dtype, present));
        }
    }
    return out;
}

std::vector<NamedContract> contracts(const Manifest& manifest) {
    std::int64_t width = manifest.decoder.hidden_size;
    std::vector<NamedContract> out{
        {vision_encoder, vision_contract(*manifest.layout, width)},
        {vision_encoder_fopru, pruned_vision_contract(*manifest.layout, width, manifest.grid_input())},
        {embed_tokens, embed_contract(width)}};
    for (const auto& [graph, cache] : manifest.decoder.caches) {
        // One layer more than the table lists shows the first that it lacks.
        auto listed = manifest.graphs.at(graph).inputs.size();
        int most = static_cast<int>(std::min<std::size_t>(listed, 1 << 20)) + 1;
        out.push_back({graph, decoder_contract(manifest.decoder, cache, most)});
    }
    return out;
}

}  // namespace fopru::contract
