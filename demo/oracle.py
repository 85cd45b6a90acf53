"""FoPru on the PyTorch model, written as plainly as possible: for training, and for measuring the checkpoint.

Scores are the attention each patch receives in the layer whose output the projector reads: softmax of the
eager attention, mean over heads and over all queries (CLS included), CLS column dropped (``col_mean``).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from transformers import LlavaForConditionalGeneration

from runtime.counts import kept_count, kept_rows

__all__ = [
    "SELECTORS",
    "Selector",
    "VisionOutput",
    "encode",
    "gather_tokens",
    "project",
    "select",
]

Selector = Literal["rank", "row", "random", "uniform"]
SELECTORS: tuple[Selector, ...] = ("rank", "row", "random", "uniform")


@dataclass(frozen=True)
class VisionOutput:
    """What the tower says about a batch of images, before the projector."""

    features: Tensor  # float32 [images, tokens, tower width]
    scores: Tensor  # float32 [images, tokens], >= 0; with the dropped CLS column each row sums to 1


def encode(model: LlavaForConditionalGeneration, pixel_values: Tensor) -> VisionOutput:
    """Runs the tower on ``pixel_values`` [images, 3, H, W] with eager attention."""
    tower = model.model.vision_tower
    if tower.config._attn_implementation != "eager":
        tower.set_attn_implementation("eager")  # the other implementations return no attention
    output = tower(pixel_values, output_hidden_states=True, output_attentions=True)
    layer = model.config.vision_feature_layer
    attention = output.attentions[layer].float()  # [images, heads, queries, keys]
    return VisionOutput(output.hidden_states[layer][:, 1:].float(), attention.mean(dim=(1, 2))[:, 1:])


def select(scores: Tensor, ratio: float, selector: Selector, seeds: Sequence[int]) -> Tensor:
    """Kept positions int64 [images, kept], ascending, of a square grid of patches scored [images, tokens].

    ``row`` keeps whole rows, so its count differs from the others'. ``seeds`` (one per image) serve
    ``random`` only.
    """
    images, tokens = scores.shape
    keep = kept_count(tokens, ratio)
    if selector == "rank":
        return _largest(scores, keep)
    if selector == "row":
        side = math.isqrt(tokens)
        rows = _largest(scores.view(images, side, side).mean(dim=2), kept_rows(side, ratio))
        return (rows[:, :, None] * side + torch.arange(side, device=scores.device)).flatten(1)
    if selector == "random":
        draws = [torch.rand(tokens, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
        return _largest(torch.stack(draws), keep).to(scores.device)
    if selector == "uniform":
        steps = torch.arange(keep, device=scores.device)
        return ((2 * steps + 1) * tokens // (2 * keep)).expand(images, -1)
    raise ValueError(f"unknown selector {selector!r}; the selectors are {', '.join(SELECTORS)}")


def gather_tokens(features: Tensor, kept: Tensor) -> Tensor:
    """``features`` [images, tokens, width] at ``kept`` [images, k] -> [images, k, width]."""
    return features.gather(1, kept[:, :, None].expand(-1, -1, features.shape[2]))


def project(model: LlavaForConditionalGeneration, features: Tensor) -> Tensor:
    """The projector, [images, k, tower width] -> [images, k, decoder width]."""
    projected: Tensor = model.model.multi_modal_projector(features)
    return projected


def _largest(scores: Tensor, keep: int) -> Tensor:
    """Positions of the ``keep`` largest, ties to the lower position, ascending."""
    order = scores.sort(dim=1, descending=True, stable=True).indices
    return order[:, :keep].sort(dim=1).values
