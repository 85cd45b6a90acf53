"""LLaVA-NeXT (1.6): the tower and projector of LLaVA on the whole image and on its tiles, whose tokens are
put together again as one picture, without its padding, a newline vector after each line.

Sources, in transformers 5.23: `LlavaNextModel.get_image_features` and `.pack_image_features`,
`LlavaNextProcessor`, `LlavaNextImageProcessor`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from export.costs import VisionShape, mlp_projector_macs
from export.errors import CheckpointError, ExportError
from export.families.base import EncoderInfo, Subgraph
from export.families.llava import feature_states
from export.families.text import TextModel
from runtime import contract
from runtime.layouts import ImageLayout, Unit
from runtime.layouts.anyres import AnyresLayout
from runtime.manifest import DecoderInfo, Preprocess

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["LlavaNextFamily", "LlavaNextReference"]

# Tower → (leading rows that are not patches, the only strategy whose features make full tiles).
_TOWERS = {"clip_vision_model": (1, "default"), "siglip_vision_model": (0, "full")}


class LlavaNextFamily(TextModel):
    """`LlavaNextForConditionalGeneration`."""

    model_type = "llava_next"
    architecture = "LlavaNextForConditionalGeneration"
    position_ids = "renumber"

    def encoder_info(self, config: Any) -> EncoderInfo:
        tower = config.vision_config
        if tower.model_type not in _TOWERS:
            raise CheckpointError(
                f"the vision tower is {tower.model_type!r}, and the supported towers of a llava_next "
                f"checkpoint are: {', '.join(sorted(_TOWERS))}"
            )
        special, strategy = _TOWERS[tower.model_type]
        if config.vision_feature_select_strategy != strategy:
            raise CheckpointError(
                f"vision_feature_select_strategy is {config.vision_feature_select_strategy!r}, but only "
                f"{strategy!r} makes full tiles of the rows of a {tower.model_type}: correct config.json"
            )
        if not isinstance(tower.image_size, int) or not isinstance(tower.patch_size, int):
            raise CheckpointError(
                f"the vision tower has image_size {tower.image_size} and patch_size {tower.patch_size}, but "
                "the towers of this family are square: give each as one number"
            )
        self.check_text(config.text_config)
        return EncoderInfo(
            layers=max(feature_states(config.vision_feature_layer, tower.num_hidden_layers)),
            special_tokens=special,
        )

    def layout(self, config: Any, processor: Any) -> AnyresLayout:
        tower, images = config.vision_config, processor.image_processor
        special = self.encoder_info(config).special_tokens
        for name, got, wanted in (
            ("patch_size", processor.patch_size, tower.patch_size),
            ("num_additional_image_tokens", processor.num_additional_image_tokens, special),
            (
                "vision_feature_select_strategy",
                processor.vision_feature_select_strategy,
                config.vision_feature_select_strategy,
            ),
            ("size", _view_size(images, "size"), (tower.image_size, tower.image_size)),
            ("crop_size", _view_size(images, "crop_size"), (tower.image_size, tower.image_size)),
            (
                "image_grid_pinpoints",
                _pairs(images.image_grid_pinpoints),
                _pairs(config.image_grid_pinpoints),
            ),
        ):
            if got != wanted:
                raise CheckpointError(
                    f"the processor has {name} {got}, but the model needs {wanted}: correct "
                    "processor_config.json"
                )
        pinpoints = _pairs(config.image_grid_pinpoints)
        for height, width in pinpoints:
            if height % tower.image_size or width % tower.image_size:
                raise CheckpointError(
                    f"image_grid_pinpoints has {[height, width]}, but both must be multiples of image_size "
                    f"{tower.image_size}: correct config.json"
                )
        side = tower.image_size // tower.patch_size
        return AnyresLayout(tile=(tower.image_size, tower.image_size), grid=(side, side), pinpoints=pinpoints)

    def preprocess(self, processor: Any) -> Preprocess:
        raise NotImplementedError

    def encoder_macs(self, config: Any, unit: Unit) -> int:
        tower, special = config.vision_config, _TOWERS[config.vision_config.model_type][0]
        states = feature_states(config.vision_feature_layer, tower.num_hidden_layers)
        shape = VisionShape(
            width=tower.hidden_size,
            mlp=tower.intermediate_size,
            layers=max(states),
            patches=unit.tokens,
            patch_inputs=3 * tower.patch_size**2,
            special=special,
            prefix=0,
        )
        inputs = len(states) * tower.hidden_size
        return shape.encoder() + mlp_projector_macs(unit.tokens, inputs, config.text_config.hidden_size)

    def subgraphs(self, model: Any, layout: ImageLayout, decoder: DecoderInfo) -> Iterator[Subgraph]:
        import torch

        from export.wrappers import VisionEncoder

        config = model.config
        states = feature_states(config.vision_feature_layer, config.vision_config.num_hidden_layers)
        dropped = _TOWERS[config.vision_config.model_type][0]
        tower, projector = model.model.vision_tower, model.model.multi_modal_projector
        yield Subgraph(
            contract.VISION_ENCODER,
            VisionEncoder(tower, projector, states, dropped).eval(),
            (torch.zeros(2, *layout.pixel_shape[1:]),),
            contract.vision_contracts(layout, decoder.hidden_size)[contract.VISION_ENCODER],
        )
        yield from self.text_subgraphs(model, decoder)

    def constants(self, model: Any) -> dict[str, npt.NDArray[np.float32]]:
        return {"image_newline": model.model.image_newline.detach().float().numpy()}

    def reference(self, model: Any, processor: Any) -> LlavaNextReference:
        del processor  # what it returned for a request says everything
        return LlavaNextReference(model)


class LlavaNextReference:
    """LLaVA-NeXT as transformers runs it; padding, stitching and newlines are `pack_image_features`
    itself."""

    def __init__(self, model: Any) -> None:
        """Keeps the model, which must stay unchanged while the reference is used."""
        self._model = model.model
        self._config = model.config
        self._special = _TOWERS[model.config.vision_config.model_type][0]

    def pixel_values(self, inputs: Any) -> Tensor:
        import torch

        # The processor pads all images to the same number of tiles.
        counts = self._unit_counts(inputs)
        pixels = [tiles[:count] for tiles, count in zip(inputs["pixel_values"], counts, strict=True)]
        return torch.cat(pixels).to(torch.float32)

    def unit_scores(self, inputs: Any, layer: int, aggregation: str) -> list[Tensor]:
        import torch

        from export.oracle import eager

        tower = self._model.vision_tower
        with torch.no_grad(), eager(tower):
            attention = tower(self.pixel_values(inputs), output_attentions=True, return_dict=True).attentions
        received = attention[layer].to(torch.float32).mean(dim=1)  # [units, queries, keys], heads averaged
        if aggregation == "cls":
            scores = received[:, 0]
        elif aggregation == "col_mean_patch":
            scores = received[:, self._special :].mean(dim=1)
        else:
            scores = received.mean(dim=1)
        if not bool(torch.isfinite(scores).all()):
            raise ExportError(
                "the attention of the scoring layer is not finite on this image: the checkpoint is damaged, "
                "or give another --layer"
            )
        return [row.view(self._side, self._side) for row in scores[:, self._special :]]

    def unit_valid(self, inputs: Any) -> list[Tensor]:
        import torch

        counts, tokens = self._unit_counts(inputs), self._side**2
        numbers = [
            torch.arange(count * tokens, dtype=torch.float64).view(count, tokens, 1) for count in counts
        ]
        valid = []
        for rows, packed in zip(numbers, self._packed(numbers, inputs, newline=-1), strict=True):
            seen = torch.zeros(rows.numel(), dtype=torch.bool)
            seen[packed[packed >= 0].long()] = True
            valid += list(seen.view(len(rows), self._side, self._side))
        return valid

    def features(self, inputs: Any) -> Tensor:
        import torch

        with torch.no_grad():
            made = self._model.get_image_features(
                inputs["pixel_values"], inputs["image_sizes"], return_dict=True
            ).pooler_output
        return torch.cat(list(made)).to(torch.float32)

    def keep_mask(self, inputs: Any, kept: list[Tensor], newline: str) -> Tensor:
        import torch

        marked = torch.stack(kept).to(torch.float64).view(len(kept), -1, 1)
        split = list(torch.split(marked, self._unit_counts(inputs)))
        return torch.cat([self._kept(packed, newline) for packed in self._packed(split, inputs, newline=2)])

    def positions(self, inputs: Any) -> Tensor:
        import torch

        return torch.arange(inputs["input_ids"].shape[1])[None]

    @property
    def _side(self) -> int:
        return self._config.vision_config.image_size // self._config.vision_config.patch_size

    def _unit_counts(self, inputs: Any) -> list[int]:
        """Base and tiles of each image."""
        from transformers.models.llava_next.modeling_llava_next import image_size_to_num_patches

        pinpoints, tile = self._config.image_grid_pinpoints, self._config.vision_config.image_size
        return [image_size_to_num_patches(size, pinpoints, tile) for size in inputs["image_sizes"]]

    def _packed(self, features: list[Tensor], inputs: Any, newline: int) -> list[Tensor]:
        """What becomes of one number per token, [units, N, 1] per image: the vector at the image's
        placeholders."""
        import torch

        packed, _ = self._model.pack_image_features(
            features,
            inputs["image_sizes"],
            vision_feature_select_strategy=self._config.vision_feature_select_strategy,
            image_newline=torch.tensor([float(newline)], dtype=torch.float64),
        )
        return [image[:, 0] for image in packed]

    def _kept(self, packed: Tensor, newline: str) -> Tensor:
        """bool per placeholder of one image, from 1 kept, 0 not, 2 a newline."""
        import torch

        overview, lines = packed[: self._side**2] == 1, packed[self._side**2 :]
        # Every line ends with its newline; a picture of which no line is left has none.
        lines = lines.view(max(int((lines == 2).sum()), 1), -1)
        tokens, ends = lines == 1, lines == 2
        if newline == "keep_all":
            stays = tokens | ends
        elif newline == "keep_nonempty":
            stays = tokens | (ends & tokens.any(dim=1, keepdim=True))
        else:
            stays = tokens
        return torch.cat([overview, stays.flatten()])


def _view_size(images: Any, name: str) -> tuple[Any, Any]:
    """(H, W) of a size setting, whose short edge alone means a square; `size` where `crop_size` is null."""
    size = dict(getattr(images, name, None) or images.size)
    edge = size.get("shortest_edge")
    return size.get("height") or edge, size.get("width") or edge


def _pairs(pinpoints: Any) -> tuple[tuple[int, int], ...]:
    return tuple((int(height), int(width)) for height, width in pinpoints or ())
