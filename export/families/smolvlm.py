"""SmolVLM and Idefics3: a SigLIP-like tower on square tiles, pixel shuffle, one linear layer; the prompt
names every tile. The two differ in names only.

Sources, in transformers 5.23: `SmolVLMModel.get_image_features`, `SmolVLMVisionEmbeddings`,
`SmolVLMConnector`, and the classes of the same names of Idefics3.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import groupby
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from export.costs import VisionShape
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
from runtime.layouts import IMAGE_SLOT, ImageLayout, Unit
from runtime.layouts.split import SplitLayout
from runtime.manifest import DecoderInfo, Preprocess

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["Idefics3Family", "SmolVLMFamily", "SplitReference"]

_PROCESSORS = ("Idefics3ImageProcessor", "SmolVLMImageProcessor")


class SmolVLMFamily(TextModel):
    """`SmolVLMForConditionalGeneration`."""

    model_type = "smolvlm"
    architecture = "SmolVLMForConditionalGeneration"
    position_ids = "renumber"

    def language_model(self, model: Any) -> Any:
        return model.model.text_model

    def encoder_info(self, config: Any) -> EncoderInfo:
        tower = config.vision_config
        self.check_text(config.text_config)
        if not isinstance(tower.image_size, int) or not isinstance(tower.patch_size, int):
            raise CheckpointError(
                f"the vision tower has image_size {tower.image_size} and patch_size {tower.patch_size}, but "
                "the towers of this family are square: give each as one number"
            )
        return EncoderInfo(layers=tower.num_hidden_layers, special_tokens=0, merge=config.scale_factor)

    def layout(self, config: Any, processor: Any) -> SplitLayout:
        images = processor.image_processor
        processor_kind(images, _PROCESSORS)
        tile = size_setting(images, "max_image_size").get("longest_edge", 0)
        grid = _token_grid(config, tile)
        if processor.image_seq_len != grid[0] * grid[1]:
            raise CheckpointError(
                f"the processor has image_seq_len {processor.image_seq_len}, but tiles of {tile} x {tile} "
                f"pixels make {grid[0] * grid[1]} tokens: correct processor_config.json"
            )
        fake = processor.fake_image_token
        # The name of this attribute is what the two processors differ in.
        whole = getattr(processor, "global_image_token", None) or processor.global_image_tag
        return SplitLayout(
            tile=tile,
            grid=grid,
            resize=_resize(images),
            splitting=setting(images, "do_image_splitting", True),
            tile_text=f"{fake}<row_{{row}}_col_{{column}}>{IMAGE_SLOT}",
            row_end="\n",
            overview_text=f"\n{fake}{whole}{IMAGE_SLOT}{fake}",
            single_text=f"{fake}{whole}{IMAGE_SLOT}{fake}",
        )

    def preprocess(self, processor: Any) -> Preprocess:
        made = preprocess_from_processor(processor.image_processor)
        levels = (np.arange(256) * made.rescale_factor).astype(np.float32)
        if all((levels == np.float32(mean)).any() for mean in made.mean):
            raise unsupported(
                f"with image_mean {list(made.mean)} a picture of one colour becomes all zeros",
                "the model takes such a picture for padding and leaves it out, so no level may become 0",
            )
        return made

    def encoder_macs(self, config: Any, unit: Unit) -> int:
        tower, group = config.vision_config, config.scale_factor**2
        shape = VisionShape(
            width=tower.hidden_size,
            mlp=tower.intermediate_size,
            layers=tower.num_hidden_layers,
            patches=unit.tokens * group,
            patch_inputs=tower.num_channels * tower.patch_size**2,
            special=0,
            prefix=0,
        )
        return shape.encoder() + unit.tokens * group * tower.hidden_size * config.text_config.hidden_size

    def subgraphs(self, model: Any, layout: ImageLayout, decoder: DecoderInfo) -> Iterator[Subgraph]:
        import torch

        shape: Any = layout.pixel_shape[1:]
        tiles = torch.zeros(2, *shape)
        yield Subgraph(
            contract.VISION_ENCODER,
            _tile_encoder(model.model, tiles[:1]),
            (tiles,),
            contract.vision_contracts(layout, decoder.hidden_size)[contract.VISION_ENCODER],
        )
        yield from self.text_subgraphs(model, decoder)

    def constants(self, model: Any) -> dict[str, npt.NDArray[np.float32]]:
        del model
        return {}

    def reference(self, model: Any, processor: Any) -> SplitReference:
        return SplitReference(model, processor)


class Idefics3Family(SmolVLMFamily):
    """`Idefics3ForConditionalGeneration`, and the first SmolVLM checkpoints, which say that they are that."""

    model_type = "idefics3"
    architecture = "Idefics3ForConditionalGeneration"


class SplitReference:
    """SmolVLM and Idefics3 as transformers runs them: one unit per tile, then one for the whole picture."""

    def __init__(self, model: Any, processor: Any) -> None:
        """Keeps both, which must stay unchanged while the reference is used."""
        self._model = model.model
        self._image_token = model.config.image_token_id
        self._tokenizer = processor.tokenizer

    def image_units(self, inputs: Any) -> list[ImageUnits]:
        """Read from the text before each run of image tokens, which names the tile or the whole picture."""
        images: list[ImageUnits] = []
        tiles: list[tuple[int, int]] = []
        place: re.Match[str] | None = None
        ids = inputs["input_ids"][0].tolist()
        for is_image, run in groupby(ids, key=lambda token: token == self._image_token):
            if not is_image:
                text = self._tokenizer.decode(list(run), skip_special_tokens=False)
                place = re.search(r"<row_(\d+)_col_(\d+)>$", text)
                continue
            if place is not None:
                tiles.append((int(place[1]), int(place[2])))
            else:
                count = len(tiles) + 1
                images.append(ImageUnits(count, count - 1, tiles[-1]) if tiles else ImageUnits(count))
                tiles = []
        return images

    def pixel_values(self, inputs: Any) -> Tensor:
        import torch

        return inputs["pixel_values"].flatten(0, 1).to(torch.float32)

    def unit_scores(self, inputs: Any, layer: int, aggregation: str) -> list[Tensor]:
        from export.oracle import attention_of

        del aggregation  # without CLS, the two ways to average columns are one
        received = attention_of(self._model.vision_model, self.pixel_values(inputs), layer).mean(dim=1)
        patches = self._patches_of_tokens(received.shape[1])
        side = int(len(patches) ** 0.5)
        return list(received[:, patches].mean(dim=-1).view(-1, side, side))

    def unit_valid(self, inputs: Any) -> list[Tensor]:
        import torch

        count = inputs["pixel_values"].flatten(0, 1).shape[0]
        tower = self._model.config.vision_config
        side = inputs["pixel_values"].shape[-1] // tower.patch_size // self._model.config.scale_factor
        return list(torch.ones(count, side, side, dtype=torch.bool))

    def features(self, inputs: Any) -> Tensor:
        import torch

        made = self._model.get_image_features(
            inputs["pixel_values"], inputs.get("pixel_attention_mask"), return_dict=True
        ).pooler_output
        return torch.cat(list(made)).to(torch.float32)

    def keep_mask(self, inputs: Any, kept: list[Tensor], newline: str) -> Tensor:
        import torch

        del inputs, newline  # there are none
        return torch.cat([unit.flatten() for unit in kept])

    def positions(self, inputs: Any) -> Tensor:
        import torch

        return torch.arange(inputs["input_ids"].shape[1])[None]

    def _patches_of_tokens(self, count: int) -> Tensor:
        """int64 [tokens, s * s]: the patches that each token is made of, as the model's own connector moves
        them: patch i goes in as a row whose channel i alone is 1."""
        import torch

        connector = self._model.connector
        shuffled = connector.pixel_shuffle(torch.eye(count)[None], connector.scale_factor)[0]
        holds = shuffled.view(len(shuffled), -1, count).sum(dim=1)
        return holds.nonzero()[:, 1].view(len(shuffled), -1)


def _token_grid(config: Any, tile: int) -> tuple[int, int]:
    """(R, C) of the tokens of a tile.

    Raises:
        CheckpointError: no tile, or one that does not make whole groups of patches.
    """
    patch, factor = config.vision_config.patch_size, config.scale_factor
    side = tile // patch if patch > 0 else 0  # pixels beyond whole patches are not looked at
    if side < 1 or factor < 1 or side % factor:
        raise CheckpointError(
            f"the image processor has max_image_size {tile or None}, which makes {side} patches of {patch} "
            f"pixels along an edge, but pixel shuffle needs a multiple of scale_factor {factor}: correct "
            "preprocessor_config.json"
        )
    return side // factor, side // factor


def _resize(images: Any) -> dict[str, int]:
    """The first resize: to a longest edge, which comes first where both are given, or to a fixed size."""
    size = size_setting(images, "size")
    for names in (("longest_edge",), ("height", "width")):
        if set(names) <= set(size):
            return {name: size[name] for name in names}
    raise unsupported(f"size is {size}", "it must have longest_edge, or height and width")


def _tile_encoder(model: Any, tile: Tensor) -> nn.Module:
    """The tower and connector of `model` for full tiles: pixel_values float32 [units, 3, S, S] →
    image_features float32 [units, N, D].

    transformers finds the positions of patches by counting a mask, which is nothing for a graph; without
    padding they are the same in every tile, so they are taken once, from its own code, for `tile` float32
    [1, 3, S, S].
    """
    import torch
    from torch import nn

    class TileEncoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.vision_model = model.vision_model
            self.connector = model.connector
            self.register_buffer("positions", _positions(model.vision_model, tile), persistent=False)

        def forward(self, pixel_values: Tensor) -> Tensor:
            tower = self.vision_model
            patches = tower.embeddings.patch_embedding(pixel_values).flatten(2).transpose(1, 2)
            hidden = tower.encoder(inputs_embeds=patches + self.positions).last_hidden_state
            features: Tensor = self.connector(tower.post_layernorm(hidden))
            return features

    with torch.no_grad():
        return TileEncoder().eval()


def _positions(tower: Any, tile: Tensor) -> Tensor:
    """float32 [1, patches, width]: what the embeddings of `tower` add to the patches of a full tile."""
    added: list[Tensor] = []

    def keep(_module: Any, _inputs: Any, output: Tensor) -> None:
        added.append(output.detach())

    handle = tower.embeddings.position_embedding.register_forward_hook(keep)
    try:
        tower(tile)
    finally:
        handle.remove()
    return added[0]
