"""Images to `pixel_values`, bit-equal to the PIL/NumPy image processors of transformers 5 (CLIP, SigLIP,
LLaVA).

Order: EXIF rotation, RGB, pad to square, resize by PIL (antialiased), centre crop, rescale, normalise.
Sources of the arithmetic, in transformers 5.23: `image_utils.load_image` (rotation, RGB) and
`image_transforms` (`resize`, `center_crop`, `rescale` in float64 cast to float32, `normalize` in float32).
"""

from __future__ import annotations

import stat
import warnings
from collections.abc import Iterable
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt

from runtime.errors import ImageError
from runtime.lazy import require
from runtime.manifest import Preprocess

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["ImageSource", "denormalise", "load_image", "load_pillow", "preprocess"]

ImageSource: TypeAlias = "str | Path | Image.Image | npt.NDArray[np.uint8]"

# A sliver of 1 x 20000 pixels, resized by its short side, becomes gigabytes of which the crop keeps a square.
_MAX_RESIZED_PIXELS = 1 << 26


def load_pillow() -> None:
    """Import Pillow and its usual file formats now, so that the first image does not pay for it."""
    require("PIL.Image", "pillow").preinit()
    require("PIL.ImageOps", "pillow")


def load_image(source: ImageSource) -> Image.Image:
    """Read an image as upright RGB.

    As in transformers, an alpha channel is dropped (the colours behind it show), one colour declared
    transparent turns white, and Pillow clips gray of more than 8 bits at 255: flatten or convert such images
    first where that matters.

    Args:
        source: a path, a PIL image, or uint8 [H, W], [H, W, 1|3|4].

    Raises:
        ImageError: missing, unreadable, truncated, too large to be safe, or not an image.
    """
    pil = require("PIL.Image", "pillow")
    ops = require("PIL.ImageOps", "pillow")
    if isinstance(source, (str, Path)):
        return _read_file(Path(source), pil, ops)
    if isinstance(source, np.ndarray):
        source = _image_from_array(source, pil)
    if not isinstance(source, pil.Image):
        raise ImageError(
            f"an image is a {type(source).__name__}, expected a path, a PIL image or a uint8 array [H, W, 3]"
        )
    return _rgb(ops.exif_transpose(source), pil)  # a copy: the caller's image stays as it is


def preprocess(images: Iterable[Image.Image], config: Preprocess) -> npt.NDArray[np.float32]:
    """Turn RGB images into `pixel_values` float32 [images, 3, H, W].

    Images are taken one at a time and not kept, so a generator that opens them holds one at full resolution.

    Raises:
        ImageError: no image, or an aspect ratio whose resized form would not fit in memory.
    """
    levels = _normalised_levels(config)
    # `map`, because the variable of a loop would hold an image while the next one is opened.
    planes = list(map(partial(_model_view, config=config), images))
    if not planes:
        raise ImageError("there is no image to preprocess: give at least one")
    return np.stack([np.stack([levels[c][plane[..., c]] for c in range(3)]) for plane in planes])


def denormalise(pixel_values: npt.NDArray[np.float32], config: Preprocess) -> npt.NDArray[np.uint8]:
    """The picture behind `pixel_values`: float32 [images, 3, H, W] to uint8 [images, H, W, 3], for people."""
    mean, std = (np.asarray(values, np.float64).reshape(1, 3, 1, 1) for values in (config.mean, config.std))
    levels = (pixel_values * std + mean) / config.rescale_factor
    return np.clip(np.rint(levels), 0, 255).astype(np.uint8).transpose(0, 2, 3, 1)


def _read_file(path: Path, pil: Any, ops: Any) -> Image.Image:
    try:
        kind = path.stat().st_mode
        if stat.S_ISDIR(kind):
            raise ImageError(f"{path} is a directory, expected an image file: check the path")
        # A pipe cannot be read twice, as Pillow does to find out the format.
        stream = path.open("rb") if stat.S_ISREG(kind) else BytesIO(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        raise ImageError(f"there is no image file at {path}: check the path") from None
    except (OSError, ValueError) as error:  # no permission, a name too long, a null byte
        raise ImageError(f"the image file {path} cannot be opened ({error}): check the path") from error
    try:
        with stream, warnings.catch_warnings():
            warnings.simplefilter("error", pil.DecompressionBombWarning)
            with pil.open(stream) as opened:
                opened.load()
                ops.exif_transpose(opened, in_place=True)  # nobody else has this image, so no copy
                return _rgb(opened, pil)
    except pil.UnidentifiedImageError:
        raise ImageError(f"{path} is not an image that Pillow can read: convert it to PNG or JPEG") from None
    except (pil.DecompressionBombError, pil.DecompressionBombWarning) as error:
        raise ImageError(f"{path} is too large to open safely ({error}): make it smaller first") from error
    # Pillow's decoders report damage as any of these.
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        raise ImageError(f"{path} cannot be read as an image ({error}): the file is damaged") from error


def _rgb(upright: Any, pil: Any) -> Image.Image:
    if isinstance(upright.info.get("transparency"), bytes):
        upright = upright.convert("RGBA")  # the same colours, without Pillow's warning
    rgb: Any = upright if upright.mode == "RGB" else upright.convert("RGB")
    if rgb.info.get("transparency") is not None:
        white = pil.new("RGBA", rgb.size, (255, 255, 255, 255))
        rgb = pil.alpha_composite(white, rgb.convert("RGBA")).convert("RGB")
    plain: Image.Image = rgb
    return plain


def _image_from_array(array: npt.NDArray[Any], pil: Any) -> Any:
    fits = array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (1, 3, 4))
    if array.dtype != np.uint8 or not fits or 0 in array.shape:
        raise ImageError(
            f"an image array is {array.dtype} {list(array.shape)}, expected uint8 [H, W] or [H, W, 1, 3 or 4]"
        )
    return pil.fromarray(array[..., 0] if array.ndim == 3 and array.shape[2] == 1 else array)


def _model_view(image: Image.Image, config: Preprocess) -> npt.NDArray[np.uint8]:
    """What the model looks at, uint8 [H, W, 3]: padded, resized and cropped, not yet normalised."""
    if config.pad_to_square is not None:
        image = _pad_to_square(image, config.pad_to_square)
    height, width = _resized_size(image.height, image.width, config.resize)
    if height * width > _MAX_RESIZED_PIXELS:
        raise ImageError(
            f"an image of {image.width} x {image.height} pixels would be resized to {width} x {height}: "
            "its aspect ratio is too extreme, crop it first"
        )
    pixels = np.asarray(image.resize((width, height), resample=config.resample))
    if config.crop is not None:
        pixels = _centre_crop(pixels, config.crop["height"], config.crop["width"])
    return pixels


def _pad_to_square(image: Image.Image, colour: tuple[int, int, int]) -> Image.Image:
    side = max(image.size)
    if image.size == (side, side):
        return image
    square: Image.Image = require("PIL.Image", "pillow").new("RGB", (side, side), colour)
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return square


def _resized_size(height: int, width: int, resize: dict[str, int]) -> tuple[int, int]:
    """(H, W) after the resize: fixed, or the short side fixed and the long side truncated."""
    if "height" in resize:
        return resize["height"], resize["width"]
    short, long = min(height, width), max(height, width)
    new_short, new_long = resize["shortest_edge"], int(resize["shortest_edge"] * long / short)
    return (new_long, new_short) if width <= height else (new_short, new_long)


def _centre_crop(pixels: npt.NDArray[np.uint8], height: int, width: int) -> npt.NDArray[np.uint8]:
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


def _normalised_levels(config: Preprocess) -> npt.NDArray[np.float32]:
    """float32 [3, 256]: the value of every grey level, since only 256 of them exist per channel."""
    scaled = (np.arange(256, dtype=np.float64) * config.rescale_factor).astype(np.float32)
    mean, std = (np.asarray(values, np.float32).reshape(3, 1) for values in (config.mean, config.std))
    levels: npt.NDArray[np.float32] = (scaled[None] - mean) / std
    return levels
