"""FoPru in plain PyTorch on the Hugging Face model: what every bundle is compared with.

Written to be read beside the specification and to share nothing with the graph rewriter: the processor makes
pixels and prompt, the eager tower returns its attention, and selection is a stable sort.
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
from export.prompt_template import DEFAULT_TEMPLATE, conversation
from runtime.prompt import render_chat

__all__ = ["Oracle", "PruningChoice"]


@dataclass(frozen=True)
class PruningChoice:
    """What to prune and how: `keep` tokens per image, scored by encoder layer `layer` (0-based)."""

    keep: int
    layer: int
    strategy: str = "rank"
    aggregation: str = "col_mean"


class Oracle:
    """FoPru on one loaded LLaVA model, batch of one prompt, greedy."""

    def __init__(self, model: Any, processor: Any) -> None:
        """Keeps both; they must stay unchanged while the oracle is used."""
        self._model = model
        self._processor = processor
        self._config = model.config
        self._drops_first = model.config.vision_feature_select_strategy == "default"
        self._has_cls = model.config.vision_config.model_type == "clip_vision_model"

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
        pixels = inputs["pixel_values"].to(torch.float32)
        hidden, attention = self._tower(pixels, choice.layer)
        prefix = 1 if self._has_cls and not self._drops_first else 0
        rows = self._select_rows(hidden)
        scores = self._scores(attention, choice.aggregation)
        kept = torch.stack([self._select(row, choice) for row in scores])
        # Prefix rows go on unpruned and come first.
        chosen = torch.cat([torch.arange(prefix).expand(len(kept), -1), kept + prefix], dim=1)
        projector = self._model.model.multi_modal_projector
        pruned = torch.stack([projector(image[index]) for image, index in zip(rows, chosen, strict=True)])
        ids = self._pruned_ids(inputs["input_ids"], rows.shape[1], chosen.shape[1])
        embeds = self._model.get_input_embeddings()(ids)
        embeds[ids == self._config.image_token_id] = pruned.flatten(0, 1)
        logits, tokens = self._greedy(embeds, new_tokens)
        tensors = {
            "pixel_values": pixels,
            "image_features": projector(rows),
            "token_scores": scores,
            "kept_indices": kept,
            "pruned_features": pruned,
            "input_ids": ids,
            "inputs_embeds": embeds,
            "logits": logits,
            "tokens": tokens,
        }
        return {name: tensor.numpy() for name, tensor in tensors.items()}

    def _inputs(self, images: list[Image.Image], prompt: str) -> Any:
        """Prompt ids and pixels as `transformers` makes them; one placeholder per unpruned row."""
        processor = self._processor
        if getattr(processor, "chat_template", None) or getattr(processor.tokenizer, "chat_template", None):
            return processor.apply_chat_template(
                conversation([(prompt, list(images), "")]),
                chat_template=getattr(processor, "chat_template", None) or processor.tokenizer.chat_template,
                add_generation_prompt=True,
                tokenize=True,
                return_dict=True,
                return_tensors="pt",
            )
        text = render_chat(DEFAULT_TEMPLATE, [(prompt, len(images), "")])
        text = text.replace("<image>", processor.image_token)
        return processor(text=text, images=images, return_tensors="pt")

    def _tower(self, pixels: Tensor, layer: int) -> tuple[tuple[Tensor, ...], Tensor]:
        """Hidden states, and the post-softmax attention [images, heads, Q, Q] of one layer."""
        tower = self._model.model.vision_tower
        with _eager(tower):
            out = tower(pixels, output_hidden_states=True, output_attentions=True, return_dict=True)
        return out.hidden_states, out.attentions[layer].to(torch.float32)

    def _select_rows(self, hidden: tuple[Tensor, ...]) -> Tensor:
        """The rows that go to the projector, [images, p + N, width x layers]."""
        wanted = self._config.vision_feature_layer
        layers = [wanted] if isinstance(wanted, int) else list(wanted)
        chosen = [hidden[index] for index in layers]
        if self._drops_first:
            chosen = [state[:, 1:] for state in chosen]
        return torch.cat(chosen, dim=-1)

    def _scores(self, attention: Tensor, aggregation: str) -> Tensor:
        """One score per prunable token, float32 [images, N]."""
        mean_heads = attention.mean(dim=1)
        if aggregation == "cls":
            received = mean_heads[:, 0]
        elif aggregation == "col_mean_patch":
            received = mean_heads[:, 1 if self._has_cls else 0 :].mean(dim=1)
        else:
            received = mean_heads.mean(dim=1)
        # The CLS column is never a token; without CLS, "default" drops the first patch.
        first = 1 if self._has_cls or self._drops_first else 0
        scores = received[:, first:]
        if not bool(torch.isfinite(scores).all()):
            raise ExportError(
                "the attention of the scoring layer is not finite on this image: the checkpoint is damaged, "
                "or give another --layer"
            )
        return scores

    def _select(self, scores: Tensor, choice: PruningChoice) -> Tensor:
        """Kept positions of one image, int64 [K], ascending; ties go to the lower position."""
        if choice.strategy == "row":
            side = int(len(scores) ** 0.5)  # the towers of this family are square
            best = torch.sort(scores.view(side, side).mean(dim=1), descending=True, stable=True).indices
            rows = best[: choice.keep // side].sort().values
            return (rows[:, None] * side + torch.arange(side)).flatten()
        best = torch.sort(scores, descending=True, stable=True).indices
        return best[: choice.keep].sort().values

    def _pruned_ids(self, ids: Tensor, rows: int, kept_rows: int) -> Tensor:
        """Shorten every run of `rows` placeholders to `kept_rows`."""
        out: list[int] = []
        seen = 0
        for value in ids[0].tolist():
            seen = seen + 1 if value == self._config.image_token_id else seen
            if value != self._config.image_token_id or (seen - 1) % rows < kept_rows:
                out.append(value)
        return torch.tensor([out], dtype=torch.int64)

    def _greedy(self, embeds: Tensor, new_tokens: int) -> tuple[Tensor, Tensor]:
        """(logits [1, V] of the last prompt position, tokens [1, new_tokens]) with the model's own cache."""
        from transformers import DynamicCache

        cache = DynamicCache(config=self._config.text_config)
        out = self._model(inputs_embeds=embeds, past_key_values=cache, use_cache=True, logits_to_keep=1)
        first = out.logits[:, -1]
        tokens = [first.argmax(dim=-1)]
        for _ in range(new_tokens - 1):
            out = self._model(input_ids=tokens[-1][:, None], past_key_values=cache, use_cache=True)
            tokens.append(out.logits[:, -1].argmax(dim=-1))
        return first, torch.stack(tokens, dim=1)


@contextmanager
def _eager(tower: Any) -> Iterator[None]:
    """Only eager attention returns its probabilities; sdpa gives an empty tuple without a word."""
    before = tower.config._attn_implementation
    tower.set_attn_implementation("eager")
    try:
        yield
    finally:
        tower.set_attn_implementation(before)
