"""InternVL: the tiles of a canvas whose aspect ratio is closest to the picture's, then the whole picture.

A picture is stretched to a canvas of whole tiles, without padding, and cut; the view of the whole is made of
the original picture. All its tokens are one run of the prompt, tile after tile.

Source of the arithmetic, in transformers 5.23: `get_optimal_tiled_canvas` and
`GotOcr2ImageProcessorPil.crop_image_to_patches` for the pixels, `InternVLProcessor.replace_image_token` for
the text. Sizes are (height, width) throughout.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import numpy.typing as npt

from runtime.errors import BundleError, ImageError
from runtime.layouts.base import IMAGE_SLOT, ImageLayout, ImagePlan, Unit, running_offsets
from runtime.layouts.geometry import check_resized

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["AspectLayout"]

_REBUILD = "rebuild the bundle with `python -m export.build`"


@dataclass(frozen=True)
class AspectLayout(ImageLayout):
    """Tiles row-major, then the whole picture; a picture of one tile is the only unit.

    Attributes:
        tile: side in pixels of what the encoder takes.
        grid: (R, C) of the tokens that it makes of a tile.
        tiles: (fewest, most) tiles of a canvas, the view of the whole not counted.
        text: stands for a picture; holds `{image}` where its tokens go, those of all units together.
    """

    kind: ClassVar[str] = "aspect"

    tile: int
    grid: tuple[int, int]
    tiles: tuple[int, int]
    text: str

    def __post_init__(self) -> None:
        if self.tile < 1:
            raise BundleError(f"layout.tile is {self.tile}, expected a number from 1: {_REBUILD}")
        if min(self.grid) < 1:
            raise BundleError(f"layout.grid is {list(self.grid)}, expected two numbers from 1: {_REBUILD}")
        if not 1 <= self.tiles[0] <= self.tiles[1]:
            raise BundleError(
                f"layout.tiles is {list(self.tiles)}, expected two numbers from 1, the smaller first: "
                f"{_REBUILD}"
            )
        if self.text.count(IMAGE_SLOT) != 1:
            raise BundleError(f"layout.text is {self.text!r}, expected {IMAGE_SLOT} exactly once: {_REBUILD}")

    @property
    def pixel_shape(self) -> tuple[int | str, ...]:
        return ("units", 3, self.tile, self.tile)

    @property
    def unit_tokens(self) -> int:
        return self.grid[0] * self.grid[1]

    @property
    def unit_grid(self) -> tuple[int, int]:
        return self.grid

    def plan(self, height: int, width: int) -> ImagePlan:
        rows, columns = self._mosaic(height, width)
        units = 1 if rows == columns == 1 else rows * columns + 1
        runs = (units * self.unit_tokens,)
        return ImagePlan(
            units=(Unit(self.unit_tokens, self.grid),) * units,
            text=self.text,
            runs=runs,
            sequence=np.arange(sum(runs), dtype=np.int64),
            offsets=running_offsets(runs),
            spans=runs,
            overview=None if units == 1 else units - 1,
            mosaic=None if units == 1 else (rows, columns),
        )

    def views(self, image: Image.Image, resample: int) -> Sequence[npt.NDArray[np.uint8]]:
        rows, columns = self._mosaic(image.height, image.width)
        whole = np.asarray(image.resize((self.tile, self.tile), resample=resample))
        if rows == columns == 1:
            return (whole,)
        picture = np.asarray(image.resize((columns * self.tile, rows * self.tile), resample=resample))
        tiles = [
            picture[top : top + self.tile, left : left + self.tile]
            for top in range(0, picture.shape[0], self.tile)
            for left in range(0, picture.shape[1], self.tile)
        ]
        return (*tiles, whole)

    def _mosaic(self, height: int, width: int) -> tuple[int, int]:
        """(rows, columns) of the tiles.

        Raises:
            ImageError: no pixels, or more than fit in memory on the way.
        """
        if min(height, width) < 1:
            raise ImageError(
                f"an image has {width} x {height} pixels, expected at least 1 x 1: check the file"
            )
        best, least = (1, 1), math.inf
        for rows, columns in self._canvases():
            difference = abs(width / height - columns / rows)
            # Of canvases that fit equally well, the larger one, unless it would be twice the picture.
            filled = width * height > 0.5 * self.tile**2 * rows * columns
            if difference < least or (difference == least and filled):
                best, least = (rows, columns), difference
        # Pillow mostly resizes across first: in between, a sliver has its old height at the new width.
        check_resized((height, width), (height, best[1] * self.tile))
        check_resized((height, width), (best[0] * self.tile, best[1] * self.tile))
        return best

    def _canvases(self) -> list[tuple[int, int]]:
        """(rows, columns) of every canvas: fewest tiles first, then the fewest columns."""
        fewest, most = self.tiles
        found = [
            (rows, columns)
            for columns in range(1, most + 1)
            for rows in range(1, most // columns + 1)
            if rows * columns >= fewest
        ]
        return sorted(found, key=lambda canvas: canvas[0] * canvas[1])
