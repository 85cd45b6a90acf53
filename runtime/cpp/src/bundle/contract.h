// Names, dtypes and symbolic shapes of every tensor that crosses a graph border: runtime/contract.py in C++,
// and a test proves that the two are equal. No other file writes these strings.
#pragma once

#include <string>
#include <vector>

#include "bundle/manifest.h"

namespace fopru::contract {

constexpr const char* vision_encoder = "vision_encoder";
constexpr const char* vision_encoder_fopru = "vision_encoder_fopru";
constexpr const char* embed_tokens = "embed_tokens";
constexpr const char* decoder = "decoder_model_merged";
constexpr const char* decoder_portable = "decoder_model_portable";

// How a decoder graph grows its cache; see `decoder_contract`.
constexpr const char* shared = "shared";
constexpr const char* append = "append";
constexpr const char* concat = "concat";

constexpr const char* pixel_values = "pixel_values";
constexpr const char* num_keep = "num_keep";
constexpr const char* token_mask = "token_mask";
constexpr const char* grid = "grid";
constexpr const char* image_features = "image_features";
constexpr const char* kept_indices = "kept_indices";
constexpr const char* token_scores = "token_scores";
constexpr const char* input_ids = "input_ids";
constexpr const char* inputs_embeds = "inputs_embeds";
constexpr const char* attention_mask = "attention_mask";
constexpr const char* position_ids = "position_ids";
constexpr const char* num_logits_to_keep = "num_logits_to_keep";
constexpr const char* logits = "logits";

// Ordered inputs and outputs of one graph.
struct GraphContract {
    std::vector<TensorSpec> inputs, outputs;
};

struct NamedContract {
    std::string graph;
    GraphContract tensors;
};

std::string past_name(int layer, const char* part);     // cache input; `part` is "key" or "value"
std::string present_name(int layer, const char* part);  // cache output

// A fixed dim is a number, a dim that varies has a name: {"batch", "seq", 64}.
struct Dim {
    Dim(std::int64_t fixed) : value(fixed) {}
    Dim(int fixed) : value(fixed) {}
    Dim(const char* varies) : name(varies) {}
    std::int64_t value = -1;
    std::string name;
};
TensorSpec tensor(const std::string& name, const std::string& dtype, const std::vector<Dim>& dims);

// `width` is D, the hidden size. The pruned encoder also takes `token_mask` where units may hold padding, and
// `grid` where `grid_input` says so.
GraphContract vision_contract(const Layout& layout, std::int64_t width);
GraphContract pruned_vision_contract(const Layout& layout, std::int64_t width, bool grid_input);
GraphContract embed_contract(std::int64_t width);
// Layers beyond `most_layers` are left out: a file may claim more of them than memory holds.
GraphContract decoder_contract(const DecoderInfo& info, const std::string& cache, int most_layers);

// Of every graph of a bundle, in the order in which they are checked.
std::vector<NamedContract> contracts(const Manifest& manifest);

}  // namespace fopru::contract
