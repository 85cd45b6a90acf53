"""Pictures: opened as the runtime opens them, so that what passes here does not fail in a measurement."""

from __future__ import annotations

import hashlib
import warnings
from io import BytesIO
from pathlib import Path
from typing import Any

from calib.data.row import RowError
from runtime.errors import ImageError
from runtime.lazy import require
from runtime.preprocess import load_image

__all__ = ["Pictures", "open_picture", "picture_suffixes"]


def open_picture(source: Path | bytes) -> Any:
    """A picture of a `Sample` as an upright RGB `PIL.Image.Image`.

    Raises:
        runtime.ImageError: missing, damaged, too large to be safe, or not a picture.
    """
    if isinstance(source, Path):
        return load_image(source)
    pil = require("PIL.Image", "pillow")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", pil.DecompressionBombWarning)
            with pil.open(BytesIO(source)) as opened:
                opened.load()
                return load_image(opened)
    except pil.UnidentifiedImageError:
        raise ImageError(
            f"{len(source)} bytes are not a picture that Pillow can read: use PNG or JPEG"
        ) from None
    except (pil.DecompressionBombError, pil.DecompressionBombWarning) as error:
        raise ImageError(
            f"the picture is too large to open safely ({error}): make it smaller first"
        ) from error
    # Pillow's decoders report damage as any of these.
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        raise ImageError(
            f"{len(source)} bytes cannot be read as a picture ({error}): they are damaged"
        ) from error


def picture_suffixes() -> frozenset[str]:
    """Lower-case suffixes, as `.jpg`, of the formats that Pillow reads."""
    pil = require("PIL.Image", "pillow")
    return frozenset(suffix for suffix, kind in pil.registered_extensions().items() if kind in pil.OPEN)


class Pictures:
    """SHA-256 of pictures that can be decoded to the end. Each file is opened once, however many ask."""

    def __init__(self) -> None:
        self._known: dict[Path, str | RowError] = {}

    def digest(self, source: Path | bytes) -> str:
        """SHA-256 of the file's bytes, in hexadecimal.

        Raises:
            RowError: it is missing, or cannot be decoded to the end.
        """
        if isinstance(source, bytes):
            return _digest(source)
        if source not in self._known:
            try:
                self._known[source] = _digest(source)
            except RowError as reason:
                self._known[source] = reason
        known = self._known[source]
        if isinstance(known, RowError):
            raise RowError(str(known))
        return known


def _digest(source: Path | bytes) -> str:
    try:
        open_picture(source)
    except ImageError as error:
        raise RowError(str(error)) from None
    if isinstance(source, bytes):
        return hashlib.sha256(source).hexdigest()
    with source.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
