"""Rows that cannot be used: counted, the first shown, all of them in a file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from calib.data.sample import Data, Skipped
from runtime.output import write_whole

__all__ = ["list_skipped", "skipped_lines"]

_FILE = "skipped.txt"
_SHOWN = 5  # on the screen


def list_skipped(data: Data, folder: Path) -> list[str]:
    """Write all into `skipped.txt` of a folder that is there; lines to show.

    Raises:
        OSError: it cannot be written.
    """
    where = folder / _FILE
    where.unlink(missing_ok=True)
    if data.skipped:
        write_whole(where, "".join(f"{row.where}: {row.reason}\n" for row in data.skipped).encode())
    return skipped_lines(data.skipped, len(data.samples), str(where))


def skipped_lines(skipped: Sequence[Skipped], samples: int, where: str) -> list[str]:
    """The count, the first five, and where all are; nothing where no row was skipped."""
    if not skipped:
        return []
    rows = "1 row" if len(skipped) == 1 else f"{len(skipped)} rows"
    lines = [f"skipped, as they cannot be used: {rows}; samples left: {samples}"]
    lines += [f"  {row.where}: {row.reason}" for row in skipped[:_SHOWN]]
    if len(skipped) > _SHOWN:
        lines.append(f"  and {len(skipped) - _SHOWN} more, all of them in {where}")
    return lines
