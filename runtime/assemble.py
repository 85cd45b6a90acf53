"""Which placeholders of an image stay, and what goes there, once the kept tokens are known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from runtime.layouts import NEWLINE, ImagePlan

__all__ = ["Assembly", "assemble"]


@dataclass(frozen=True)
class Assembly:
    """`source` int64 [rows]: row of the units' kept outputs, one unit after the other (prefix rows first in
    each), or `NEWLINE`; `places` int64 [rows]: which of the unpruned placeholders each one is; `runs`: rows
    of each run."""

    source: npt.NDArray[np.int64]
    places: npt.NDArray[np.int64]
    runs: tuple[int, ...]


def assemble(
    plan: ImagePlan, kept: Sequence[npt.NDArray[np.int64]], prefix: int, newline: str = "keep_all"
) -> Assembly:
    """Put an image together.

    Args:
        plan: of the image.
        kept: kept positions of each unit, ascending in 0..N-1.
        prefix: p, rows of every unit that always stay.
        newline: policy, see `PruningInfo`.
    """
    masks = []
    for unit, indices in zip(plan.units, kept, strict=True):
        mask = np.zeros(prefix + unit.tokens, np.bool_)
        mask[:prefix] = True
        mask[prefix + indices] = True
        masks.append(mask)
    stays = np.concatenate(masks)
    row_of = np.cumsum(stays) - 1
    is_newline = plan.sequence == NEWLINE
    keep = np.where(is_newline, newline != "drop", stays[plan.sequence])
    if newline == "keep_nonempty" and plan.lines is not None:
        filled = np.unique(plan.lines[keep & ~is_newline])
        keep &= ~is_newline | np.isin(plan.lines, filled)
    places = np.flatnonzero(keep)
    source = np.where(is_newline, NEWLINE, row_of[plan.sequence])[places]
    ends = np.cumsum(plan.runs)
    counts = np.diff(np.concatenate([[0], np.searchsorted(places, ends)]))
    return Assembly(source.astype(np.int64), places.astype(np.int64), tuple(int(count) for count in counts))
