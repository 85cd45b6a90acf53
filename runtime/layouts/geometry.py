"""Steps that several layouts take with pictures."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from runtime.errors import ImageError

__all__ = ["MAX_RESIZED_PIXELS", "centre_crop", "check_resized"]

# A sliver of 1 x 20000 pixels, resized by its short side, becomes gigabytes of which the crop keeps a square.
MAX_RESIZED_PIXELS = 1 << 26


def check_resized(size: tuple[int, int], resized: tuple[int, int]) -> None:
    """Refuse an image of (H, W) `size` whose `resized` form would not fit in memory.

    Raises:
        ImageError: it would not.
    """
    (height, width), (new_height, new_width) = size, resized
    if new_height * new_width > MAX_RESIZED_PIXELS:
        raise ImageError(
            f"an image of {width} x {height} pixels would be resized to {new_width} x {new_height}: "
            "that does not fit in memory, crop it or make it smaller first"
        )


def centre_crop(pixels: npt.NDArray[np.uint8], height: int, width: int) -> npt.NDArray[np.uint8]:
    """Centre crop of [H, W, 3]; where the crop is larger than the image, the rest is black."""
    top, left = (pixels.shape[0] - height) // 2, (pixels.shape[1] - width) // 2
    if top >= 0 and left >= 0:
        return pixels[top : top + height, left : left + width]
    # Rounding as in the processors: the padding before the image is rounded up, the crop's own offset down.
    full = (max(height, pixels.shape[0]), max(width, pixels.shape[1]))
    pad_top, pad_left = -((pixels.shape[0] - full[0]) // 2), -((pixels.shape[1] - full[1]) // 2)
    padded = np.zeros((*full, 3), np.uint8)
    padded[pad_top : pad_top + pixels.shape[0], pad_left : pad_left + pixels.shape[1]] = pixels
    top, left = top + pad_top, left + pad_left
    return padded[max(0, top) : top + height, max(0, left) : left + width]
