"""The tiles of an image as one grid: rows that run through all tiles side by side."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from runtime.layouts.base import ImagePlan

__all__ = ["stitched_grid", "stitched_rows_kept"]


def stitched_grid(plan: ImagePlan) -> tuple[int, int]:
    """(R, C) of the valid tokens of all tiles together."""
    places = _places(plan)
    return places.shape


def stitched_rows_kept(
    plan: ImagePlan, scores: Sequence[npt.NDArray[np.float32]], count: int
) -> list[npt.NDArray[np.int64]]:
    """Kept tokens of every unit but the overview, whose entry is empty: the best rows of the stitched
    picture.

    Args:
        plan: with a mosaic and an overview.
        scores: float32 [N] per unit.
        count: tokens to keep, a multiple of the stitched row's length.

    Returns:
        ascending int64 positions per unit.
    """
    places = _places(plan)
    if not places.size:
        return [np.zeros(0, np.int64) for _ in plan.units]
    flat = np.concatenate(list(scores))
    means = flat[places].mean(axis=1)
    rows = np.argsort(-means, kind="stable")[: count // places.shape[1]]
    chosen = np.sort(places[rows].reshape(-1))
    starts = np.cumsum([0, *(unit.tokens for unit in plan.units)])
    return [chosen[(chosen >= start) & (chosen < end)] - start for start, end in pairwise(starts)]


def _places(plan: ImagePlan) -> npt.NDArray[np.int64]:
    """int64 [R, C]: number of the token (counted through all units) at each place of the stitched picture."""
    assert plan.mosaic is not None
    assert plan.overview is not None
    rows, columns = plan.mosaic
    starts = np.cumsum([0, *(unit.tokens for unit in plan.units)])
    tiles = [
        (starts[index] + unit.valid_indices).reshape(unit.valid_grid or (0, 0))
        for index, unit in enumerate(plan.units)
        if index != plan.overview
    ]
    # A tile of padding alone has no rows or no columns: it adds nothing.
    bands = [
        [tile for tile in tiles[row * columns : (row + 1) * columns] if tile.size] for row in range(rows)
    ]
    if not any(bands):  # a sliver
        return np.zeros((0, 0), np.int64)
    places: npt.NDArray[np.int64] = np.concatenate([np.concatenate(band, axis=1) for band in bands if band])
    return places
