"""What a model family tells the rest of `export`, which works on these records alone.

A family is one file: a class with the methods of `Family`, and a `Reference`. Families whose language model
is a plain module with a key/value cache inherit `TextModel` (`families/text.py`) and write the vision side
only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from runtime.contract import GraphContract
from runtime.layouts import ImageLayout, Unit
from runtime.manifest import DecoderInfo, Preprocess

if TYPE_CHECKING:
    import onnx_ir as ir
    from torch import Tensor

    from export.decoder.tied import StoredWeight

__all__ = ["EncoderInfo", "Family", "ImageUnits", "Reference", "Subgraph"]


@dataclass(frozen=True)
class EncoderInfo:
    """How the tower is scored, read from the configuration alone.

    Attributes:
        layers: encoder layers that reach the features.
        special_tokens: leading rows inside the tower that are not patches.
        layer: 0-based layer that scores by default; None: the deepest that reaches the features.
        score_layers: layers that may score (those that look at the whole image); None: all.
        merge: s, where a merger makes one token of s x s patches; 1: none.
        merge_order: `row_major` (patches in reading order, as pixel shuffle takes them) or `packed` (the
            s * s patches of a token lie together).
        token_order: name of the encoder input int64 [N] that says which merged token is the t-th of the
            image, where the tower works in another order; None: reading order.
    """

    layers: int
    special_tokens: int
    layer: int | None = None
    score_layers: tuple[int, ...] | None = None
    merge: int = 1
    merge_order: Literal["row_major", "packed"] = "row_major"
    token_order: str | None = None


@dataclass(frozen=True)
class Subgraph:
    """One module to trace: `args` are its example inputs, whose tensors are those of `contract`.

    Attributes:
        name: of the graph, and of the weight file; with `lowered` of the weight file alone.
        stored: weights that a graph written before holds.
        lowered: graphs made of the traced one, by name; none: the traced one is the graph.
    """

    name: str
    module: Any
    args: tuple[Any, ...]
    contract: GraphContract
    stored: tuple[StoredWeight, ...] = ()
    lowered: dict[str, Callable[[ir.Model], None]] = field(default_factory=dict)


@dataclass(frozen=True)
class ImageUnits:
    """The units of one image, as `Reference` counts them.

    Attributes:
        count: how many.
        overview: index of the one that shows the whole picture; None where there is only one.
        mosaic: (rows, columns) in which the others tile the picture, row-major; None without tiles.
    """

    count: int
    overview: int | None = None
    mosaic: tuple[int, int] | None = None


class Family(Protocol):
    """One kind of vision-language model: one file each, registered by model type."""

    model_type: str
    architecture: str
    position_ids: str
    """Position policy by default: `renumber` or `original`."""

    def encoder_info(self, config: Any) -> EncoderInfo:
        """Read the tower from a transformers config, before any weight is loaded.

        Raises:
            CheckpointError: a tower or setting that cannot be exported.
        """

    def layout(self, config: Any, processor: Any) -> ImageLayout:
        """How images are cut, from config and processor.

        Raises:
            CheckpointError: settings that cannot be expressed, or that contradict each other.
        """

    def preprocess(self, processor: Any) -> Preprocess:
        """Resampling and normalisation, from the processor.

        Raises:
            CheckpointError: a step that cannot be expressed.
        """

    def encoder_macs(self, config: Any, unit: Unit) -> int:
        """Multiply-adds of the unpruned encoder with its projector for one unit."""

    def decoder_info(self, model: Any) -> DecoderInfo:
        """Shapes of the language model's cache, found by running one token through it.

        Raises:
            CheckpointError: its cache is not one key and one value tensor of equal shape per layer.
        """

    def subgraphs(self, model: Any, layout: ImageLayout, decoder: DecoderInfo) -> Iterator[Subgraph]:
        """The graphs to write; a module and its examples are gone before the next is made."""

    def constants(self, model: Any) -> dict[str, npt.NDArray[np.float32]]:
        """Vectors that the host needs, by name (`image_newline` [D]); usually none."""

    def reference(self, model: Any, processor: Any) -> Reference:
        """Plain PyTorch for this family."""


class Reference(Protocol):
    """What transformers itself makes of a request's images: its own code, none of the runtime's or the
    rewriter's.

    `inputs` is what the processor returned for one prompt with all its images (a BatchFeature with
    `input_ids` [1, L]). Units are the pictures that the tower sees, in its order, all images one after the
    other.
    """

    def image_units(self, inputs: Any) -> list[ImageUnits]:
        """Per image of the prompt: its units."""

    def pixel_values(self, inputs: Any) -> Tensor:
        """The tower's input float32, real units only, the units of all images one after the other on the
        first axis."""

    def unit_scores(self, inputs: Any, layer: int, aggregation: str) -> list[Tensor]:
        """Per unit: float32 [R, C], one score per token as the language model would get it ([N] where there
        is no grid)."""

    def unit_valid(self, inputs: Any) -> list[Tensor]:
        """Per unit: bool of the same shape, False where a token is padding."""

    def features(self, inputs: Any) -> Tensor:
        """float32 [placeholders, D]: what transformers puts at the image placeholders, unpruned, in their
        order."""

    def keep_mask(self, inputs: Any, kept: list[Tensor], newline: str) -> Tensor:
        """bool [placeholders]: which placeholders stay, from one bool tensor of kept tokens per unit (shaped
        as the scores), by the way the features go; `newline` is the policy for newline vectors."""

    def positions(self, inputs: Any) -> Tensor:
        """int64 [axes, L]: position ids of the unpruned prompt."""
