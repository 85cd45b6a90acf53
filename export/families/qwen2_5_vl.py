"""Qwen2.5-VL: a tower with window attention and a 2 x 2 merger, images in their own size, M-RoPE positions.

Sources, in transformers 5.23: `Qwen2_5_VisionTransformerPretrainedModel`, `Qwen2_5_VLModel.get_rope_index`,
`Qwen2VLImageProcessor`. Blocks that look at windows cannot score a token; by default the last block that
looks at the whole image does.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from export.errors import CheckpointError
from export.families.base import EncoderInfo, ImageUnits, Subgraph
from export.families.text import TextModel
from export.image_config import preprocess_from_processor, processor_kind, size_setting, unsupported
from runtime import contract
from runtime.layouts import ImageLayout, Unit
from runtime.layouts.native import NativeLayout, windows_of
from runtime.manifest import DecoderInfo, Preprocess

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Qwen25VLFamily", "Qwen25VLReference"]

_TOWER = "qwen2_5_vl_vision"
_ANY_SIZE = {"min_pixels": 1, "max_pixels": 1 << 26}


class Qwen25VLFamily(TextModel):
    """`Qwen2_5_VLForConditionalGeneration`."""

    model_type = "qwen2_5_vl"
    architecture = "Qwen2_5_VLForConditionalGeneration"
    position_ids = "original"
    position_axes = 3

    def encoder_info(self, config: Any) -> EncoderInfo:
        tower, text = config.vision_config, config.text_config
        if tower.model_type != _TOWER:
            raise CheckpointError(
                f"the vision tower is {tower.model_type!r}, and the supported tower of a {self.model_type} "
                f"checkpoint is {_TOWER}"
            )
        self.check_text(text)
        if getattr(text, "use_sliding_window", False):
            raise CheckpointError(
                "the language model has use_sliding_window set, which transformers itself leaves out "
                "without flash attention: set it to false in config.json"
            )
        for name in ("patch_size", "temporal_patch_size"):
            if not isinstance(getattr(tower, name), int):
                raise CheckpointError(
                    f"the vision tower has {name} {getattr(tower, name)}, but patches are cubes of the same "
                    "side: give it as one number"
                )
        if _window_side(tower) < 1:
            raise CheckpointError(
                f"the vision tower has window_size {tower.window_size}, less than a token of "
                f"{tower.spatial_merge_size} x {tower.spatial_merge_size} patches of {tower.patch_size} "
                "pixels: correct config.json"
            )
        full = tuple(sorted({int(layer) for layer in tower.fullatt_block_indexes}))
        if not full or full[0] < 0 or full[-1] >= tower.depth:
            raise CheckpointError(
                f"the vision tower has fullatt_block_indexes {list(full)}, but at least one of its "
                f"{tower.depth} blocks must look at the whole image to score tokens: give numbers in "
                f"0..{tower.depth - 1}"
            )
        return EncoderInfo(
            layers=tower.depth,
            special_tokens=0,
            layer=full[-1],
            score_layers=full,
            merge=tower.spatial_merge_size,
            merge_order="packed",
        )

    def layout(self, config: Any, processor: Any) -> NativeLayout:
        images, tower = processor.image_processor, config.vision_config
        processor_kind(images, ("Qwen2VLImageProcessor",))
        for name, wanted in (
            ("patch_size", tower.patch_size),
            ("merge_size", tower.spatial_merge_size),
            ("temporal_patch_size", tower.temporal_patch_size),
        ):
            if getattr(images, name) != wanted:
                raise CheckpointError(
                    f"the image processor has {name} {getattr(images, name)}, but the model needs {wanted}: "
                    "correct preprocessor_config.json"
                )
        size = size_setting(images, "size")
        least, most = size.get("shortest_edge", 0), size.get("longest_edge", 0)
        if not 1 <= least <= most:
            raise unsupported(
                f"size is {size}", "it must have shortest_edge and longest_edge, numbers of pixels"
            )
        return NativeLayout(
            patch_size=tower.patch_size,
            merge_size=tower.spatial_merge_size,
            temporal_patch_size=tower.temporal_patch_size,
            min_pixels=least,
            max_pixels=most,
            # Windows of blocks that do not exist would be inputs that nothing reads.
            window=None if len(set(tower.fullatt_block_indexes)) == tower.depth else _window_side(tower),
        )

    def preprocess(self, processor: Any) -> Preprocess:
        return preprocess_from_processor(processor.image_processor)

    def encoder_macs(self, config: Any, unit: Unit) -> int:
        """As the graph computes it: empty slots of windows at the edge count."""
        assert unit.grid is not None  # `NativeLayout` gives every unit one
        tower, group = config.vision_config, config.vision_config.spatial_merge_size**2
        patches, width, full = unit.tokens * group, tower.hidden_size, len(set(tower.fullatt_block_indexes))
        windows, slots = windows_of(unit.grid, _window_side(tower))[0].shape
        inputs = tower.in_channels * tower.temporal_patch_size * tower.patch_size**2
        attention = full * patches**2 + (tower.depth - full) * windows * (slots * group) ** 2
        linear = patches * (4 * width**2 + 3 * width * tower.intermediate_size)
        merger = unit.tokens * (group * width) * (group * width + tower.out_hidden_size)
        return patches * inputs * width + tower.depth * linear + 2 * attention * width + merger

    def subgraphs(self, model: Any, layout: ImageLayout, decoder: DecoderInfo) -> Iterator[Subgraph]:
        import torch

        from export.native_encoder import NativeVisionEncoder

        assert isinstance(layout, NativeLayout)
        # Some windows are not full; and there are fewer than tokens, or torch would take both for one number.
        side, token = layout.window or 2, layout.patch_size * layout.merge_size
        example = replace(layout, **_ANY_SIZE).plan((side + 1) * token, (2 * side + 1) * token)
        pixels = torch.zeros(1, example.placeholders, *(int(size) for size in layout.pixel_shape[2:]))
        yield Subgraph(
            contract.VISION_ENCODER,
            NativeVisionEncoder(model.model.visual).eval(),
            (pixels, *(torch.from_numpy(value) for value in example.inputs.values())),
            contract.vision_contracts(layout, decoder.hidden_size)[contract.VISION_ENCODER],
        )
        yield from self.text_subgraphs(model, decoder)

    def constants(self, model: Any) -> dict[str, npt.NDArray[np.float32]]:
        del model
        return {}

    def reference(self, model: Any, processor: Any) -> Qwen25VLReference:
        del processor  # what it returned for a request says everything
        return Qwen25VLReference(model)


class Qwen25VLReference:
    """Qwen2.5-VL as transformers runs it: all images of a prompt in one call, one unit each."""

    def __init__(self, model: Any) -> None:
        """Keeps the model, which must stay unchanged while the reference is used."""
        self._model = model.model
        self._tower = model.model.visual

    def image_units(self, inputs: Any) -> list[ImageUnits]:
        return [ImageUnits(1)] * len(inputs["image_grid_thw"])

    def pixel_values(self, inputs: Any) -> Tensor:
        import torch

        return inputs["pixel_values"].to(torch.float32)[None]

    def unit_scores(self, inputs: Any, layer: int, aggregation: str) -> list[Tensor]:
        import torch
        from transformers.vision_utils import get_vision_window_index

        del aggregation  # there is no CLS: all of them are the mean over patches
        tower, grids = self._tower, inputs["image_grid_thw"]
        group = tower.spatial_merge_unit
        with _inputs_of(tower.blocks[layer].attn) as seen:
            tower(inputs["pixel_values"].to(torch.float32), grid_thw=grids)
        received = _received(tower.blocks[layer].attn, *seen[0])
        # As the merger groups its rows; then into the order in which the tower returns them.
        merged = received.view(-1, group).mean(dim=1)
        order, _ = get_vision_window_index(
            grids, tower.spatial_merge_size, tower.window_size, tower.patch_size
        )
        images = merged[torch.argsort(order)].split(self._tokens(inputs))
        return [scores.view(*grid) for scores, grid in zip(images, self._grids(inputs), strict=True)]

    def unit_valid(self, inputs: Any) -> list[Tensor]:
        import torch

        return [torch.ones(*grid, dtype=torch.bool) for grid in self._grids(inputs)]

    def features(self, inputs: Any) -> Tensor:
        import torch

        made = self._model.get_image_features(
            inputs["pixel_values"], inputs["image_grid_thw"], return_dict=True
        ).pooler_output
        return torch.cat(list(made)).to(torch.float32)

    def keep_mask(self, inputs: Any, kept: list[Tensor], newline: str) -> Tensor:
        import torch

        del inputs, newline  # there are none
        return torch.cat([image.flatten() for image in kept])

    def positions(self, inputs: Any) -> Tensor:
        found, _ = self._model.get_rope_index(
            inputs["input_ids"],
            mm_token_type_ids=inputs["mm_token_type_ids"],
            image_grid_thw=inputs["image_grid_thw"],
        )
        positions: Tensor = found[:, 0]
        return positions

    def _grids(self, inputs: Any) -> list[tuple[int, int]]:
        merge = self._tower.spatial_merge_size
        return [(rows // merge, columns // merge) for _, rows, columns in inputs["image_grid_thw"].tolist()]

    def _tokens(self, inputs: Any) -> list[int]:
        return [rows * columns for rows, columns in self._grids(inputs)]


@contextmanager
def _inputs_of(attention: Any) -> Iterator[list[tuple[Tensor, dict[str, Any]]]]:
    """What a module of the tower is called with, (rows, further arguments) per call."""
    seen: list[tuple[Tensor, dict[str, Any]]] = []
    hook = attention.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append((args[0], kwargs)), with_kwargs=True
    )
    try:
        yield seen
    finally:
        hook.remove()


def _received(attention: Any, rows: Tensor, arguments: dict[str, Any]) -> Tensor:
    """float32 [patches]: attention that a patch receives, mean over heads and over the queries of its image.

    transformers keeps no probabilities of an attention that it splits by image; this is
    `Qwen2_5_VLVisionAttention` up to them, one head at a time, as those of all heads may not fit in memory.
    """
    import torch
    from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import apply_rotary_pos_emb_vision

    heads, ends = attention.num_heads, arguments["cu_seqlens"]
    query, key, _ = attention.qkv(rows).view(len(rows), 3, heads, -1).unbind(1)
    query, key = apply_rotary_pos_emb_vision(query, key, *arguments["position_embeddings"])
    images = []
    for start, end in zip(ends[:-1].tolist(), ends[1:].tolist(), strict=True):
        means = [
            torch.softmax(query[start:end, head] @ key[start:end, head].T * attention.scaling, dim=-1).mean(0)
            for head in range(heads)
        ]
        images.append(torch.stack(means).mean(dim=0))
    return torch.cat(images)


def _window_side(tower: Any) -> int:
    """Tokens along a side of an attention window."""
    return int(tower.window_size) // int(tower.spatial_merge_size) // int(tower.patch_size)
