"""The three subgraphs as plain modules: each `forward` has the tensors of `runtime.contract`, in its order,
and no options.

They hold the modules of the loaded model, never copies, so that exporting one costs no second set of weights.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import DynamicCache

__all__ = ["Decoder", "EmbedTokens", "VisionEncoder"]


class VisionEncoder(nn.Module):
    """Tower, feature selection and projector.

    pixel_values float32 [images, 3, H, W] → image_features float32 [images, p + N, D]. The whole tower is
    called, and what comes after the last chosen state is dead code that the exporter drops: cutting layers
    off the module instead would leave transformers' capture hooks, which are installed once, on half a tower.
    """

    def __init__(
        self,
        vision_tower: nn.Module,
        multi_modal_projector: nn.Module,
        states: tuple[int, ...],
        rows_dropped: int,
    ) -> None:
        """`states`: indices into `hidden_states` (0 = embeddings); `rows_dropped`: leading rows left out."""
        super().__init__()
        self.vision_tower = vision_tower
        self.multi_modal_projector = multi_modal_projector
        self._states = states
        self._rows_dropped = rows_dropped

    def forward(self, pixel_values: Tensor) -> Tensor:
        hidden = self.vision_tower(pixel_values, output_hidden_states=True, return_dict=True).hidden_states
        chosen = [hidden[index][:, self._rows_dropped :] for index in self._states]
        features = chosen[0] if len(chosen) == 1 else torch.cat(chosen, dim=-1)
        return self.multi_modal_projector(features)


class EmbedTokens(nn.Module):
    """Token embedding. input_ids int64 [batch, seq] → inputs_embeds float32 [batch, seq, D]."""

    def __init__(self, embed_tokens: nn.Module) -> None:
        super().__init__()
        self.embed_tokens = embed_tokens

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.embed_tokens(input_ids)


class Decoder(nn.Module):
    """Language model and head with an explicit cache.

    inputs_embeds float32 [batch, seq, D], attention_mask int64 [batch, past + seq], position_ids int64
    [batch, seq], num_logits_to_keep int64 scalar, past: 2 x layers tensors float32 [batch, kv_heads, past,
    head_dim] → logits float32 [batch, kept, V] of the last `num_logits_to_keep` positions (0 = all), then
    the grown cache.
    """

    def __init__(self, language_model: nn.Module, lm_head: nn.Module) -> None:
        super().__init__()
        self.language_model = language_model
        self.lm_head = lm_head

    def forward(
        self,
        inputs_embeds: Tensor,
        attention_mask: Tensor,
        position_ids: Tensor,
        num_logits_to_keep: Tensor,
        past: list[Tensor],
    ) -> tuple[Tensor, ...]:
        # Plain growing layers even where the model has sliding windows: the window then lives in the mask
        # alone,
        # and every layer's cache has the same length.
        cache = DynamicCache()
        for layer in range(len(past) // 2):
            cache.update(past[2 * layer], past[2 * layer + 1], layer)
        hidden = self.language_model(
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state
        logits = self.lm_head(_last_rows(hidden, num_logits_to_keep))
        return (logits, *(part for layer in cache.layers for part in (layer.keys, layer.values)))


def _last_rows(hidden: Tensor, count: Tensor) -> Tensor:
    """Rows -count.. of axis 1; count 0 is a start of -0 = 0, i.e. all rows, without a branch in the graph."""
    start = -count.item()
    return hidden[:, start:]
