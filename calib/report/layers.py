"""Where a search over layers and aggregations led: agreement at one ratio, by the layer that scores."""

from __future__ import annotations

import math
from collections import Counter

from calib.report.canvas import EndLabel, figure, label_ends, png
from calib.report.look import Theme
from calib.report.plots import Curve, is_searched, share_axis
from calib.settings import METHODS, Setting
from calib.summary import Interval

__all__ = ["layers_plot", "searched_ratio"]

_MARKERS = "osvP*X"


def searched_ratio(curve: Curve) -> float | None:
    """The ratio at which most layers and aggregations were measured, the lower of several; None: none was."""
    counts = Counter(setting.ratio for setting in _searched(curve))
    return min(counts, key=lambda ratio: (-counts[ratio], ratio)) if counts else None


def layers_plot(curve: Curve, ratio: float, theme: Theme) -> bytes:
    """One line per aggregation, with intervals; a level line for the bundle's own layer and aggregation."""
    made, axes = figure(theme)
    found = {setting: value for setting, value in _searched(curve).items() if setting.ratio == ratio}
    own = {
        setting: value
        for setting, value in _values(curve).items()
        if setting.ratio == ratio and not is_searched(setting)
        if setting.selector in {searched.selector for searched in found}
    }
    labels = []
    names = sorted({(setting.selector, setting.aggregation or "") for setting in found})
    for turn, (selector, aggregation) in enumerate(names):
        points = {
            setting.layer or 0: value
            for setting, value in found.items()
            if (setting.selector, setting.aggregation or "") == (selector, aggregation)
        }
        line = [(layer, points[layer]) for layer in sorted(points)]
        aside = 0.12 * (turn - (len(names) - 1) / 2)  # lines of equal height would hide each other
        layers, means = [layer + aside for layer, _ in line], [value.mean for _, value in line]
        colour = theme.colours[METHODS[turn % len(METHODS)]]
        lows, highs = [value.low for _, value in line], [value.high for _, value in line]
        axes.vlines(layers, lows, highs, color=colour, alpha=0.35, linewidth=5)
        axes.plot(layers, means, color=colour, marker=_MARKERS[turn % len(_MARKERS)], linewidth=2)
        labels.append(EndLabel(aggregation or selector, (layers[-1], means[-1]), colour, True))
    numbers = sorted({setting.layer or 0 for setting in found})
    axes.set_xlim(numbers[0] - 0.5, numbers[-1] + 0.5)
    axes.set_xticks(numbers[:: max(1, len(numbers) // 12)])
    for value in own.values():
        axes.axhline(value.mean, color=theme.soft, linewidth=1.2, linestyle="--")
        labels.append(EndLabel("as built", (numbers[-1] + 0.5, value.mean), theme.soft, False))
    share_axis(axes, [*found.values(), *own.values()])
    axes.set_xlabel(f"layer of the encoder that scores, {100 * ratio:.3g} % kept")
    axes.set_ylabel(curve.name)
    label_ends(axes, labels, theme)
    return png(made)


def _values(curve: Curve) -> dict[Setting, Interval]:
    values = {setting: curve.value(summary) for setting, summary in curve.summaries.items()}
    return {s: value for s, value in values.items() if value is not None and math.isfinite(value.mean)}


def _searched(curve: Curve) -> dict[Setting, Interval]:
    return {setting: value for setting, value in _values(curve).items() if setting.layer is not None}
