"""Pictures: opened as a measurement opens them, so that what passes here does not fail there."""

from __future__ import annotations

import hashlib
from pathlib import Path

from calib.data.row import RowError
from calib.measure.pictures import open_picture
from runtime.errors import FopruError, ImageError
from runtime.lazy import require

__all__ = ["Pictures", "picture_suffixes"]


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
    # A pipe would be waited for without end, and cannot be read a second time, when it is measured.
    if isinstance(source, Path) and source.exists() and not (source.is_file() or source.is_dir()):
        raise RowError(f"{source} is no file, but a pipe or a device: store the picture in a file")
    try:
        open_picture(source)
        if isinstance(source, bytes):
            return hashlib.sha256(source).hexdigest()
        with source.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except ImageError as error:
        raise RowError(str(error)) from None
    except FopruError:
        raise  # not the picture's fault: Pillow is missing
    # Of a damaged picture, some decoders raise what nobody expects; it must not cost the others.
    except Exception as error:
        raise RowError(f"its picture cannot be read ({error}): the file is damaged") from error
