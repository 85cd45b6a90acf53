"""InternVL: an InternViT tower on square tiles, whose CLS row is dropped, pixel shuffle and a two-layer
projector; all tiles of a picture are one run of the prompt.

Sources, in transformers 5.23: `InternVLModel.get_image_features`, `InternVLModel.pixel_shuffle`,
`InternVLProcessor`, and for the pictures `GotOcr2ImageProcessorPil`. Pixel shuffle swaps rows and columns
twice, so that tokens come in reading order.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from export.costs import VisionShape, mlp_projector_macs
from export.errors import CheckpointError
from export.families.base import EncoderInfo, ImageUnits, Subgraph
from export.families.llava import feature_states
from export.families.text import TextModel
from export.image_config import preprocess_from_processor, processor_kind, size_setting, unsupported
from runtime import contract
from runtime.layouts import IMAGE_SLOT, ImageLayout, Unit
from runtime.layouts.aspect import AspectLayout
from runtime.manifest import DecoderInfo, Preprocess

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["InternVLFamily", "InternVLReference"]

_TOWER = "internvl_vision"
_PROCESSORS = ("GotOcr2ImageProcessor",)


class InternVLFamily(TextModel):
    """`InternVLForConditionalGeneration`."""

    model_type = "internvl"
    architecture = "InternVLForConditionalGeneration"
    position_ids = "renumber"

    def encoder_info(self, config: Any) -> EncoderInfo:
        tower = config.vision_config
        if tower.model_type != _TOWER:
            raise CheckpointError(
                f"the vision tower is {tower.model_type!r}, and the supported tower of an {self.model_type} "
                f"checkpoint is: {_TOWER}"
            )
        self.check_text(config.text_config)
        if config.vision_feature_select_strategy != "default":
            raise CheckpointError(
                f"vision_feature_select_strategy is {config.vision_feature_select_strategy!r}, but only "
                "'default' leaves whole groups of patches for pixel shuffle: correct config.json"
            )
        layers = _layers(config)
        _token_side(config)
        return EncoderInfo(layers=layers, special_tokens=1, merge=_merge(config))

    def layout(self, config: Any, processor: Any) -> AspectLayout:
        images, side = processor.image_processor, _token_side(config)
        processor_kind(images, _PROCESSORS)
        tile, made = _square(config, "image_size"), size_setting(images, "size")
        if made != {"height": tile, "width": tile}:
            raise unsupported(f"it makes images of {made}", f"the vision tower takes {tile} x {tile}")
        if processor.image_seq_length != side**2:
            raise CheckpointError(
                f"the processor has image_seq_length {processor.image_seq_length}, but tiles of {tile} x "
                f"{tile} pixels make {side**2} tokens: correct processor_config.json"
            )
        fewest, most = _tiles(processor)
        if not 1 <= fewest <= most:
            raise unsupported(f"min_patches is {fewest}, max_patches {most}", "1 <= min <= max must hold")
        return AspectLayout(
            tile=tile,
            grid=(side, side),
            tiles=(fewest, most),
            text=f"{processor.start_image_token}{IMAGE_SLOT}{processor.end_image_token}",
        )

    def preprocess(self, processor: Any) -> Preprocess:
        return preprocess_from_processor(processor.image_processor)

    def encoder_macs(self, config: Any, unit: Unit) -> int:
        tower, group = config.vision_config, _merge(config) ** 2
        shape = VisionShape(
            width=tower.hidden_size,
            mlp=tower.intermediate_size,
            layers=_layers(config),
            patches=unit.tokens * group,
            patch_inputs=tower.num_channels * _square(config, "patch_size") ** 2,
            special=1,
            prefix=0,
        )
        inputs, width = tower.hidden_size * group, config.text_config.hidden_size
        return shape.encoder() + mlp_projector_macs(unit.tokens, inputs, width)

    def subgraphs(self, model: Any, layout: ImageLayout, decoder: DecoderInfo) -> Iterator[Subgraph]:
        import torch

        shape: Any = layout.pixel_shape[1:]
        yield Subgraph(
            contract.VISION_ENCODER,
            _tile_encoder(model),
            (torch.zeros(2, *shape),),
            contract.vision_contracts(layout, decoder.hidden_size)[contract.VISION_ENCODER],
        )
        yield from self.text_subgraphs(model, decoder)

    def constants(self, model: Any) -> dict[str, npt.NDArray[np.float32]]:
        del model
        return {}

    def reference(self, model: Any, processor: Any) -> InternVLReference:
        del processor  # what it returned for a request says everything
        return InternVLReference(model)


class InternVLReference:
    """InternVL as transformers runs it: one unit per tile, then one for the whole picture."""

    def __init__(self, model: Any) -> None:
        """Keeps the model, which must stay unchanged while the reference is used."""
        self._model = model.model

    def image_units(self, inputs: Any) -> list[ImageUnits]:
        """Counted from the runs of image tokens; the processor does not say how the tiles lie, so that their
        arrangement is the one that looks like the view of the whole."""
        token = self._model.config.image_token_id
        ids = inputs["input_ids"][0].tolist()
        runs = [len(list(run)) for found, run in groupby(ids, key=lambda other: other == token) if found]
        per_unit = ids.count(token) // len(inputs["pixel_values"])
        images: list[ImageUnits] = []
        views = inputs["pixel_values"].split([run // per_unit for run in runs])
        for own in views:
            count = len(own)
            images.append(ImageUnits(count, count - 1, _arrangement(own)) if count > 1 else ImageUnits(1))
        return images

    def pixel_values(self, inputs: Any) -> Tensor:
        import torch

        return inputs["pixel_values"].to(torch.float32)

    def unit_scores(self, inputs: Any, layer: int, aggregation: str) -> list[Tensor]:
        from export.oracle import attention_of

        received = attention_of(self._model.vision_tower, self.pixel_values(inputs), layer)
        if aggregation == "cls":
            scores = received[:, 0]
        else:
            scores = received[:, 1 if aggregation == "col_mean_patch" else 0 :].mean(dim=1)
        patches = self._patches_of_tokens(scores.shape[1] - 1)
        side = int(len(patches) ** 0.5)
        return list(scores[:, 1:][:, patches].mean(dim=-1).view(-1, side, side))  # the CLS column is no patch

    def unit_valid(self, inputs: Any) -> list[Tensor]:
        import torch

        side = _token_side(self._model.config)
        return list(torch.ones(len(inputs["pixel_values"]), side, side, dtype=torch.bool))

    def features(self, inputs: Any) -> Tensor:
        import torch

        made = self._model.get_image_features(inputs["pixel_values"], return_dict=True).pooler_output
        return made.flatten(0, 1).to(torch.float32)

    def keep_mask(self, inputs: Any, kept: list[Tensor], newline: str) -> Tensor:
        import torch

        del inputs, newline  # there are none
        return torch.cat([unit.flatten() for unit in kept])

    def positions(self, inputs: Any) -> Tensor:
        import torch

        return torch.arange(inputs["input_ids"].shape[1])[None]

    def _patches_of_tokens(self, count: int) -> Tensor:
        """int64 [tokens, s * s]: the patches that each token is made of, as the model's own pixel shuffle
        moves them: patch i goes in as a row whose channel i alone is 1."""
        import torch

        side = int(count**0.5)
        marked = torch.eye(count).view(1, side, side, count)
        shuffled = self._model.pixel_shuffle(marked, self._model.config.downsample_ratio)
        holds = shuffled.flatten(0, 2).unflatten(-1, (-1, count)).sum(dim=1)
        return holds.nonzero()[:, 1].view(len(holds), -1)


def _arrangement(views: Tensor) -> tuple[int, int]:
    """(rows, columns) of tiles float32 [n + 1, 3, S, S], of which the last is the view of the whole; one row
    where all look the same, as those of one colour do."""
    from torch.nn.functional import adaptive_avg_pool2d

    *_, side = views.shape
    tiles, whole = views[:-1], views[-1]
    shapes = [(rows, len(tiles) // rows) for rows in range(1, len(tiles) + 1) if len(tiles) % rows == 0]

    def distance(shape: tuple[int, int]) -> float:
        rows, columns = shape
        picture = tiles.unflatten(0, shape).permute(2, 0, 3, 1, 4).reshape(3, rows * side, columns * side)
        return float((adaptive_avg_pool2d(picture, side) - whole).square().mean())

    return min(shapes, key=distance)


def _square(config: Any, name: str) -> int:
    """A size of the tower in pixels, the same down and across.

    Raises:
        CheckpointError: it is not.
    """
    value = getattr(config.vision_config, name)
    sizes = set(value) if isinstance(value, list | tuple) else {value}
    if len(sizes) != 1:
        raise CheckpointError(
            f"the vision tower has {name} {list(value)}, but the towers of this family are square: give the "
            "same number twice"
        )
    return int(sizes.pop())


def _layers(config: Any) -> int:
    """Layers of the tower that reach the features.

    Raises:
        CheckpointError: several layers, one that is not there, or none with attention.
    """
    layer = config.vision_feature_layer
    if not isinstance(layer, int):
        raise CheckpointError(
            f"vision_feature_layer is {layer}, but this family takes the features of one layer: give a number"
        )
    return max(feature_states(layer, config.vision_config.num_hidden_layers))


def _merge(config: Any) -> int:
    """s: pixel shuffle makes one token of s x s patches.

    Raises:
        CheckpointError: a ratio that does not, exactly.
    """
    ratio = config.downsample_ratio
    side = round(1 / ratio) if ratio else 0
    if side < 1 or side & (side - 1) or side * ratio != 1:
        raise CheckpointError(
            f"downsample_ratio is {ratio}, but pixel shuffle needs one of 1, 0.5, 0.25 …: correct config.json"
        )
    return side


def _token_side(config: Any) -> int:
    """Tokens along an edge of a tile.

    Raises:
        CheckpointError: a tile that does not make whole groups of patches.
    """
    tile, patch, merge = _square(config, "image_size"), _square(config, "patch_size"), _merge(config)
    side = tile // patch if patch > 0 else 0
    if side < 1 or side % merge:
        raise CheckpointError(
            f"the vision tower has image_size {tile}, which makes {side} patches of {patch} pixels along an "
            f"edge, but downsample_ratio {config.downsample_ratio} needs a multiple of {merge}: correct "
            "config.json"
        )
    return side // merge


def _tiles(processor: Any) -> tuple[int, int]:
    """(fewest, most) tiles of a picture; what the processor hands on has priority over the image
    processor's own setting."""
    images = processor.image_processor
    given = {"crop_to_patches": images.crop_to_patches} | dict(
        getattr(processor, "images_kwargs", None) or {}
    )
    if not given["crop_to_patches"]:
        return 1, 1
    fewest, most = (given.get(name, getattr(images, name)) for name in ("min_patches", "max_patches"))
    if not isinstance(fewest, int) or not isinstance(most, int):
        raise unsupported(f"min_patches is {fewest}, max_patches {most}", "both must be numbers")
    return (1, 1) if most == 1 else (fewest, most)


def _tile_encoder(model: Any) -> nn.Module:
    """Tower, pixel shuffle and projector of `model`: pixel_values float32 [units, 3, S, S] → image_features
    float32 [units, N, D]."""
    from torch import nn

    parts, config = model.model, model.config

    class TileEncoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.vision_tower = parts.vision_tower
            self.multi_modal_projector = parts.multi_modal_projector

        def forward(self, pixel_values: Tensor) -> Tensor:
            layer = config.vision_feature_layer
            out = self.vision_tower(pixel_values, output_hidden_states=layer != -1, return_dict=True)
            # Only -1 goes through the last norm, where there is one.
            hidden = out.last_hidden_state if layer == -1 else out.hidden_states[layer]
            side = _square(config, "image_size") // _square(config, "patch_size")
            patches = hidden[:, 1:].unflatten(1, (side, side))
            tokens = parts.pixel_shuffle(patches, config.downsample_ratio).flatten(1, 2)
            features: Tensor = self.multi_modal_projector(tokens)
            return features

    return TileEncoder().eval()
