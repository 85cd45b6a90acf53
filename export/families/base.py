"""What a model family tells the rest of `export`, which works on these records alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from runtime.contract import GraphContract
from runtime.manifest import DecoderInfo

if TYPE_CHECKING:
    from export.oracle import Oracle

__all__ = ["Family", "Subgraph", "VisionLayout"]


@dataclass(frozen=True)
class VisionLayout:
    """How an image becomes rows, read from the configuration alone.

    Attributes:
        image_size: (H, W) in pixels.
        grid: (R, C) of the prunable tokens, row-major; None where they make no full grid.
        tokens: N, prunable tokens per image.
        prefix_tokens: p, special rows that the language model gets before the patches.
        special_tokens: leading rows inside the tower that are not patches.
        states: indices into the tower's hidden states (0 = embeddings) that make the features, in order.
        rows_dropped: leading rows of the tower that never reach the language model.
    """

    image_size: tuple[int, int]
    grid: tuple[int, int] | None
    tokens: int
    prefix_tokens: int
    special_tokens: int
    states: tuple[int, ...]
    rows_dropped: int

    @property
    def layers(self) -> int:
        """Encoder layers that reach the features."""
        return max(self.states)


@dataclass(frozen=True)
class Subgraph:
    """One graph to write: `args` are example inputs for `module`, whose tensors are those of `contract`."""

    name: str
    module: Any
    args: tuple[Any, ...]
    contract: GraphContract


class Family(Protocol):
    """One kind of vision-language model: one file each, registered by model type."""

    model_type: str
    architecture: str

    def layout(self, config: Any) -> VisionLayout:
        """Read the vision layout from a transformers config, before any weight is loaded.

        Raises:
            CheckpointError: a tower or setting that cannot be exported.
        """

    def decoder_info(self, model: Any) -> DecoderInfo:
        """Shapes of the language model's cache, found by running one token through it.

        Raises:
            CheckpointError: its cache is not one key and one value tensor of equal shape per layer.
        """

    def subgraphs(self, model: Any, layout: VisionLayout, decoder: DecoderInfo) -> Iterator[Subgraph]:
        """The graphs to write; a module and its examples are gone before the next is made."""

    def oracle(self, model: Any, processor: Any) -> Oracle:
        """The plain PyTorch implementation of FoPru for this family."""
