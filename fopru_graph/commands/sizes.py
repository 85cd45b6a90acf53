"""Sizes on a command line, and byte counts for people."""

from __future__ import annotations

import argparse
import re
from typing import Literal

__all__ = ["byte_size", "bytes_text", "grid_size"]

_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


def byte_size(text: str) -> int:
    """Bytes from `64MiB`, `1GiB`, `512KB`, `1.5 GB` or `12345`.

    Raises:
        argparse.ArgumentTypeError: it is no such text, or less than one byte.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([a-z]*)", text.strip(), re.IGNORECASE | re.ASCII)
    unit = _UNITS.get(match[2].upper()) if match else None
    size = int(float(match[1]) * unit) if match and unit else 0
    if size < 1:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no size: give a number of bytes >= 1, or one with KB, MB, GB, KiB, MiB or GiB, as "
            "in 64MiB"
        )
    return size


def grid_size(text: str) -> tuple[int, int] | Literal["input"]:
    """(rows, columns) from `24x24`; the word `input` as it is.

    Raises:
        argparse.ArgumentTypeError: it is neither.
    """
    if text == "input":
        return "input"
    match = re.fullmatch(r"(\d{1,9})x(\d{1,9})", text.lower(), re.ASCII)
    if match is None:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no grid: give ROWSxCOLUMNS of the tokens, as in 24x24, or the word input"
        )
    return int(match[1]), int(match[2])


def bytes_text(count: int) -> str:
    """In the unit that people read: `20.3 MiB`."""
    for unit, size in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count} bytes"
