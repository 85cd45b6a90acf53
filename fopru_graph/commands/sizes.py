"""Numbers with units, read from a command line and written for people."""

from __future__ import annotations

import re

from fopru_graph.errors import OptionError

__all__ = ["byte_size", "grid_size", "in_bytes"]

_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


def byte_size(text: str) -> int:
    """Bytes: `64MiB`, `1.5GB`, `4096`.

    Raises:
        OptionError: no number, or no such unit.
    """
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*)", text.strip())
    if match is None or match[2].upper() not in _UNITS:
        raise OptionError(f"size is '{text}', but it is a number of bytes, KiB, MiB or GiB, e.g. 64MiB")
    return int(float(match[1]) * _UNITS[match[2].upper()])


def grid_size(text: str) -> tuple[int, int] | str:
    """`24x24` as (24, 24), and the word `input` as it is.

    Raises:
        OptionError: neither of them.
    """
    if text == "input":
        return text
    match = re.fullmatch(r"([1-9][0-9]*)x([1-9][0-9]*)", text.lower())
    if match is None:
        raise OptionError(f"grid is '{text}', but it is ROWSxCOLUMNS, e.g. 24x24, or the word input")
    return int(match[1]), int(match[2])


def in_bytes(count: int) -> str:
    """A number of bytes in the unit that people read: `20.3 MiB`."""
    for unit, size in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count} bytes"
