"""The vision encoder and the embedding as plain modules: each `forward` has the tensors of
`runtime.contract`, in its order, and no options.

They hold the modules of the loaded model, never copies, so that exporting one costs no second set of weights.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["EmbedTokens", "VisionEncoder"]


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
