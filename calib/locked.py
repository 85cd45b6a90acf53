"""Files that one run writes to at a time."""

from __future__ import annotations

import fcntl
from pathlib import Path
from typing import BinaryIO

from calib.errors import StoreError

__all__ = ["open_locked"]


def open_locked(path: Path) -> BinaryIO:
    """Open a file for reading and writing, made if absent; others are refused until it is closed or its
    process is gone.

    Raises:
        StoreError: another run has it, or it cannot be opened.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        # Unbuffered: a write that failed must not come again when the file is closed.
        file = path.open("r+b", buffering=0)
    except OSError as error:
        raise StoreError(
            f"{path} cannot be opened ({error.strerror}): choose another --work folder"
        ) from error
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        raise StoreError(
            f"another run writes to {path}: wait for it, or choose another --work folder"
        ) from None
    return file
