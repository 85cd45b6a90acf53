"""One picture of one size per image (LLaVA-1.5): pad to square, resize, crop.

Order and rounding are those of the PIL/NumPy image processors of transformers 5 (CLIP, SigLIP, LLaVA):
`image_transforms` (`resize`, `center_crop`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import numpy.typing as npt

from runtime.errors import BundleError, ImageError
from runtime.layouts.base import IMAGE_SLOT, ImageLayout, ImagePlan, Unit, running_offsets
from runtime.layouts.geometry import centre_crop, check_resized
from runtime.lazy import require

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["SingleLayout"]

_REBUILD = "rebuild the bundle with `python -m export.build`"


@dataclass(frozen=True)
class SingleLayout(ImageLayout):
    """Every image becomes one picture of the same size.

    `resize` is `{"shortest_edge": n}` or `{"height": h, "width": w}`; `crop` (centred) is `{"height": h,
    "width": w}` or None; `pad_to_square` is the fill colour (0..255) or None. `grid` (R, C) of the `tokens`,
    None: no full grid.
    """

    kind: ClassVar[str] = "single"

    grid: tuple[int, int] | None
    tokens: int
    resize: dict[str, int]
    crop: dict[str, int] | None
    pad_to_square: tuple[int, int, int] | None
    prefix_tokens: int = 0

    def __post_init__(self) -> None:
        forms = ({"shortest_edge"}, {"height", "width"})
        if set(self.resize) not in forms or min(self.resize.values()) < 1:
            raise BundleError(
                f'layout.resize is {self.resize}, expected {{"shortest_edge": n}} or '
                f'{{"height": h, "width": w}}: {_REBUILD}'
            )
        if self.crop is not None and (set(self.crop) != forms[1] or min(self.crop.values()) < 1):
            raise BundleError(
                f'layout.crop is {self.crop}, expected {{"height": h, "width": w}} or null: {_REBUILD}'
            )
        if self.crop is None and "shortest_edge" in self.resize:
            raise BundleError(
                f"layout.resize keeps the aspect ratio, so layout.crop must say the final size: {_REBUILD}"
            )
        if self.pad_to_square is not None and not all(0 <= level <= 255 for level in self.pad_to_square):
            raise BundleError(
                f"layout.pad_to_square is {list(self.pad_to_square)}, expected three numbers 0..255 or null: "
                f"{_REBUILD}"
            )
        if self.grid is not None and min(self.grid) < 1:
            raise BundleError(f"layout.grid is {list(self.grid)}, expected numbers from 1 on: {_REBUILD}")
        if self.tokens < 1 or self.prefix_tokens < 0:
            raise BundleError(
                f"layout.tokens is {self.tokens} and layout.prefix_tokens {self.prefix_tokens}, "
                f"expected at least 1 and 0: {_REBUILD}"
            )
        if self.grid is not None and self.grid[0] * self.grid[1] != self.tokens:
            raise BundleError(
                f"layout.grid is {list(self.grid)}, which does not make layout.tokens {self.tokens}: "
                f"{_REBUILD}"
            )

    @property
    def image_size(self) -> tuple[int, int]:
        """(H, W) of what the vision encoder sees."""
        final = self.crop if self.crop is not None else self.resize
        return final["height"], final["width"]

    @property
    def pixel_shape(self) -> tuple[int | str, ...]:
        return ("images", 3, *self.image_size)

    @property
    def unit_tokens(self) -> int:
        return self.tokens

    @property
    def image_tokens(self) -> int:
        return self.tokens

    @property
    def unit_grid(self) -> tuple[int, int] | None:
        return self.grid

    @property
    def has_grid(self) -> bool:
        return self.grid is not None

    def plan(self, height: int, width: int) -> ImagePlan:
        if min(height, width) < 1:
            raise ImageError(
                f"an image has {width} x {height} pixels, expected at least 1 x 1: check the file"
            )
        side = max(height, width)
        check_resized((height, width), self._resized((side, side) if self.pad_to_square else (height, width)))
        rows = self.prefix_tokens + self.tokens
        return ImagePlan(
            units=(Unit(self.tokens, self.grid),),
            text=IMAGE_SLOT,
            runs=(rows,),
            sequence=np.arange(rows, dtype=np.int64),
            offsets=running_offsets((rows,)),
            spans=(rows,),
        )

    def views(self, image: Image.Image, resample: int) -> Sequence[npt.NDArray[np.uint8]]:
        if self.pad_to_square is not None:
            image = _pad_to_square(image, self.pad_to_square)
        height, width = self._resized((image.height, image.width))
        pixels = np.asarray(image.resize((width, height), resample=resample))
        if self.crop is not None:
            pixels = centre_crop(pixels, self.crop["height"], self.crop["width"])
        return (pixels,)

    def _resized(self, size: tuple[int, int]) -> tuple[int, int]:
        """(H, W) after the resize: fixed, or the short side fixed and the long side truncated."""
        if "height" in self.resize:
            return self.resize["height"], self.resize["width"]
        height, width = size
        short, long = min(size), max(size)
        new_short, new_long = self.resize["shortest_edge"], int(self.resize["shortest_edge"] * long / short)
        return (new_long, new_short) if width <= height else (new_short, new_long)


def _pad_to_square(image: Image.Image, colour: tuple[int, int, int]) -> Image.Image:
    side = max(image.size)
    if image.size == (side, side):
        return image
    square: Image.Image = require("PIL.Image", "pillow").new("RGB", (side, side), colour)
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return square
