"""Where kept tokens lie: how often each position of the grid was kept, over all samples with that grid."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from calib.errors import RunError
from calib.report.canvas import figure, png
from calib.report.look import Theme
from runtime.layouts import ImagePlan, Unit
from runtime.lazy import require

if TYPE_CHECKING:
    from calib.data.sample import Sample
    from calib.record import Record
    from calib.report.pictures import Pictures

__all__ = ["KeptMap", "draw_map", "kept_maps", "score_map"]

_MOST_MAPS = 3
_STRETCHED = (16, 16)  # grid on which pictures of many shapes are laid over each other

Values = npt.NDArray[np.float64]


@dataclass(frozen=True)
class KeptMap:
    """`values` float64 [R, C] of `images` pictures, NaN where there was never a picture: how often each
    position was kept, 0..1; or the mean of scores."""

    title: str
    values: Values
    images: int


def kept_maps(samples: Sequence[Sample], records: Sequence[Record], pictures: Pictures) -> list[KeptMap]:
    """The maps of the most common grids; first, where there are more than that, one of all of them stretched
    to the same shape. Samples whose pictures cannot be opened any more are left out.

    Args:
        samples: of the data.
        records: of one setting.
        pictures: of the bundle that was measured.
    """
    by_name = {sample.name: sample for sample in samples}
    sums: dict[tuple[str, tuple[int, int]], tuple[Values, Values, int]] = {}
    for record in records:
        if record.error is not None or not record.kept or record.sample not in by_name:
            continue
        try:
            plans = pictures.plans(by_name[record.sample])
            kept = pictures.kept(plans, record.setting, record.kept)
        except RunError:
            continue  # named where its overlay would be
        for plan, units in zip(plans, kept, strict=True):
            for title, mask, valid in _grids(plan, units):
                rows, columns = mask.shape
                nothing = np.zeros(mask.shape)
                hits, chances, count = sums.get((title, (rows, columns)), (nothing, nothing, 0))
                sums[title, (rows, columns)] = hits + mask, chances + valid, count + 1
    ordered = sorted(sums.items(), key=lambda item: (-item[1][2], item[0]))
    maps = [KeptMap(f"{title}, grid {rows} × {columns}", _share(hits, chances), count)
            for (title, (rows, columns)), (hits, chances, count) in ordered]  # fmt: skip
    if len(maps) <= _MOST_MAPS:
        return maps
    total = sum(found.images for found in maps)
    joint = np.sum([_stretch(np.nan_to_num(found.values)) * found.images for found in maps], axis=0) / total
    return [KeptMap("pictures of all shapes, stretched", joint, total), *maps[: _MOST_MAPS - 1]]


def score_map(samples: Sequence[Sample], pictures: Pictures) -> KeptMap | None:
    """Mean of the bundle's own scores at each position, each picture's mean being 1, over a few samples
    spread through the data. None: their pictures have several shapes or tiles, or cannot be scored."""
    sums: dict[tuple[int, int], tuple[Values, int]] = {}
    step = max(1, len(samples) // max(1, pictures.scored))
    for sample in samples[::step][: pictures.scored]:
        try:
            plans, scores = pictures.plans(sample), pictures.scores(sample)
        except RunError:
            return None
        for plan, units in zip(plans, scores, strict=True):
            unit = plan.units[0]
            if len(plan.units) != 1 or unit.grid is None or unit.valid is not None:
                return None
            values = units[0].reshape(unit.grid).astype(np.float64)
            total, count = sums.get(unit.grid, (np.zeros(unit.grid), 0))
            sums[unit.grid] = total + values / max(float(values.mean()), 1e-30), count + 1
    if len(sums) != 1:
        return None
    ((total, count),) = sums.values()
    return KeptMap("mean score", total / count, count)


def draw_map(shown: KeptMap, theme: Theme, percent: bool = True) -> bytes:
    """The map with its colour scale, as PNG."""
    rows, columns = shown.values.shape
    width = 3.6 * min(columns / rows, 1.8)
    height = width * rows / columns
    full = width + 1.0, height + 0.2  # inches, with the colour scale, and space for half a number
    made, axes = figure(theme, full)
    axes.set_position((0.05 / full[0], 0.1 / full[1], width / full[0], height / full[1]))
    axes.grid(visible=False)
    most = max(float(np.nanmax(shown.values)), 1e-9)
    image = axes.imshow(
        shown.values, cmap="viridis", vmin=0, vmax=most, interpolation="nearest", aspect="auto"
    )
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)
    scale = made.add_axes(((width + 0.2) / full[0], 0.1 / full[1], 0.16 / full[0], height / full[1]))
    bar = made.colorbar(image, cax=scale)
    ticker = require("matplotlib.ticker", "matplotlib", "calib")
    if percent:
        bar.ax.yaxis.set_major_formatter(ticker.PercentFormatter(1, decimals=None, symbol=" %"))
    bar.ax.tick_params(colors=theme.soft, labelsize=9, length=0)
    bar.outline.set_visible(False)
    return png(made)


def _grids(
    plan: ImagePlan, kept: Sequence[npt.NDArray[np.int64]]
) -> Iterator[tuple[str, npt.NDArray[np.bool_], npt.NDArray[np.bool_]]]:
    """(title, kept, valid) of the whole picture, and of its tiles put together; nothing without a grid."""
    masks = [
        (_mask(unit, own), _mask(unit, unit.valid_indices))
        for unit, own in zip(plan.units, kept, strict=True)
    ]
    if any(unit.grid is None for unit in plan.units):
        return
    if plan.overview is None or plan.mosaic is None:
        for mask, valid in masks:
            yield "whole picture", mask, valid
        return
    yield "whole picture", *masks[plan.overview]
    tiles = [pair for index, pair in enumerate(masks) if index != plan.overview]
    kept_tiles, valid_tiles = ([pair[part] for pair in tiles] for part in (0, 1))
    yield "tiles put together", _stitch(kept_tiles, plan.mosaic), _stitch(valid_tiles, plan.mosaic)


def _mask(unit: Unit, positions: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    mask = np.zeros(unit.tokens, bool)
    mask[positions] = True
    return mask.reshape(unit.grid or (1, -1))


def _stitch(parts: Sequence[npt.NDArray[Any]], mosaic: tuple[int, int]) -> npt.NDArray[Any]:
    rows, columns = mosaic
    return np.concatenate(
        [np.concatenate(parts[row * columns : (row + 1) * columns], axis=1) for row in range(rows)]
    )


def _share(hits: Values, chances: Values) -> Values:
    return np.where(chances > 0, hits / np.maximum(chances, 1), np.nan)


def _stretch(values: Values) -> Values:
    """The nearest value at each place of the common grid."""
    places = [
        ((np.arange(new) + 0.5) * old / new).astype(int)
        for old, new in zip(values.shape, _STRETCHED, strict=True)
    ]
    return np.asarray(values[np.ix_(*places)], np.float64)
