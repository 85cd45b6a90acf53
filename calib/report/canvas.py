"""A figure in the colours of the page, its labels, and its PNG; matplotlib comes in here alone."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from calib.report.look import Theme
from runtime.lazy import require

__all__ = ["EndLabel", "figure", "label_ends", "png"]

_DPI = 190


def figure(theme: Theme, size: tuple[float, float] = (5.6, 3.75)) -> tuple[Any, Any]:
    """(figure, axes) of `size` inches. No pyplot: nothing global is changed, no display is needed."""
    require("matplotlib", "matplotlib", "calib")
    made = require("matplotlib.figure", "matplotlib", "calib").Figure(figsize=size)
    made.set_facecolor(theme.paper)
    made.subplots_adjust(left=0.13, right=0.85, bottom=0.14, top=0.97)
    axes = made.subplots()
    axes.set_facecolor(theme.paper)
    axes.grid(color=theme.grid, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=theme.soft, which="both", labelsize=9, length=0)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(theme.grid)
    axes.xaxis.label.set_color(theme.ink)
    axes.yaxis.label.set_color(theme.ink)
    return made, axes


def png(made: Any) -> bytes:
    """The figure as PNG; equal figures make equal bytes."""
    agg = require("matplotlib.backends.backend_agg", "matplotlib", "calib")
    agg.FigureCanvasAgg(made)
    stream = io.BytesIO()
    # Else matplotlib's version is in the file.
    made.savefig(stream, format="png", dpi=_DPI, metadata={"Software": None})
    return stream.getvalue()


@dataclass(frozen=True)
class EndLabel:
    """A label beside the end of a line: its text, the line's last point, and colour."""

    text: str
    point: tuple[float, float]
    colour: str
    strong: bool


def label_ends(axes: Any, labels: Sequence[EndLabel], theme: Theme) -> None:
    """Write labels at the right of the axes, each at the height of its line or as near as they do not
    collide; a thin line leads to it. The limits of the axes must be final. Those of points that are not shown
    are left out."""
    apart = 0.066  # of the height of the axes: a line of text
    to_axes = (axes.transData + axes.transAxes.inverted()).transform
    places = [(tuple(float(part) for part in to_axes(label.point)), label) for label in labels]
    ends = sorted((end for end in places if -0.01 <= end[0][1] <= 1.01), key=lambda end: -end[0][1])
    if not ends:
        return
    heights = _spread([end[0][1] for end in ends], apart)
    longest = max(len(label.text) for _, label in ends)
    axes.figure.subplots_adjust(right=max(0.6, 0.92 - 0.0145 * longest))
    for (point, label), height in zip(ends, heights, strict=True):
        axes.annotate(
            label.text,
            xy=point,
            xycoords="axes fraction",
            xytext=(1.03, height),
            textcoords="axes fraction",
            va="center",
            ha="left",
            fontsize=9.5 if label.strong else 8.5,
            fontweight="bold" if label.strong else "normal",
            color=label.colour if label.strong else theme.soft,
            annotation_clip=False,
            arrowprops={
                "arrowstyle": "-",
                "color": label.colour,
                "linewidth": 0.6,
                "alpha": 0.6,
                "shrinkA": 1,
            },
        )


def _spread(wanted: Sequence[float], apart: float) -> list[float]:
    """Heights near `wanted` (descending), at least `apart` from each other, inside 0..1 where there is
    room."""
    heights = list(wanted)
    for index in range(1, len(heights)):
        heights[index] = min(heights[index], heights[index - 1] - apart)
    low = min(0.0, 1.0 - apart * (len(heights) - 1))
    heights[-1] = max(heights[-1], low)
    for index in range(len(heights) - 2, -1, -1):
        heights[index] = max(heights[index], heights[index + 1] + apart)
    return heights
