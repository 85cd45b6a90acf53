"""The curves of the report: agreement or accuracy against ratio, agreement against what it costs."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from calib.report.canvas import EndLabel, figure, label_ends, png
from calib.report.look import Look, Series, Theme, look_of, order_of, series_label, series_of
from calib.settings import BASELINES, Setting
from calib.summary import Interval, Summary

__all__ = ["Curve", "cost_plot", "is_searched", "ratio_plot", "share_axis"]

_End = tuple[Series, str, list[tuple[float, float]]]
"""A line's name, colour and points."""

_MOST_LINES = 12  # more labels do not fit beside the axes


@dataclass(frozen=True)
class Curve:
    """What a plot shows.

    Attributes:
        summaries: of all settings; those without `value` are left out.
        value: the quantity of the vertical axis, a fraction.
        name: what it is, for the axis.
        least: a line that must be reached; None: there is no such constraint.
        pick: the setting to mark, if any.
    """

    summaries: Mapping[Setting, Summary]
    value: Callable[[Summary], Interval | None]
    name: str
    least: float | None = None
    pick: Setting | None = None

    def points(self) -> dict[Series, list[tuple[Setting, Summary, Interval]]]:
        """The points of each line, high ratio to low; lines in the order of `order_of`. Other layers and
        aggregations have a plot of their own, but for those of the pick."""
        lines: dict[Series, list[tuple[Setting, Summary, Interval]]] = {}
        for setting, summary in self.summaries.items():
            value = self.value(summary)
            if is_searched(setting) and (self.pick is None or series_of(setting) != series_of(self.pick)):
                continue
            if value is not None and math.isfinite(value.mean):
                lines.setdefault(series_of(setting), []).append((setting, summary, value))
        for line in lines.values():
            line.sort(key=lambda point: -point[0].ratio)
        return {series: lines[series] for series in sorted(lines, key=order_of)}


def is_searched(setting: Setting) -> bool:
    """Whether it has another layer or aggregation than the bundle."""
    return (setting.layer, setting.aggregation) != (None, None)


def ratio_plot(curve: Curve, theme: Theme, zoom: bool = False) -> bytes:
    """The quantity against the ratio of tokens kept, with intervals; `zoom`: only what is near `least`."""
    made, axes = figure(theme)
    lines = curve.points()
    ends: list[_End] = []
    for series, turn in _turns(lines):
        line = lines[series]
        look = look_of(series[0], turn, theme)
        ratios = [setting.ratio for setting, _, _ in line]
        means = [value.mean for _, _, value in line]
        lows, highs = [value.low for _, _, value in line], [value.high for _, _, value in line]
        axes.fill_between(ratios, lows, highs, color=look.colour, alpha=look.shade, linewidth=0)
        name = "unpruned" if series[0] == "none" else series_label(series)
        axes.plot(ratios, means, color=look.colour, linestyle=look.dashes, label=name, **_dots(look))
        if len(line) == 1:  # an interval of one point has no width to shade
            axes.vlines(ratios, lows, highs, color=look.colour, linewidth=1)
        if series[0] != "none":
            ends.append((series, look.colour, list(zip(ratios, means, strict=True))))
    _ratio_axis(axes, [setting.ratio for line in lines.values() for setting, _, _ in line])
    values = [value for line in lines.values() for _, _, value in line]
    share_axis(axes, values, curve.least if zoom else None)
    _draw_least(axes, curve, theme)
    _mark_pick(axes, curve, theme, lambda setting, _: setting.ratio, zoom)
    axes.set_xlabel("visual tokens kept, % (logarithmic)")
    axes.set_ylabel(curve.name)
    if zoom:  # most lines leave it at the bottom, where labels would collide with them
        _legend(axes, theme)
    else:
        _label_lines(axes, ends, theme)
    return png(made)


def cost_plot(
    curve: Curve, cost: Callable[[Summary], float], name: str, most: float | None, theme: Theme
) -> bytes:
    """The quantity against a cost (less is better), one line per selector; `most`: a constraint on it."""
    made, axes = figure(theme)
    lines = curve.points()
    ends: list[_End] = []
    for series, turn in _turns(lines):
        line = lines[series]
        look = look_of(series[0], turn, theme)
        costs, means = [cost(summary) for _, summary, _ in line], [value.mean for _, _, value in line]
        # Thin lines: measured times are noisy, and so are lines through them.
        dots = {**_dots(look), "linewidth": look.width / 2}
        axes.plot(costs, means, color=look.colour, linestyle=look.dashes, **dots)
        if series[0] == "none":
            axes.annotate(
                "unpruned", (costs[0], means[0]), (0, -8), textcoords="offset points", ha="center", va="top",
                fontsize=8.5, color=theme.ink,
            )  # fmt: skip
        else:
            ends.append((series, look.colour, list(zip(costs, means, strict=True))))
    share_axis(axes, [value for line in lines.values() for _, _, value in line])
    costs = [cost(summary) for line in lines.values() for _, summary, _ in line] + (
        [] if most is None else [most]
    )
    # As in the plots against the ratio: cheaper to the right.
    axes.set_xlim(max(costs) * 1.06, min(costs) * 0.9)
    if curve.least is not None:
        axes.axhline(curve.least, color=theme.accent, linewidth=1, dashes=(6, 3))
    if most is not None:
        axes.axvline(most, color=theme.accent, linewidth=1, dashes=(6, 3))
    _mark_pick(axes, curve, theme, lambda _, summary: cost(summary))
    axes.set_xlabel(name)
    axes.set_ylabel(curve.name)
    _label_lines(axes, ends, theme)
    return png(made)


def _strong(series: Series) -> bool:
    return series[0] not in BASELINES


def _turns(lines: Mapping[Series, object]) -> list[tuple[Series, int]]:
    """Each line, baselines first so that they lie below, with its number among those of its selector."""
    seen: dict[str, int] = {}
    turns = []
    for series in lines:
        turns.append((series, seen.get(series[0], 0)))
        seen[series[0]] = seen.get(series[0], 0) + 1
    return sorted(turns, key=lambda turn: _strong(turn[0]))


def _dots(look: Look) -> dict[str, Any]:
    return {
        "linewidth": look.width,
        "marker": look.marker,
        "markersize": 6.0 if look.width > 2 else 5.5,
        "markeredgewidth": 1.2 if look.marker in "x+" else 0.8,
    }


def _draw_least(axes: Any, curve: Curve, theme: Theme) -> None:
    """The line that must be reached, named at the end where fewer points are near its name. The limits of the
    axes must be final."""
    if curve.least is None:
        return
    axes.axhline(curve.least, color=theme.accent, linewidth=1, dashes=(6, 3))
    to_axes = (axes.transData + axes.transAxes.inverted()).transform
    level = float(to_axes((1.0, curve.least))[1]) - 0.04
    dots = [to_axes((p[0].ratio, p[2].mean)) for line in curve.points().values() for p in line]
    room = [
        min((abs(float(y) - level) for x, y in dots if low <= x <= low + 0.3), default=1.0)
        for low in (0.0, 0.7)
    ]
    left = room[0] > room[1]
    axes.annotate(
        f"asked for: {100 * curve.least:g} %",
        xy=(0.0 if left else 1.0, curve.least),
        xycoords=("axes fraction", "data"),
        xytext=(4 if left else -4, -4),
        textcoords="offset points",
        ha="left" if left else "right",
        va="top",
        fontsize=8.5,
        color=theme.accent,
        bbox={"boxstyle": "square,pad=0.1", "facecolor": theme.paper, "edgecolor": "none", "alpha": 0.7},
    )


def _legend(axes: Any, theme: Theme) -> None:
    handles, names = axes.get_legend_handles_labels()
    order = sorted(range(len(names)), key=lambda index: names[index].split(",")[0] in BASELINES)[:_MOST_LINES]
    axes.figure.subplots_adjust(right=max(0.6, 0.83 - 0.0145 * max(len(names[index]) for index in order)))
    axes.legend(
        [handles[index] for index in order],
        [names[index] for index in order],
        loc="upper left",
        bbox_to_anchor=(1.0, 1.0),
        frameon=False,
        fontsize=9,
        labelcolor=theme.ink,
    )


def _ratio_axis(axes: Any, ratios: list[float]) -> None:
    """Logarithmic, all to few, with the measured ratios as ticks as far as they do not collide."""
    axes.set_xscale("log")
    ticks = [tick for index, tick in enumerate(sorted(set(ratios), reverse=True)) if index == 0 or tick > 0]
    shown: list[float] = []
    for tick in ticks:
        if not shown or shown[-1] / tick > 1.12:
            shown.append(tick)
    axes.set_xticks(shown, [f"{100 * tick:.3g}" for tick in shown])
    axes.set_xticks([], minor=True)
    low, high = min(ratios), max(ratios)
    axes.set_xlim(max(high, low * 1.3) * 1.08, low / 1.08)


def share_axis(axes: Any, values: list[Interval], zoom: float | None = None) -> None:
    """Percent; from below the lowest interval, or, if `zoom`, from as far below it as 100 % is above, and
    half of that again."""
    low = min((value.low for value in values), default=0.0)
    if zoom is not None:
        low = max(low, 1 - 2.5 * (1 - zoom), 0.0)
    low = min(low, 0.98)
    room = 0.04 * (1 - low)
    axes.set_ylim(max(low - room, 0.0) if low > 0 else -room, 1 + room)
    axes.yaxis.set_major_formatter(
        lambda share, _: f"{100 * share:.4g} %" if -1e-9 <= share <= 1 + 1e-9 else ""
    )


def _mark_pick(
    axes: Any, curve: Curve, theme: Theme, place: Callable[[Setting, Summary], float], zoom: bool = False
) -> None:
    """A ring around the picked point, and its name at the axis below it, where few lines are: to the left if
    there is room, to the right in a zoomed plot. The limits of the axes must be final."""
    summary = None if curve.pick is None else curve.summaries.get(curve.pick)
    value = None if summary is None else curve.value(summary)
    if curve.pick is None or summary is None or value is None:
        return
    where = (place(curve.pick, summary), value.mean)
    axes.plot(*where, marker="o", markersize=15, markerfacecolor="none", markeredgecolor=theme.accent,
              markeredgewidth=2, linestyle="none", zorder=5)  # fmt: skip
    axes.vlines(where[0], axes.get_ylim()[0], value.mean, color=theme.accent, linewidth=1, linestyle=":")
    # In parts of the axes' width, for which half of a plot is enough for the words.
    across = axes.transAxes.inverted().transform(axes.transData.transform(where))[0]
    right = zoom or across < 0.4
    axes.annotate(
        f"picked: {curve.pick.selector}, {100 * curve.pick.ratio:.3g} %",
        (where[0], 0.0),
        (5 if right else -5, 6),
        xycoords=("data", "axes fraction"),
        textcoords="offset points",
        ha="left" if right else "right",
        va="bottom",
        fontsize=9,
        fontweight="bold",
        color=theme.accent,
        zorder=6,
    )


def _label_lines(axes: Any, lines: list[_End], theme: Theme) -> None:
    """A label at the last point of each line that the axes show."""
    floor = axes.get_ylim()[0]
    labels = []
    for series, colour, points in lines:
        shown = [point for point in points if point[1] >= floor]
        if shown:
            labels.append(EndLabel(series_label(series), shown[-1], colour, _strong(series)))
    label_ends(axes, labels[:_MOST_LINES], theme)
