"""FoPru in plain PyTorch on the Hugging Face model: what every bundle is compared with.

Written to be read beside the specification and to share nothing with the graph rewriter or the runtime: the
processor makes pixels and prompt, the family's `Reference` returns scores and features of transformers' own
code, selection is a stable sort (`export.selection`), and the model itself decodes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from export.errors import ExportError
from export.families.base import Reference
from export.prompt_template import DEFAULT_TEMPLATE, conversation
from export.selection import Budget, kept_tokens
from runtime.prompt import render_chat

__all__ = ["Oracle", "PruningChoice", "attention_of", "eager"]


@dataclass(frozen=True)
class PruningChoice:
    """What to prune and how: a fraction `ratio`, or `tokens` per image (neither: nothing is pruned), scored
    by encoder layer `layer` (0-based). The policies are those of `runtime.manifest.PruningInfo`."""

    layer: int
    ratio: float | None = None
    tokens: int | None = None
    strategy: str = "rank"
    aggregation: str = "col_mean"
    row_scope: str = "tile"
    newline: str = "keep_all"
    position_ids: str = "renumber"


class Oracle:
    """FoPru on one loaded model, batch of one prompt, greedy."""

    def __init__(self, reference: Reference, model: Any, processor: Any) -> None:
        """Keeps all three; they must stay unchanged while the oracle is used."""
        self._reference = reference
        self._model = model
        self._processor = processor

    @torch.no_grad()
    def run(
        self, images: list[Image.Image], prompt: str, choice: PruningChoice, new_tokens: int
    ) -> dict[str, npt.NDArray[Any]]:
        """Every golden tensor, by parity stage, in the order of the data flow.

        Args:
            images: at least one picture, any mode and size.
            prompt: the question, without image tokens.
            choice: pruning.
            new_tokens: greedy tokens to make; the end of the answer is ignored.
        """
        inputs = self._inputs(images, prompt)
        pixels = self._reference.pixel_values(inputs)
        features = self._reference.features(inputs)
        scores, kept = self._select(inputs, choice)
        stays = self._reference.keep_mask(inputs, kept, choice.newline)
        pruned = features[stays]
        ids = inputs["input_ids"]
        is_image = ids[0] == self._model.config.image_token_id
        in_prompt = torch.ones_like(is_image)
        in_prompt[is_image] = stays
        ids = ids[:, in_prompt]
        positions = self._reference.positions(inputs)
        if choice.position_ids == "renumber":
            positions, following = torch.arange(ids.shape[1]).expand(len(positions), -1), ids.shape[1]
        else:
            positions, following = positions[:, in_prompt], int(positions.max()) + 1
        embeds = self._model.get_input_embeddings()(ids)
        embeds[0, is_image[in_prompt]] = pruned
        logits, tokens = self._greedy(embeds, positions, following, new_tokens)
        tensors = {
            "pixel_values": pixels.reshape(-1, pixels.shape[-1]),
            "kept_counts": torch.stack([unit.sum() for unit in kept]),
            "image_features": features,
            "token_scores": torch.cat([unit.flatten() for unit in scores]),
            "kept_indices": torch.cat([unit.flatten().nonzero()[:, 0] for unit in kept]),
            "pruned_features": pruned,
            "input_ids": ids,
            "position_ids": positions,
            "inputs_embeds": embeds,
            "logits": logits,
            "tokens": tokens,
        }
        return {name: tensor.contiguous().numpy() for name, tensor in tensors.items()}

    def _inputs(self, images: list[Image.Image], prompt: str) -> Any:
        """Prompt ids and pixels as `transformers` makes them; one placeholder per unpruned row."""
        processor = self._processor
        template = getattr(processor, "chat_template", None) or processor.tokenizer.chat_template
        if template:
            return processor.apply_chat_template(
                conversation([(prompt, list(images), "")]),
                chat_template=template,
                add_generation_prompt=True,
                tokenize=True,
                return_dict=True,
                return_tensors="pt",
            )
        texts = [DEFAULT_TEMPLATE.image.replace("<image>", processor.image_token)] * len(images)
        text = render_chat(DEFAULT_TEMPLATE, [(prompt, texts, "")])
        return processor(text=text, images=images, return_tensors="pt")

    def _select(self, inputs: Any, choice: PruningChoice) -> tuple[list[Tensor], list[Tensor]]:
        """(scores, bool kept) per unit; scores of a unit of padding alone are 0: nobody looks at it."""
        scores = self._reference.unit_scores(inputs, choice.layer, choice.aggregation)
        valid = self._reference.unit_valid(inputs)
        if not all(bool(torch.isfinite(unit).all()) for unit in scores):
            raise ExportError(
                "the attention of the scoring layer is not finite on this image: the checkpoint is damaged, "
                "or give another --layer"
            )
        scores = [unit if bool(shown.any()) else unit * 0 for unit, shown in zip(scores, valid, strict=True)]
        budget = Budget(choice.ratio, choice.tokens, choice.strategy, choice.row_scope)
        kept: list[Tensor] = []
        for image in self._reference.image_units(inputs):
            own = slice(len(kept), len(kept) + image.count)
            kept += kept_tokens(image, scores[own], valid[own], budget)
        return scores, kept

    def _greedy(
        self, embeds: Tensor, positions: Tensor, following: int, new_tokens: int
    ) -> tuple[Tensor, Tensor]:
        """(logits [1, V] of the last prompt position, tokens [1, new_tokens]) with the model's own cache.

        `positions` int64 [axes, L]; generated tokens are at `following`, `following` + 1, … on every axis.
        """
        from transformers import DynamicCache

        def forward(ids: Tensor, **inputs: Tensor) -> Tensor:
            # M-RoPE has [axes, batch, seq], everything else [batch, seq].
            ids = ids[:, None] if len(ids) > 1 else ids
            out = self._model(
                position_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1, **inputs
            )
            return out.logits[:, -1]

        cache = DynamicCache(config=self._model.config.text_config)
        first = forward(positions, inputs_embeds=embeds)
        tokens = [first.argmax(dim=-1)]
        for step in range(new_tokens - 1):
            place = torch.full((len(positions), 1), following + step)
            tokens.append(forward(place, input_ids=tokens[-1][:, None]).argmax(dim=-1))
        return first, torch.stack(tokens, dim=1)


def attention_of(tower: Any, pixel_values: Tensor, layer: int) -> Tensor:
    """float32 [units, queries, keys]: attention probabilities of a layer, mean over heads.

    One unit after the other: transformers keeps those of every layer, gigabytes for a few large tiles.
    """
    with eager(tower):
        calls = (tower(unit[None], output_attentions=True, return_dict=True) for unit in pixel_values)
        return torch.cat([out.attentions[layer].float().mean(dim=1) for out in calls])


@contextmanager
def eager(tower: Any) -> Iterator[None]:
    """Only eager attention returns its probabilities; sdpa gives an empty tuple without a word."""
    before = tower.config._attn_implementation
    tower.set_attn_implementation("eager")
    try:
        yield
    finally:
        tower.set_attn_implementation(before)
