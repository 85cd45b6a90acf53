"""The plots of the joint choice: fidelity against what it costs, a line per precision, the front behind."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from calib.joint.candidate import Candidate
from calib.report.canvas import figure, png
from calib.report.look import Theme
from calib.report.plots import share_axis
from calib.report.words import as_ratio

__all__ = ["CostPlot", "cost_front_plot"]

# Lines of precisions, by turn: selectors have the same colours, but no page shows both.
_COLOURS = ("none", "rank", "row", "cls")
_MARKERS = ("D", "o", "s", "^", "v", "P", "X", "*")
_FRONT = "best for its cost"
_DASHES = ("-", "--", "-.", ":")


@dataclass(frozen=True)
class CostPlot:
    """What a plot shows.

    Attributes:
        candidates: of all precisions; those that were not measured are left out.
        labels: precisions in their order, which gives each its colour.
        cost: the horizontal axis, in the unit that `name` says; less is better.
        on_front: whether nothing is at least as faithful for less of it.
        name: of the horizontal axis.
        metric: of the vertical axis.
        least: fidelity that is asked for, a line; None: none is.
        most: cost that is asked for, in the unit of `cost`; None: none is.
        chosen: to be marked, if any.
    """

    candidates: Sequence[Candidate]
    labels: Sequence[str]
    cost: Callable[[Candidate], float]
    on_front: Callable[[Candidate], bool]
    name: str
    metric: str
    least: float | None = None
    most: float | None = None
    chosen: Candidate | None = None

    def lines(self) -> dict[str, list[Candidate]]:
        """Measured points of each precision, high ratio to low."""
        lines: dict[str, list[Candidate]] = {label: [] for label in self.labels}
        for each in self.candidates:
            if math.isfinite(each.fidelity.mean) and math.isfinite(self.cost(each)):
                lines[each.label].append(each)
        return {label: sorted(line, key=lambda c: -c.setting.ratio) for label, line in lines.items() if line}


def cost_front_plot(plot: CostPlot, theme: Theme) -> bytes:
    """The lower bound of fidelity, which is what counts, against a cost: cheaper to the right. A big hollow
    mark is a precision unpruned."""
    made, axes = figure(theme)
    lines = plot.lines()
    shown = [each for line in lines.values() for each in line]
    share_axis(axes, [each.fidelity for each in shown])
    _cost_axis(axes, [plot.cost(each) for each in shown], plot.most)
    _draw_front(axes, plot, shown, theme)
    for label, line in lines.items():
        turn = list(plot.labels).index(label)
        colour, marker = theme.colours[_COLOURS[turn % len(_COLOURS)]], _MARKERS[turn % len(_MARKERS)]
        dashes = _DASHES[turn // len(_COLOURS) % len(_DASHES)]
        costs, lows = [plot.cost(each) for each in line], [each.fidelity.low for each in line]
        # Thin lines: measured times are noisy, and so are lines through them.
        axes.plot(costs, lows, color=colour, linestyle=dashes, linewidth=1, alpha=0.55)
        axes.plot(costs, lows, color=colour, marker=marker, linestyle="none", markersize=5.5,
                  label=_wrapped(label))  # fmt: skip
        if line[0].setting.selector == "none":
            axes.plot(costs[0], lows[0], marker=marker, markersize=9, markerfacecolor=theme.paper,
                      markeredgecolor=colour, markeredgewidth=1.6, linestyle="none", zorder=4)  # fmt: skip
    _draw_limits(axes, plot, theme)
    _mark_chosen(axes, plot, theme)
    axes.set_xlabel(plot.name)
    axes.set_ylabel(f"{plot.metric}, at least")
    _legend(axes, plot, theme)
    return png(made)


def _legend(axes: Any, plot: CostPlot, theme: Theme) -> None:
    """Beside the axes: ends of lines lie on one another here."""
    longest = max(len(line) for label in plot.labels for line in _wrapped(label).split("\n"))
    axes.figure.subplots_adjust(right=max(0.6, 0.88 - 0.0115 * max(longest, len(_FRONT))))
    axes.legend(
        loc="upper left",
        bbox_to_anchor=(1.0, 1.0),
        frameon=False,
        fontsize=9,
        labelcolor=theme.ink,
        handletextpad=0.3,
    )


def _wrapped(label: str) -> str:
    return label.replace(", ", ",\n")


def _cost_axis(axes: Any, costs: list[float], most: float | None) -> None:
    """Cheaper to the right; a limit is shown where it is not far from what was measured."""
    low, high = min(costs), max(costs)
    if most is not None and low / 2 <= most <= high * 2:
        low, high = min(low, most), max(high, most)
    room = 0.06 * ((high - low) or high or 1.0)
    axes.set_xlim(high + room, max(low - room, 0.0))


def _draw_front(axes: Any, plot: CostPlot, shown: Sequence[Candidate], theme: Theme) -> None:
    """A staircase: at each cost the best lower bound that can be had for it."""
    front = sorted((each for each in shown if plot.on_front(each)), key=plot.cost)
    if not front:
        return
    costs, lows = [plot.cost(each) for each in front], [each.fidelity.low for each in front]
    dear = axes.get_xlim()[0]
    axes.plot([*costs, dear], [*lows, lows[-1]], drawstyle="steps-post", color=theme.ink, alpha=0.18,
              linewidth=7, solid_capstyle="round", solid_joinstyle="round", zorder=1,
              label=_FRONT)  # fmt: skip


def _draw_limits(axes: Any, plot: CostPlot, theme: Theme) -> None:
    if plot.least is not None:
        axes.axhline(plot.least, color=theme.accent, linewidth=1, dashes=(6, 3))
    low, high = sorted(axes.get_xlim())
    if plot.most is not None and low <= plot.most <= high:
        axes.axvline(plot.most, color=theme.accent, linewidth=1, dashes=(6, 3))


def _mark_chosen(axes: Any, plot: CostPlot, theme: Theme) -> None:
    """A ring around it with its name above, or below where there is no room. The limits of the axes must be
    final."""
    chosen = plot.chosen
    if chosen is None:
        return
    where = (plot.cost(chosen), chosen.fidelity.low)
    axes.plot(*where, marker="o", markersize=15, markerfacecolor="none", markeredgecolor=theme.accent,
              markeredgewidth=2, linestyle="none", zorder=5)  # fmt: skip
    across, up = axes.transAxes.inverted().transform(axes.transData.transform(where))
    right, high = across < 0.5, up > 0.85
    axes.annotate(
        "picked: " + ("unpruned" if chosen.setting.ratio == 1.0 else as_ratio(chosen.setting.ratio)),
        where,
        (0 if right else 5, -13 if high else 13),
        textcoords="offset points",
        ha="left" if right else "right",
        va="top" if high else "bottom",
        fontsize=9,
        fontweight="bold",
        color=theme.accent,
        bbox={"boxstyle": "square,pad=0.1", "facecolor": theme.paper, "edgecolor": "none", "alpha": 0.7},
        zorder=6,
    )
