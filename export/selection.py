"""Which tokens FoPru keeps, in plain PyTorch on grids of scores: the rule of the oracle, read beside the
specification. It shares nothing with the graphs and the runtime, which it is there to be compared with."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from export.families.base import ImageUnits

__all__ = ["Budget", "kept_tokens"]


@dataclass(frozen=True)
class Budget:
    """A fraction `ratio` of each unit, or `tokens` for the whole image; neither keeps everything."""

    ratio: float | None
    tokens: int | None
    strategy: str = "rank"
    row_scope: str = "tile"


def kept_tokens(image: ImageUnits, scores: list[Tensor], valid: list[Tensor], budget: Budget) -> list[Tensor]:
    """Per unit of one image: bool, shaped as its scores.

    Args:
        image: its units.
        scores: float32 [R, C] or [N] per unit.
        valid: bool of the same shapes; where it is True is a rectangle.
        budget: how much is kept.
    """
    shares = _shares(image, [int(unit.sum()) for unit in valid], budget.tokens)
    if budget.strategy != "row":
        return [
            _best_tokens(unit, shown, _part(int(shown.sum()), budget.ratio) if share is None else share)
            for unit, shown, share in zip(scores, valid, shares, strict=True)
        ]
    if budget.row_scope == "stitched" and image.mosaic is not None and image.overview is not None:
        return _stitched(image, scores, valid, budget)
    return [
        _best_rows(unit, shown, share, budget.ratio)
        for unit, shown, share in zip(scores, valid, shares, strict=True)
    ]


def _part(total: int, ratio: float | None) -> int:
    """K of a ratio: rounded half up, at least 1; nothing of nothing."""
    if ratio is None or total == 0:
        return total
    return max(1, min(total, math.floor(total * ratio + 0.5)))


def _shares(image: ImageUnits, totals: list[int], tokens: int | None) -> list[int | None]:
    """Each unit that shows something gets an equal part; the rest goes to the whole picture, then
    to the others in order, as far as they hold it."""
    if tokens is None:
        return [None] * image.count
    shown = [index for index, total in enumerate(totals) if total]
    shares = [max(1, min(total, tokens // len(shown))) if total else 0 for total in totals]
    main = shown[0] if image.overview is None else image.overview
    for index in [main, *shown]:
        shares[index] += min(totals[index] - shares[index], tokens - sum(shares))
    return list(shares)


def _best_tokens(scores: Tensor, valid: Tensor, count: int) -> Tensor:
    """The `count` highest of the valid; ties go to the lower position."""
    places = valid.flatten().nonzero()[:, 0]
    order = torch.sort(scores.flatten()[places], descending=True, stable=True).indices
    kept = torch.zeros(valid.numel(), dtype=torch.bool)
    kept[places[order[:count]]] = True
    return kept.view(valid.shape)


def _best_rows(scores: Tensor, valid: Tensor, tokens: int | None, ratio: float | None) -> Tensor:
    """Whole rows by their mean over valid tokens: a part `ratio` of them, or as many as `tokens` pays for."""
    kept = torch.zeros(valid.shape, dtype=torch.bool)
    rows = valid.any(dim=1).nonzero()[:, 0]
    if not len(rows):
        return kept
    columns = valid.any(dim=0).nonzero()[:, 0]
    count = _part(len(rows), ratio) if tokens is None else tokens // len(columns)
    means = scores[rows][:, columns].mean(dim=1)
    best = rows[torch.sort(means, descending=True, stable=True).indices[:count]]
    kept[best] = valid[best]
    return kept


def _stitched(image: ImageUnits, scores: list[Tensor], valid: list[Tensor], budget: Budget) -> list[Tensor]:
    """The overview by its own rows, the tiles by the rows of the picture that they make together."""
    assert image.mosaic is not None
    assert image.overview is not None
    tiles = [index for index in range(image.count) if index != image.overview]
    shown = _put_together([valid[index] for index in tiles], image.mosaic)
    picture = _put_together([scores[index] for index in tiles], image.mosaic)
    share = _shares(image, [int(unit.sum()) for unit in valid], budget.tokens)[image.overview]
    rest = None if budget.tokens is None or share is None else budget.tokens - share
    overview = _best_rows(scores[image.overview], valid[image.overview], share, budget.ratio)
    stitched = _best_rows(picture, shown, rest, budget.ratio)
    rows, columns = scores[tiles[0]].shape
    cut = iter(
        [
            stitched[rows * y : rows * (y + 1), columns * x : columns * (x + 1)]
            for y in range(image.mosaic[0])
            for x in range(image.mosaic[1])
        ]
    )
    return [overview if index == image.overview else next(cut) for index in range(image.count)]


def _put_together(tiles: list[Tensor], mosaic: tuple[int, int]) -> Tensor:
    across = mosaic[1]
    lines = [torch.cat(tiles[start : start + across], dim=1) for start in range(0, len(tiles), across)]
    return torch.cat(lines, dim=0)
