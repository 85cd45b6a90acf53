"""Pictures of a sample, opened: reading a file is not part of what is measured."""

from __future__ import annotations

import warnings
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runtime.errors import ImageError
from runtime.lazy import require
from runtime.preprocess import load_image, load_pillow

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["open_picture"]


def open_picture(source: Path | bytes) -> Image.Image:
    """An upright RGB picture from a file, or from the bytes of one.

    Raises:
        ImageError: missing, damaged, too large to be safe, or no picture.
    """
    load_pillow()
    if isinstance(source, Path):
        return load_image(source)
    return load_image(_decoded(source))


def _decoded(data: bytes) -> Any:
    pil = require("PIL.Image", "pillow")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", pil.DecompressionBombWarning)
            picture = pil.open(BytesIO(data))
            picture.load()
            return picture
    except pil.UnidentifiedImageError:
        raise ImageError(
            f"{len(data)} bytes of the data are not an image that Pillow can read: store a PNG or JPEG"
        ) from None
    except (pil.DecompressionBombError, pil.DecompressionBombWarning) as error:
        raise ImageError(
            f"an image of the data is too large to open safely ({error}): make it smaller first"
        ) from error
    # Pillow's decoders report damage as any of these, that of AVIF as RuntimeError.
    except (OSError, SyntaxError, ValueError, EOFError, RuntimeError) as error:
        raise ImageError(
            f"{len(data)} bytes of the data cannot be read as an image ({error}): they are damaged"
        ) from error
