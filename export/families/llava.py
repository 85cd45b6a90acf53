"""LLaVA: a CLIP or SigLIP tower, an MLP projector that works per token, any decoder-only language model.

Source of the layout: `LlavaModel.get_image_features` and `LlavaProcessor` of transformers 5.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from export.costs import VisionShape, mlp_projector_macs
from export.errors import CheckpointError
from export.families.base import EncoderInfo, ImageUnits, Subgraph
from export.families.text import TextModel
from export.image_config import (
    preprocess_from_processor,
    processor_kind,
    setting,
    size_setting,
    unsupported,
)
from runtime import contract
from runtime.layouts import ImageLayout, Unit
from runtime.layouts.single import SingleLayout
from runtime.manifest import DecoderInfo, Preprocess

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["LlavaFamily", "LlavaReference", "feature_states"]

# Tower → leading rows that are not patches (CLIP puts CLS first, SigLIP has none).
_SPECIAL_ROWS = {"clip_vision_model": 1, "siglip_vision_model": 0}
# These do resize → crop → rescale → normalise and nothing else; LLaVA's own also pads to a square first.
_PROCESSORS = ("CLIPImageProcessor", "SiglipImageProcessor", "LlavaImageProcessor")


class LlavaFamily(TextModel):
    """`LlavaForConditionalGeneration`."""

    model_type = "llava"
    architecture = "LlavaForConditionalGeneration"
    position_ids = "renumber"

    def encoder_info(self, config: Any) -> EncoderInfo:
        tower = config.vision_config
        if tower.model_type not in _SPECIAL_ROWS:
            raise CheckpointError(
                f"the vision tower is {tower.model_type!r}, and the supported towers of a {self.model_type} "
                f"checkpoint are: {', '.join(sorted(_SPECIAL_ROWS))}"
            )
        self.check_text(config.text_config)
        if not isinstance(tower.image_size, int) or not isinstance(tower.patch_size, int):
            raise CheckpointError(
                f"the vision tower has image_size {tower.image_size} and patch_size {tower.patch_size}, but "
                "the towers of this family are square: give each as one number"
            )
        states = feature_states(config.vision_feature_layer, tower.num_hidden_layers)
        return EncoderInfo(layers=max(states), special_tokens=_SPECIAL_ROWS[tower.model_type])

    def layout(self, config: Any, processor: Any) -> ImageLayout:
        images, tower = processor.image_processor, config.vision_config
        kind = processor_kind(images, _PROCESSORS)
        scale = preprocess_from_processor(images)
        resize = size_setting(images, "size")
        if set(resize) not in ({"shortest_edge"}, {"height", "width"}):
            raise unsupported(f"size is {resize}", "it must be shortest_edge alone, or height and width")
        crop = size_setting(images, "crop_size") if setting(images, "do_center_crop", False) else None
        if crop is not None and set(crop) != {"height", "width"}:
            raise unsupported(f"crop_size is {crop}", "it must have height and width")
        made, side = crop if crop is not None else resize, tower.image_size
        if made.get("height") != side or made.get("width") != side:
            raise unsupported(f"it makes images of {made}", f"the vision tower takes {side} x {side}")
        pad = None
        if kind == "LlavaImageProcessor" and setting(images, "do_pad", False):
            red, green, blue = (int(value * 255) for value in scale.mean)  # that processor's rounding
            pad = red, green, blue
        special, dropped = _rows(config)
        grid = (side // tower.patch_size, side // tower.patch_size)
        # Without a CLS row, "default" drops the first patch: what is left is no grid any more.
        lost_patches = max(dropped - special, 0)
        return SingleLayout(
            grid=None if lost_patches else grid,
            tokens=grid[0] * grid[1] - lost_patches,
            resize=resize,
            crop=crop,
            pad_to_square=pad,
            prefix_tokens=max(special - dropped, 0),
        )

    def preprocess(self, processor: Any) -> Preprocess:
        return preprocess_from_processor(processor.image_processor)

    def encoder_macs(self, config: Any, unit: Unit) -> int:
        tower, (special, dropped) = config.vision_config, _rows(config)
        states = feature_states(config.vision_feature_layer, tower.num_hidden_layers)
        shape = VisionShape(
            width=tower.hidden_size,
            mlp=tower.intermediate_size,
            layers=max(states),
            patches=(tower.image_size // tower.patch_size) ** 2,
            patch_inputs=tower.num_channels * tower.patch_size**2,
            special=special,
            prefix=max(special - dropped, 0),
        )
        inputs, width = tower.hidden_size * len(states), config.text_config.hidden_size
        return shape.encoder() + mlp_projector_macs(unit.tokens + shape.prefix, inputs, width)

    def subgraphs(self, model: Any, layout: ImageLayout, decoder: DecoderInfo) -> Iterator[Subgraph]:
        import torch

        from export.wrappers import VisionEncoder

        config, parts = model.config, model.model
        states = feature_states(config.vision_feature_layer, config.vision_config.num_hidden_layers)
        yield Subgraph(
            contract.VISION_ENCODER,
            VisionEncoder(parts.vision_tower, parts.multi_modal_projector, states, _rows(config)[1]).eval(),
            (torch.zeros(2, 3, *_side(layout)),),
            contract.vision_contracts(layout, decoder.hidden_size)[contract.VISION_ENCODER],
        )
        yield from self.text_subgraphs(model, decoder)

    def constants(self, model: Any) -> dict[str, npt.NDArray[np.float32]]:
        del model
        return {}

    def reference(self, model: Any, processor: Any) -> LlavaReference:
        del processor  # what it returned for a request says everything
        return LlavaReference(model)


class LlavaReference:
    """LLaVA as transformers runs it: one unit per image."""

    def __init__(self, model: Any) -> None:
        """Keeps the model, which must stay unchanged while the reference is used."""
        self._model = model.model
        self._has_cls = model.config.vision_config.model_type == "clip_vision_model"
        self._drops_first = model.config.vision_feature_select_strategy == "default"
        vision = model.config.vision_config
        self._patches = (vision.image_size // vision.patch_size) ** 2

    def image_units(self, inputs: Any) -> list[ImageUnits]:
        return [ImageUnits(1)] * len(inputs["pixel_values"])

    def pixel_values(self, inputs: Any) -> Tensor:
        import torch

        return inputs["pixel_values"].to(torch.float32)

    def unit_scores(self, inputs: Any, layer: int, aggregation: str) -> list[Tensor]:
        from export.oracle import attention_of

        received = attention_of(self._model.vision_tower, self.pixel_values(inputs), layer)
        if aggregation == "cls":
            scores = received[:, 0]
        elif aggregation == "col_mean_patch":
            scores = received[:, 1 if self._has_cls else 0 :].mean(dim=1)
        else:
            scores = received.mean(dim=1)
        # The CLS column is never a token; without CLS, "default" drops the first patch.
        scores = scores[:, 1 if self._has_cls or self._drops_first else 0 :]
        side = int(scores.shape[1] ** 0.5)  # the towers of this family are square
        return [row.view(side, side) if side**2 == len(row) else row for row in scores]

    def unit_valid(self, inputs: Any) -> list[Tensor]:
        import torch

        tokens = self._patches - (self._drops_first and not self._has_cls)
        side = int(tokens**0.5)
        shape = (side, side) if side**2 == tokens else (tokens,)
        return [torch.ones(shape, dtype=torch.bool) for _ in inputs["pixel_values"]]

    def features(self, inputs: Any) -> Tensor:
        import torch

        made = self._model.get_image_features(inputs["pixel_values"], return_dict=True).pooler_output
        return torch.cat(list(made)).to(torch.float32)

    def keep_mask(self, inputs: Any, kept: list[Tensor], newline: str) -> Tensor:
        import torch

        del inputs, newline  # there are none
        # Prefix rows go on unpruned and come first.
        prefix = torch.ones(1 if self._has_cls and not self._drops_first else 0, dtype=torch.bool)
        return torch.cat([torch.cat([prefix, image.flatten()]) for image in kept])

    def positions(self, inputs: Any) -> Tensor:
        import torch

        return torch.arange(inputs["input_ids"].shape[1])[None]


def feature_states(feature_layer: int | list[int], layers: int) -> tuple[int, ...]:
    """`vision_feature_layer` as indices into the `layers + 1` hidden states (0 = embeddings).

    Raises:
        CheckpointError: an index outside them, or none above 0.
    """
    chosen = [feature_layer] if isinstance(feature_layer, int) else list(feature_layer)
    for index in chosen:
        if not -layers - 1 <= index <= layers:
            raise CheckpointError(
                f"vision_feature_layer is {feature_layer}, but the tower has {layers} layers: give "
                f"-{layers + 1}..{layers}"
            )
    states = tuple(index % (layers + 1) for index in chosen)
    if not states or max(states) == 0:
        raise CheckpointError(
            f"vision_feature_layer is {feature_layer}, so no attention reaches the features and nothing can "
            f"score the tokens: give a layer in 1..{layers} or -{layers}..-1"
        )
    return states


def _side(layout: ImageLayout) -> tuple[int, int]:
    """(H, W) of what the tower takes."""
    height, width = layout.pixel_shape[-2:]
    return int(height), int(width)


def _rows(config: Any) -> tuple[int, int]:
    """(leading rows that are not patches, leading rows that are dropped)."""
    dropped = 1 if config.vision_feature_select_strategy == "default" else 0
    return _SPECIAL_ROWS[config.vision_config.model_type], dropped
