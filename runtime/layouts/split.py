"""Idefics3 and SmolVLM: square tiles of the enlarged picture, then the whole of it, each named in the prompt.

A picture is resized to a longest edge, then to whole tiles, cut, and last resized to one tile for the view of
the whole. Text tells the model where each tile belongs; pruning leaves all of it in place.

Source of the arithmetic, in transformers 5.23: `Idefics3ImageProcessorPil` (SmolVLM's is the same code) for
the pixels, `Idefics3Processor.replace_image_token` and SmolVLM's for the text. Sizes are (height, width)
throughout.
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

__all__ = ["SplitLayout"]

_REBUILD = "rebuild the bundle with `python -m export.build`"
_RESIZES = ({"longest_edge"}, {"height", "width"})
# The processors never go beyond this edge, whatever `longest_edge` says.
_MAX_EDGE = 4096


@dataclass(frozen=True)
class SplitLayout(ImageLayout):
    """Tiles row-major, then the whole picture; a picture that is no larger than a tile is the only unit.

    The texts hold `{image}` where the tokens of a unit go; `tile_text` may name its place by `{row}` and
    `{column}`, counted from 1.

    Attributes:
        tile: side in pixels of what the encoder takes.
        grid: (R, C) of the tokens that it makes of a tile.
        resize: `{"longest_edge": n}` (aspect ratio kept) or `{"height": h, "width": w}`, before cutting.
        splitting: whether pictures are cut at all; if not, each is resized to one tile.
        tile_text: stands for a tile.
        row_end: follows each row of tiles.
        overview_text: stands for the whole picture after its tiles.
        single_text: stands for a picture without tiles.
    """

    kind: ClassVar[str] = "split"

    tile: int
    grid: tuple[int, int]
    resize: dict[str, int]
    splitting: bool
    tile_text: str
    row_end: str
    overview_text: str
    single_text: str

    def __post_init__(self) -> None:
        if self.tile < 1:
            raise BundleError(f"layout.tile is {self.tile}, expected a number from 1: {_REBUILD}")
        if min(self.grid) < 1:
            raise BundleError(f"layout.grid is {list(self.grid)}, expected two numbers from 1: {_REBUILD}")
        if set(self.resize) not in _RESIZES or min(self.resize.values()) < 1:
            raise BundleError(
                f'layout.resize is {self.resize}, expected {{"longest_edge": n}} or '
                f'{{"height": h, "width": w}}: {_REBUILD}'
            )
        for name in ("tile_text", "overview_text", "single_text"):
            text = getattr(self, name)
            if text.count(IMAGE_SLOT) != 1:
                raise BundleError(
                    f"layout.{name} is {text!r}, expected {IMAGE_SLOT} exactly once: {_REBUILD}"
                )
        if IMAGE_SLOT in self.row_end:
            raise BundleError(
                f"layout.row_end is {self.row_end!r}, expected text without {IMAGE_SLOT}: {_REBUILD}"
            )

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
        mosaic = self._mosaic(self._resizes(height, width)[-1])
        units = 1 if mosaic is None else mosaic[0] * mosaic[1] + 1
        runs = (self.unit_tokens,) * units
        return ImagePlan(
            units=(Unit(self.unit_tokens, self.grid),) * units,
            text=self._text(mosaic),
            runs=runs,
            sequence=np.arange(sum(runs), dtype=np.int64),
            offsets=running_offsets(runs),
            spans=runs,
            overview=None if mosaic is None else units - 1,
            mosaic=mosaic,
        )

    def views(self, image: Image.Image, resample: int) -> Sequence[npt.NDArray[np.uint8]]:
        resizes = self._resizes(image.height, image.width)
        for height, width in resizes:
            image = image.resize((width, height), resample=resample)
        picture = np.asarray(image)
        if self._mosaic(resizes[-1]) is None:
            return (picture,)
        tiles = [
            picture[top : top + self.tile, left : left + self.tile]
            for top in range(0, picture.shape[0], self.tile)
            for left in range(0, picture.shape[1], self.tile)
        ]
        # From the enlarged picture, not from the original: one resize more than the tiles have.
        return (*tiles, np.asarray(image.resize((self.tile, self.tile), resample=resample)))

    def _resizes(self, height: int, width: int) -> tuple[tuple[int, int], tuple[int, int]]:
        """Sizes after the two resizes that every picture goes through, one after the other.

        Raises:
            ImageError: no pixels, or more than fit in memory on the way.
        """
        if min(height, width) < 1:
            raise ImageError(
                f"an image has {width} x {height} pixels, expected at least 1 x 1: check the file"
            )
        first = self._first_size(height, width)
        second = self._whole_tiles(first) if self.splitting else (self.tile, self.tile)
        # Pillow mostly resizes across first: in between, a picture has its old height at the new width.
        for size in ((height, first[1]), first, (first[0], second[1]), second):
            check_resized((height, width), size)
        return first, second

    def _first_size(self, height: int, width: int) -> tuple[int, int]:
        if "height" in self.resize:
            return self.resize["height"], self.resize["width"]
        edge, ratio = self.resize["longest_edge"], width / height
        if width >= height:
            return _bounded((_even(int(edge / ratio)), edge))
        return _bounded((edge, _even(int(edge * ratio))))

    def _whole_tiles(self, size: tuple[int, int]) -> tuple[int, int]:
        """`size` made larger to whole tiles: first the longer edge, the other with it, then the other."""
        (height, width), ratio = size, size[1] / size[0]
        if width >= height:
            width = self._up(width)
            return self._up(int(width / ratio)), width
        height = self._up(height)
        return height, self._up(int(height * ratio))

    def _up(self, edge: int) -> int:
        return math.ceil(edge / self.tile) * self.tile

    def _mosaic(self, size: tuple[int, int]) -> tuple[int, int] | None:
        """(rows, columns) of the tiles; None where the picture is one tile."""
        rows, columns = size[0] // self.tile, size[1] // self.tile
        return None if rows == columns == 1 else (rows, columns)

    def _text(self, mosaic: tuple[int, int] | None) -> str:
        if mosaic is None:
            return self.single_text
        rows = (
            "".join(
                self.tile_text.replace("{row}", str(row + 1)).replace("{column}", str(column + 1))
                for column in range(mosaic[1])
            )
            for row in range(mosaic[0])
        )
        return "".join(row + self.row_end for row in rows) + self.overview_text


def _even(edge: int) -> int:
    """`edge` rounded up to an even number, which 0 is; and then at least 1."""
    return max(edge + edge % 2, 1)


def _bounded(size: tuple[int, int]) -> tuple[int, int]:
    """`size` with its longer edge at `_MAX_EDGE` at most; the shorter one need not stay even."""
    (height, width), ratio = size, size[1] / size[0]
    if width >= height and width > _MAX_EDGE:
        return max(int(_MAX_EDGE / ratio), 1), _MAX_EDGE
    if height > width and height > _MAX_EDGE:
        return _MAX_EDGE, max(int(_MAX_EDGE * ratio), 1)
    return size
