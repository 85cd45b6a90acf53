"""Images to `pixel_values`, bit-equal to the PIL/NumPy image processors of transformers 5.

Order: EXIF rotation, RGB, the views of the bundle's layout (`runtime/layouts/`), rescale, normalise.
Sources of the arithmetic, in transformers 5.23: `image_utils.load_image` (rotation, RGB) and
`image_transforms` (`rescale` in float64 cast to float32, `normalize` in float32).
"""

from __future__ import annotations

import stat
import warnings
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt

from runtime.errors import ImageError
from runtime.layouts import ImageLayout, ImagePlan
from runtime.lazy import require
from runtime.manifest import Preprocess

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["ImageSource", "PreparedImage", "check_image_array", "load_image", "load_pillow", "prepare"]

ImageSource: TypeAlias = "str | Path | Image.Image | npt.NDArray[np.uint8]"


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
            f"an image is of type {type(source).__name__}, expected a path, a PIL image or a uint8 "
            "array [H, W, 3]"
        )
    return _rgb(ops.exif_transpose(source), pil)  # a copy: the caller's image stays as it is


@dataclass(frozen=True)
class PreparedImage:
    """An image ready for the encoder: its plan, what the encoder looks at (uint8 [H, W, 3] per unit), and
    the same as `pixel_values` float32, in the layout's shape with units first."""

    plan: ImagePlan
    views: tuple[npt.NDArray[np.uint8], ...]
    pixel_values: npt.NDArray[np.float32]


def prepare(image: Image.Image, layout: ImageLayout, config: Preprocess) -> PreparedImage:
    """Plan an upright RGB image, cut it as the layout says, and normalise it.

    Raises:
        ImageError: a size that the model cannot take, or whose resized form would not fit in memory.
    """
    plan = layout.plan(image.height, image.width)
    levels = _normalised_levels(config)
    views = tuple(layout.views(image, config.resample))
    planes = np.stack([np.stack([levels[c][view[..., c]] for c in range(3)]) for view in views])
    return PreparedImage(plan, views, layout.pack(planes))


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
    # Pillow's decoders report damage as any of these, that of AVIF as RuntimeError.
    except (OSError, SyntaxError, ValueError, EOFError, RuntimeError) as error:
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


def check_image_array(array: npt.NDArray[Any]) -> None:
    """Whether an array is an image of `ImageSource`.

    Raises:
        ImageError: another dtype or shape, or no pixel.
    """
    fits = array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (1, 3, 4))
    if array.dtype != np.uint8 or not fits or 0 in array.shape:
        raise ImageError(
            f"an image array is {array.dtype} {list(array.shape)}, expected uint8 [H, W] or [H, W, 1, 3 or 4]"
        )


def _image_from_array(array: npt.NDArray[Any], pil: Any) -> Any:
    check_image_array(array)
    return pil.fromarray(array[..., 0] if array.ndim == 3 and array.shape[2] == 1 else array)


def _normalised_levels(config: Preprocess) -> npt.NDArray[np.float32]:
    """float32 [3, 256]: the value of every grey level, since only 256 of them exist per channel."""
    scaled = (np.arange(256, dtype=np.float64) * config.rescale_factor).astype(np.float32)
    mean, std = (np.asarray(values, np.float32).reshape(3, 1) for values in (config.mean, config.std))
    levels: npt.NDArray[np.float32] = (scaled[None] - mean) / std
    return levels
