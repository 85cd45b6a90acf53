"""LLaVA-NeXT (1.6): LLaVA's tower and projector on the whole image and on its tiles, whose tokens are put
together again as one picture, without its padding, a newline vector after each line.

Sources, in transformers 5.23: `LlavaNextModel.get_image_features` and `.pack_image_features`,
`LlavaNextProcessor`, `LlavaNextImageProcessor`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from export.errors import CheckpointError
from export.families.base import EncoderInfo, ImageUnits
from export.families.llava import LlavaFamily, LlavaReference
from export.image_config import processor_kind, size_setting
from runtime.layouts.anyres import AnyresLayout

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["LlavaNextFamily", "LlavaNextReference"]

# Tower → the strategy that feeds on all its patches and nothing else: only those make tiles.
_STRATEGIES = {"clip_vision_model": "default", "siglip_vision_model": "full"}


class LlavaNextFamily(LlavaFamily):
    """`LlavaNextForConditionalGeneration`: per tile, everything is as in LLaVA."""

    model_type = "llava_next"
    architecture = "LlavaNextForConditionalGeneration"

    def encoder_info(self, config: Any) -> EncoderInfo:
        info = super().encoder_info(config)
        got, kind = config.vision_feature_select_strategy, config.vision_config.model_type
        if got != _STRATEGIES[kind]:
            raise CheckpointError(
                f"vision_feature_select_strategy is {got!r}, but only {_STRATEGIES[kind]!r} makes full tiles "
                f"of the rows of a {kind}: correct config.json"
            )
        return info

    def layout(self, config: Any, processor: Any) -> AnyresLayout:
        tower, images = config.vision_config, processor.image_processor
        special = self.encoder_info(config).special_tokens
        processor_kind(images, ("LlavaNextImageProcessor",))
        tile, pinpoints = (tower.image_size, tower.image_size), _pairs(config.image_grid_pinpoints)
        strategy = config.vision_feature_select_strategy
        for name, got, wanted in (
            ("patch_size", processor.patch_size, tower.patch_size),
            ("num_additional_image_tokens", processor.num_additional_image_tokens, special),
            ("vision_feature_select_strategy", processor.vision_feature_select_strategy, strategy),
            ("size", _tile_size(images, "size"), tile),
            ("crop_size", _tile_size(images, "crop_size"), tile),
            ("image_grid_pinpoints", _pairs(images.image_grid_pinpoints), pinpoints),
        ):
            if got != wanted:
                raise CheckpointError(
                    f"the processor has {name} {got}, but the model needs {wanted}: correct "
                    "processor_config.json or preprocessor_config.json"
                )
        for canvas in pinpoints:
            if canvas[0] % tile[0] or canvas[1] % tile[1]:
                raise CheckpointError(
                    f"image_grid_pinpoints has {list(canvas)}, but both must be multiples of the tower's "
                    f"image_size {tile[0]}: correct config.json"
                )
        side = tile[0] // tower.patch_size
        return AnyresLayout(tile=tile, grid=(side, side), pinpoints=pinpoints)

    def constants(self, model: Any) -> dict[str, npt.NDArray[np.float32]]:
        return {"image_newline": model.model.image_newline.detach().float().numpy()}

    def reference(self, model: Any, processor: Any) -> LlavaNextReference:
        del processor  # what it returned for a request says everything
        return LlavaNextReference(model)


class LlavaNextReference(LlavaReference):
    """LLaVA-NeXT as transformers runs it: stitching, padding and newlines are its `pack_image_features`."""

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        self._config = model.config
        self._side = model.config.vision_config.image_size // model.config.vision_config.patch_size

    def image_units(self, inputs: Any) -> list[ImageUnits]:
        from transformers.models.llava_next.modeling_llava_next import (
            get_anyres_image_grid_shape,
            image_size_to_num_patches,
        )

        pinpoints, tile = self._config.image_grid_pinpoints, self._config.vision_config.image_size
        return [
            ImageUnits(
                image_size_to_num_patches(size, pinpoints, tile),
                overview=0,
                mosaic=get_anyres_image_grid_shape(size, pinpoints, tile),
            )
            for size in inputs["image_sizes"]
        ]

    def pixel_values(self, inputs: Any) -> Tensor:
        import torch

        # The processor pads all images of a prompt to the same number of tiles.
        images = zip(inputs["pixel_values"], self.image_units(inputs), strict=True)
        return torch.cat([tiles[: units.count] for tiles, units in images]).to(torch.float32)

    def unit_valid(self, inputs: Any) -> list[Tensor]:
        import torch

        counts, tokens = [units.count for units in self.image_units(inputs)], self._side**2
        rows = [torch.arange(float(count * tokens)).view(count, tokens, 1) for count in counts]
        valid: list[Tensor] = []
        for count, packed in zip(counts, self._packed(rows, inputs, newline=-1.0), strict=True):
            seen = torch.zeros(count * tokens, dtype=torch.bool)
            seen[packed[packed >= 0].long()] = True
            valid += seen.view(count, self._side, self._side).unbind()
        return valid

    def features(self, inputs: Any) -> Tensor:
        import torch

        made = self._model.get_image_features(
            inputs["pixel_values"], inputs["image_sizes"], return_dict=True
        ).pooler_output
        return torch.cat(list(made)).to(torch.float32)

    def keep_mask(self, inputs: Any, kept: list[Tensor], newline: str) -> Tensor:
        import torch

        marked = torch.stack(kept).float().view(len(kept), -1, 1)
        images = marked.split([units.count for units in self.image_units(inputs)])
        return torch.cat(
            [self._stays(packed, newline) for packed in self._packed(images, inputs, newline=2.0)]
        )

    def _packed(self, rows: Any, inputs: Any, newline: float) -> list[Tensor]:
        """Numbers float32 [units, N, 1] per image, taken where features go: one per placeholder."""
        import torch

        packed, _ = self._model.pack_image_features(
            rows,
            inputs["image_sizes"],
            vision_feature_select_strategy=self._config.vision_feature_select_strategy,
            image_newline=torch.tensor([newline]),
        )
        return [image[:, 0] for image in packed]

    def _stays(self, packed: Tensor, newline: str) -> Tensor:
        """bool per placeholder of an image: which stay, of kept tokens (1), others (0) and newlines (2)."""
        import torch

        overview, picture = packed[: self._side**2] == 1, packed[self._side**2 :]
        # Each line ends with its newline, so their number is that of the lines; of a sliver none may be left.
        lines = picture.view(max(int((picture == 2).sum()), 1), -1)
        tokens, ends = lines == 1, lines == 2
        if bool((packed != 0).all()):  # every token is kept: the image as it is
            pass
        elif newline == "drop":
            ends = ends & False
        elif newline == "keep_nonempty":
            ends = ends & tokens.any(dim=1, keepdim=True)
        return torch.cat([overview, (tokens | ends).flatten()])


def _tile_size(images: Any, name: str) -> tuple[int | None, int | None]:
    """(H, W) of a setting whose short edge alone means a square; that of `size` where `crop_size` is null."""
    size = size_setting(images, name) or size_setting(images, "size")
    edge = size.get("shortest_edge")
    return size.get("height", edge), size.get("width", edge)


def _pairs(pinpoints: Any) -> tuple[tuple[int, int], ...]:
    return tuple((int(height), int(width)) for height, width in pinpoints or ())
