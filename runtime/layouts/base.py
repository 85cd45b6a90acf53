"""From the size of an image to everything that the host must know before the encoder runs.

A layout is data in the bundle (`bundle.json`, key `layout`) plus the pure functions of its class: how an
image is cut into the units that the encoder looks at, how many tokens each unit makes, and where these
tokens go in the prompt. No graph runs for any of it, so that counts, memory and positions are known before
the first pixel is computed.
"""

from __future__ import annotations

import abc
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import numpy.typing as npt

from runtime.contract import TensorSpec
from runtime.errors import BundleError

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["IMAGE_SLOT", "NEWLINE", "ImageLayout", "ImagePlan", "Unit", "running_offsets"]

IMAGE_SLOT = "{image}"
"""In `ImagePlan.text`: the model's image token goes here; a layout need not know how it is written."""

NEWLINE = -1
"""In `ImagePlan.sequence`: the row is the model's newline vector, not a row of the encoder's output."""


@dataclass(frozen=True)
class Unit:
    """What the encoder sees as one picture: a whole image, or one tile of it. Tokens are selected per unit.

    Attributes:
        tokens: N, rows of the encoder's output for it, without prefix rows.
        grid: (R, C) of these tokens, row-major; None where they make no full grid.
        valid: (top, bottom, left, right) of the tokens that show the image, ends excluded; the others are
        padding,
            which is neither kept nor counted. None: all are valid.
    """

    tokens: int
    grid: tuple[int, int] | None
    valid: tuple[int, int, int, int] | None = None

    @property
    def valid_grid(self) -> tuple[int, int] | None:
        """(R, C) of the valid tokens."""
        if self.valid is None:
            return self.grid
        top, bottom, left, right = self.valid
        return bottom - top, right - left

    @property
    def prunable(self) -> int:
        """Number of valid tokens: what a ratio is a fraction of. 0: the unit is all padding."""
        if self.valid is None:
            return self.tokens
        top, bottom, left, right = self.valid
        return (bottom - top) * (right - left)

    @property
    def valid_indices(self) -> npt.NDArray[np.int64]:
        """Positions of the valid tokens, ascending, int64 [prunable]."""
        if self.valid is None or self.grid is None:
            return np.arange(self.tokens, dtype=np.int64)
        top, bottom, left, right = self.valid
        return np.arange(self.tokens, dtype=np.int64).reshape(self.grid)[top:bottom, left:right].reshape(-1)


@dataclass(frozen=True)
class ImagePlan:
    """One image, planned from its size alone.

    Attributes:
        units: in the order of the encoder's batch.
        text: what stands for the image token in the prompt, with `IMAGE_SLOT` once for each run of
        placeholders.
        runs: placeholders of each run, before pruning.
        sequence: int64 [sum(runs)]: what is behind each placeholder: a row of the units' outputs (prefix rows
            included), counted through all units, or `NEWLINE`.
        offsets: int64 [axes, sum(runs)]: position of each placeholder, counted from the first of its run.
        spans: positions that each run takes up: the next text token continues after as many.
        lines: int64 [sum(runs)]: number of the line of the picture that a placeholder belongs to, -1 for
        none; None where
            there are no newlines. A newline has the number of the line that it ends.
        inputs: further inputs of the encoder for this image; where there are some, each image is a call of
        its own.
        overview: index of the unit that shows the whole image; None where the only unit does.
        mosaic: (rows, columns) in which the other units tile the image, row-major; None without tiles.
    """

    units: tuple[Unit, ...]
    text: str
    runs: tuple[int, ...]
    sequence: npt.NDArray[np.int64]
    offsets: npt.NDArray[np.int64]
    spans: tuple[int, ...]
    lines: npt.NDArray[np.int64] | None = None
    inputs: Mapping[str, npt.NDArray[Any]] = field(default_factory=dict)
    overview: int | None = None
    mosaic: tuple[int, int] | None = None

    @property
    def placeholders(self) -> int:
        """Placeholders of the image before pruning: visual tokens as the language model would see them."""
        return sum(self.runs)

    @property
    def prunable(self) -> int:
        """Tokens of all units that a ratio is a fraction of."""
        return sum(unit.prunable for unit in self.units)


class ImageLayout(abc.ABC):
    """How images become encoder inputs and placeholders. Subclasses are frozen dataclasses: their fields are
    the data in the bundle, decoded and checked like every other record.

    Everything here is deterministic, needs no model, and can be done by another language from the same data.
    """

    kind: ClassVar[str]
    """Name in `bundle.json`."""

    position_axes: ClassVar[int] = 1
    """Rows of the position ids: 1, or 3 for M-RoPE (time, height, width)."""

    prefix_tokens: int = 0
    """p, rows (CLS) that come first in each unit's output, are never pruned and not counted in N."""

    @staticmethod
    def concrete(kind: object, where: str) -> type[ImageLayout]:
        """The class that `bundle.json` names by `kind`; `where` is its place, for messages.

        Raises:
            BundleError: this runtime has no such layout.
        """
        from runtime.layouts import LAYOUTS  # which imports the subclasses of this class

        if not isinstance(kind, str) or kind not in LAYOUTS:
            raise BundleError(
                f"{where}.kind is {kind!r}, expected one of {', '.join(LAYOUTS)}: "
                "upgrade the runtime, or build the bundle with an exporter of this version"
            )
        return LAYOUTS[kind]

    @property
    @abc.abstractmethod
    def pixel_shape(self) -> tuple[int | str, ...]:
        """Shape of `pixel_values` in the graph; a name where it varies. The first axis counts units."""

    @property
    @abc.abstractmethod
    def unit_tokens(self) -> int | None:
        """N of every unit, None where it varies from image to image."""

    @property
    @abc.abstractmethod
    def unit_grid(self) -> tuple[int, int] | None:
        """(R, C) of every unit, None where it varies or there is none."""

    @property
    def image_tokens(self) -> int | None:
        """Tokens of every image, None where that depends on its size."""
        return None

    @property
    def has_grid(self) -> bool:
        """Whether the tokens of a unit make a grid, fixed or not: `row` needs one."""
        return True

    @property
    def masked(self) -> bool:
        """Whether a unit may hold padding, so that the pruned encoder takes a `token_mask`."""
        return False

    @property
    def has_newlines(self) -> bool:
        """Whether newline vectors stand between the lines of an image."""
        return False

    @property
    def extra_inputs(self) -> tuple[TensorSpec, ...]:
        """Inputs of the encoder besides `pixel_values`; `ImagePlan.inputs` has their values."""
        return ()

    @abc.abstractmethod
    def plan(self, height: int, width: int) -> ImagePlan:
        """Plan an upright image of `height` x `width` pixels.

        Raises:
            ImageError: a size that the model cannot take.
        """

    @abc.abstractmethod
    def views(self, image: Image.Image, resample: int) -> Sequence[npt.NDArray[np.uint8]]:
        """What the encoder looks at, one uint8 [H, W, 3] per unit of the plan: resized, cut and padded, not
        normalised.

        Args:
            image: upright RGB.
            resample: PIL's code.
        """

    def pack(self, views: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Normalised views float32 [units, 3, H, W] to `pixel_values`, whose first axis counts units."""
        return views


def running_offsets(runs: Sequence[int]) -> npt.NDArray[np.int64]:
    """`ImagePlan.offsets` of 1-D positions: 0, 1, 2, … in every run; int64 [1, sum(runs)]."""
    return np.concatenate([np.arange(run, dtype=np.int64) for run in runs])[None]
