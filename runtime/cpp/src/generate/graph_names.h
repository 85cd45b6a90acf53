// Names of graphs and of tensors that the generator itself touches: runtime/contract.py.
#pragma once

namespace fopru::graphs {

constexpr const char* vision_encoder = "vision_encoder";
constexpr const char* vision_encoder_fopru = "vision_encoder_fopru";
constexpr const char* embed_tokens = "embed_tokens";
constexpr const char* input_ids = "input_ids";
constexpr const char* inputs_embeds = "inputs_embeds";

}  // namespace fopru::graphs
