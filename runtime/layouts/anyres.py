"""LLaVA-NeXT: the whole image once, then the tiles of the resolution that fits it best.

Every picture is resized into the best of a few canvases ("pinpoints") with its aspect ratio kept, padded with
black to fill it, and cut into tiles of the encoder's size. The tokens of the tiles are put together again as
one wide grid, from which rows or columns of padding are cut; a newline vector ends each line of the rest.

Sources of the arithmetic, in transformers 5.23: `select_best_resolution`, `get_patch_output_size` and
`divide_to_patches` (pixels), `unpad_image` and `LlavaNextModel.pack_image_features` (tokens). Sizes are
(height, width) throughout.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import numpy.typing as npt

from runtime.errors import BundleError, ImageError
from runtime.layouts.base import IMAGE_SLOT, NEWLINE, ImageLayout, ImagePlan, Unit, running_offsets
from runtime.layouts.geometry import MAX_RESIZED_PIXELS, check_resized

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["AnyresLayout"]

_REBUILD = "rebuild the bundle with `python -m export.build`"


@dataclass(frozen=True)
class AnyresLayout(ImageLayout):
    """Tiles of one size, on the canvas that fits the image best.

    Unit 0 shows the whole image without regard to its aspect ratio; the tiles of the canvas follow,
    row-major. In the prompt come the tokens of unit 0, row-major, then those of the canvas without its
    padding, line by line across tiles, each line ended by the newline vector.

    Attributes:
        tile: (H, W) in pixels of what the encoder takes.
        grid: (R, C) of the tokens that it makes of a tile.
        pinpoints: (height, width) of the canvases; of two that fit equally well, the first is taken.
    """

    kind: ClassVar[str] = "anyres"

    tile: tuple[int, int]
    grid: tuple[int, int]
    pinpoints: tuple[tuple[int, int], ...]

    def __post_init__(self) -> None:
        for name, pair in (("tile", self.tile), ("grid", self.grid)):
            if min(pair) < 1:
                raise BundleError(f"layout.{name} is {list(pair)}, expected two numbers from 1: {_REBUILD}")
        if not self.pinpoints:
            raise BundleError(f"layout.pinpoints is empty, expected at least one [height, width]: {_REBUILD}")
        for height, width in self.pinpoints:
            if min(height, width) < 1 or height % self.tile[0] or width % self.tile[1]:
                raise BundleError(
                    f"layout.pinpoints has {[height, width]}, expected multiples of the tile "
                    f"{list(self.tile)}: {_REBUILD}"
                )
            if height * width > MAX_RESIZED_PIXELS:
                raise BundleError(
                    f"layout.pinpoints has {[height, width]}, expected {MAX_RESIZED_PIXELS} pixels at most: "
                    f"{_REBUILD}"
                )

    @property
    def pixel_shape(self) -> tuple[int | str, ...]:
        return ("units", 3, *self.tile)

    @property
    def unit_tokens(self) -> int:
        return self.grid[0] * self.grid[1]

    @property
    def unit_grid(self) -> tuple[int, int]:
        return self.grid

    @property
    def masked(self) -> bool:
        return True

    @property
    def has_newlines(self) -> bool:
        return True

    def plan(self, height: int, width: int) -> ImagePlan:
        canvas = self._canvas(height, width)
        mosaic = canvas[0] // self.tile[0], canvas[1] // self.tile[1]
        rows, columns = self.grid
        top, bottom, left, right = _unpadded((mosaic[0] * rows, mosaic[1] * columns), (height, width))
        sequence, lines = self._sequence((top, bottom, left, right), mosaic[1])
        tiles = (
            self._tile((top - rows * i, bottom - rows * i, left - columns * j, right - columns * j))
            for i in range(mosaic[0])
            for j in range(mosaic[1])
        )
        runs = (len(sequence),)
        return ImagePlan(
            units=(Unit(self.unit_tokens, self.grid), *tiles),
            text=IMAGE_SLOT,
            runs=runs,
            sequence=sequence,
            offsets=running_offsets(runs),
            spans=runs,
            lines=lines,
            overview=0,
            mosaic=mosaic,
        )

    def views(self, image: Image.Image, resample: int) -> Sequence[npt.NDArray[np.uint8]]:
        size = image.height, image.width
        canvas = self._canvas(*size)
        height, width = _fitted(size, canvas)
        picture = np.zeros((*canvas, 3), np.uint8)
        top, left = (canvas[0] - height) // 2, (canvas[1] - width) // 2
        fitted = np.asarray(image.resize((width, height), resample=resample))
        picture[top : top + height, left : left + width] = fitted
        overview = np.asarray(image.resize((self.tile[1], self.tile[0]), resample=resample))
        tiles = [
            picture[y : y + self.tile[0], x : x + self.tile[1]]
            for y in range(0, canvas[0], self.tile[0])
            for x in range(0, canvas[1], self.tile[1])
        ]
        return [overview, *tiles]

    def _canvas(self, height: int, width: int) -> tuple[int, int]:
        """The pinpoint that keeps most pixels of the image; of several, the one that wastes the fewest."""
        if min(height, width) < 1:
            raise ImageError(
                f"an image has {width} x {height} pixels, expected at least 1 x 1: check the file"
            )
        best = self.pinpoints[0]
        most, least_waste = 0, math.inf
        for canvas in self.pinpoints:
            scale = min(canvas[1] / width, canvas[0] / height)
            pixels = min(int(width * scale) * int(height * scale), width * height)
            waste = canvas[0] * canvas[1] - pixels
            if pixels > most or (pixels == most and waste < least_waste):
                best, most, least_waste = canvas, pixels, waste
        # Pillow mostly resizes across first: in between, a sliver has its old height at the new width.
        check_resized((height, width), (height, max(self.tile[1], _fitted((height, width), best)[1])))
        return best

    def _tile(self, box: tuple[int, int, int, int]) -> Unit:
        """A tile's unit, from (top, bottom, left, right) of the picture in tokens counted from its corner."""
        rows, columns = self.grid
        top, bottom = (min(max(edge, 0), rows) for edge in box[:2])
        left, right = (min(max(edge, 0), columns) for edge in box[2:])
        whole = (top, bottom, left, right) == (0, rows, 0, columns)
        return Unit(self.unit_tokens, self.grid, None if whole else (top, bottom, left, right))

    def _sequence(
        self, box: tuple[int, int, int, int], tiles_across: int
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """`ImagePlan.sequence` and `.lines`, from (top, bottom, left, right) of the picture on the canvas."""
        (rows, columns), unit = self.grid, self.unit_tokens
        y = np.arange(box[0], box[1], dtype=np.int64)[:, None]
        x = np.arange(box[2], box[3], dtype=np.int64)
        tile = 1 + y // rows * tiles_across + x // columns
        picture = tile * unit + y % rows * columns + x % columns
        picture = np.concatenate([picture, np.full_like(y, NEWLINE)], axis=1)
        lines = np.repeat(np.arange(len(y), dtype=np.int64), picture.shape[1])
        overview = np.arange(unit, dtype=np.int64)
        return np.concatenate([overview, picture.reshape(-1)]), np.concatenate(
            [np.full_like(overview, -1), lines]
        )


def _fitted(size: tuple[int, int], canvas: tuple[int, int]) -> tuple[int, int]:
    """(height, width) of an image of `size` made as large as the canvas allows, its aspect ratio kept."""
    across, down = canvas[1] / size[1], canvas[0] / size[0]
    if across < down:
        return min(math.ceil(size[0] * across), canvas[0]), canvas[1]
    return canvas[0], min(math.ceil(size[1] * down), canvas[1])


def _unpadded(grid: tuple[int, int], size: tuple[int, int]) -> tuple[int, int, int, int]:
    """(top, bottom, left, right) of the tokens of a canvas that show an image of `size`.

    As in transformers: half of the padding, rounded down, is cut on both sides, so that a line or column of
    padding may stay. Of a sliver nothing may be left.
    """
    (rows, columns), (height, width) = grid, size
    if width / height > columns / rows:
        cut = (rows - int(round(height * (columns / width), 7))) // 2
        return cut, rows - cut, 0, columns
    cut = (columns - int(round(width * (rows / height), 7))) // 2
    return 0, rows, cut, columns - cut
