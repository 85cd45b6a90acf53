"""Qwen2-VL and Qwen2.5-VL: every image in its own size, rounded to whole tokens, positions in three axes.

One image is one call: the number of tokens is that of the picture. Patches lie token by token, the
`merge_size` x `merge_size` patches of a token together, tokens in reading order. Where the tower has window
attention, windows are listed by their tokens, so that nothing is put into another order and back; windows at
the right and bottom edge have slots that are empty.

Sources of the arithmetic, in transformers 5.23: `smart_resize` and `Qwen2VLImageProcessorPil.patchify`
(pixels), `get_vision_window_index` and `get_vision_position_ids` of `vision_utils` (tower),
`Qwen2_5_VLModel.get_rope_index` (prompt).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import numpy.typing as npt

from runtime.contract import TensorSpec
from runtime.errors import BundleError, ImageError
from runtime.layouts.base import IMAGE_SLOT, ImageLayout, ImagePlan, Unit
from runtime.layouts.geometry import check_resized

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["TOKEN_POSITIONS", "TOKEN_SLOTS", "WINDOW_TOKENS", "NativeLayout", "windows_of"]

TOKEN_POSITIONS = "token_positions"
"""Encoder input int64 [tokens, 2]: (y, x) of each token."""

WINDOW_TOKENS = "window_tokens"
"""Encoder input int64 [windows, slots]: the tokens of each window, row-major, -1 in an empty slot."""

TOKEN_SLOTS = "token_slots"
"""Encoder input int64 [tokens]: where each token is among the slots of all windows, counted through."""

_REBUILD = "rebuild the bundle with `python -m export.build`"
_MOST_STRETCHED = 200  # the model's own limit on the aspect ratio


@dataclass(frozen=True)
class NativeLayout(ImageLayout):
    """The image keeps its aspect ratio, and about its size.

    Attributes:
        patch_size: side of a patch in pixels.
        merge_size: patches along a side of a token.
        temporal_patch_size: frames in a patch; an image is as many times the same frame.
        min_pixels: smaller images are made larger.
        max_pixels: larger images are made smaller.
        window: tokens along a side of an attention window; None: every layer looks at the whole image.
    """

    kind: ClassVar[str] = "native"
    position_axes: ClassVar[int] = 3

    patch_size: int
    merge_size: int
    temporal_patch_size: int
    min_pixels: int
    max_pixels: int
    window: int | None

    def __post_init__(self) -> None:
        for name in ("patch_size", "merge_size", "temporal_patch_size", "min_pixels", "window"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise BundleError(f"layout.{name} is {value}, expected a number from 1 on: {_REBUILD}")
        if self.max_pixels < self.min_pixels:
            raise BundleError(
                f"layout.max_pixels is {self.max_pixels}, expected at least layout.min_pixels "
                f"{self.min_pixels}: {_REBUILD}"
            )

    @property
    def pixel_shape(self) -> tuple[int | str, ...]:
        values = 3 * self.temporal_patch_size * self.patch_size**2
        return 1, "tokens", self.merge_size**2, values

    @property
    def unit_tokens(self) -> None:
        return None

    @property
    def unit_grid(self) -> None:
        return None

    @property
    def extra_inputs(self) -> tuple[TensorSpec, ...]:
        positions = TensorSpec(TOKEN_POSITIONS, "int64", ("tokens", 2))
        if self.window is None:
            return (positions,)
        return (
            positions,
            TensorSpec(WINDOW_TOKENS, "int64", ("windows", self.window**2)),
            TensorSpec(TOKEN_SLOTS, "int64", ("tokens",)),
        )

    def plan(self, height: int, width: int) -> ImagePlan:
        resized, token = self.resized(height, width), self.patch_size * self.merge_size
        grid = resized[0] // token, resized[1] // token
        tokens = grid[0] * grid[1]
        positions = np.indices(grid).reshape(2, tokens).astype(np.int64)
        inputs = {TOKEN_POSITIONS: np.ascontiguousarray(positions.T)}
        if self.window is not None:
            inputs[WINDOW_TOKENS], inputs[TOKEN_SLOTS] = windows_of(grid, self.window)
        return ImagePlan(
            units=(Unit(tokens, grid),),
            text=IMAGE_SLOT,
            runs=(tokens,),
            sequence=np.arange(tokens, dtype=np.int64),
            # Time stands still; text goes on after the longer side.
            offsets=np.concatenate([np.zeros((1, tokens), np.int64), positions]),
            spans=(max(grid),),
            inputs=inputs,
        )

    def views(self, image: Image.Image, resample: int) -> Sequence[npt.NDArray[np.uint8]]:
        height, width = self.resized(image.height, image.width)
        return (np.asarray(image.resize((width, height), resample=resample)),)

    def pack(self, views: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        side, merge = self.patch_size, self.merge_size
        _, channels, height, width = views.shape
        rows, columns = height // (side * merge), width // (side * merge)
        patches = views.reshape(channels, rows, merge, side, columns, merge, side)
        patches = patches.transpose(1, 4, 2, 5, 0, 3, 6)[..., None, :, :]
        frames = np.broadcast_to(patches, (*patches.shape[:5], self.temporal_patch_size, side, side))
        return frames.reshape(1, rows * columns, merge**2, -1)

    def resized(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) of what the encoder sees of an image: multiples of a token's side.

        Raises:
            ImageError: a sliver, or an image whose resized form would not fit in memory.
        """
        if min(height, width) < 1 or max(height, width) / min(height, width) > _MOST_STRETCHED:
            raise ImageError(
                f"an image has {width} x {height} pixels, but one side may be at most {_MOST_STRETCHED} "
                "times the other: crop it first"
            )
        token = self.patch_size * self.merge_size
        # Halves are rounded to the even neighbour, as Python does.
        resized = round(height / token) * token, round(width / token) * token
        if resized[0] * resized[1] > self.max_pixels:
            shrink = math.sqrt((height * width) / self.max_pixels)
            resized = (
                max(token, math.floor(height / shrink / token) * token),
                max(token, math.floor(width / shrink / token) * token),
            )
        elif resized[0] * resized[1] < self.min_pixels:
            grow = math.sqrt(self.min_pixels / (height * width))
            resized = (
                math.ceil(height * grow / token) * token,
                math.ceil(width * grow / token) * token,
            )
        check_resized((height, width), resized)
        return resized


def windows_of(grid: tuple[int, int], window: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Cut a grid of tokens into windows of `window` x `window`, row-major.

    Returns:
        Tokens of each window int64 [windows, slots], -1 in slots beyond the edge; and the place of each
        token among all slots, int64 [tokens].
    """
    rows, columns = -(-grid[0] // window), -(-grid[1] // window)
    padded = np.full((rows * window, columns * window), -1, np.int64)
    padded[: grid[0], : grid[1]] = np.arange(grid[0] * grid[1], dtype=np.int64).reshape(grid)
    tokens = padded.reshape(rows, window, columns, window).transpose(0, 2, 1, 3).reshape(-1, window**2)
    filled = np.flatnonzero(tokens >= 0)
    slots = np.empty(filled.size, np.int64)
    slots[tokens.reshape(-1)[filled]] = filled
    return tokens, slots
