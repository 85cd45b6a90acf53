"""How plots look: one colour, marker and line per selector, for light and for dark pages."""

from __future__ import annotations

from dataclasses import dataclass

from calib.settings import BASELINES, METHODS, Setting

__all__ = ["DARK", "LIGHT", "Look", "Series", "Theme", "look_of", "order_of", "series_label", "series_of"]

Series = tuple[str, int | None, str | None, str]
"""A setting without its ratio: (selector, layer, aggregation, precision); a line of a plot."""


@dataclass(frozen=True)
class Theme:
    """Colours of a page: the same as in `page.css`."""

    name: str
    paper: str
    ink: str
    soft: str
    grid: str
    accent: str
    colours: dict[str, str]


# Okabe and Ito's colours, which most colour-blind people can tell apart; baselines are greys. Lighter in the
# dark, so that lines keep their contrast; markers and dashes differ as well.
LIGHT = Theme(
    "light",
    paper="#ffffff",
    ink="#1c2128",
    soft="#5b6470",
    grid="#e1e5ea",
    accent="#b00020",
    colours={
        "rank": "#0072b2",
        "row": "#d55e00",
        "cls": "#009e73",
        "random": "#8a9099",
        "uniform": "#747b85",
        "resize": "#4b5158",
        "none": "#1c2128",
    },
)
DARK = Theme(
    "dark",
    paper="#171a1f",
    ink="#e8eaed",
    soft="#a7afb9",
    grid="#30363d",
    accent="#ff8a80",
    colours={
        "rank": "#56b4e9",
        "row": "#ff9a4d",
        "cls": "#3fd6a8",
        "random": "#8b929b",
        "uniform": "#a3aab3",
        "resize": "#c3c9d0",
        "none": "#e8eaed",
    },
)

_MARKERS = {"rank": "o", "row": "s", "cls": "^", "random": "x", "uniform": "+", "resize": "d", "none": "D"}
Dashes = str | tuple[int, tuple[int, ...]]
_DASHES: dict[str, Dashes] = {"random": ":", "uniform": "--", "resize": "-."}
# Further lines of one selector (layers, precisions): the same colour, another marker and dash.
_MORE: tuple[tuple[str, Dashes], ...] = (
    ("v", "--"),
    ("P", "-."),
    ("*", ":"),
    ("X", (0, (5, 1, 1, 1, 1, 1))),
    ("h", (0, (8, 2))),
)


@dataclass(frozen=True)
class Look:
    """Of one line: colour, marker, dashes, width in points, opacity of the interval behind it."""

    colour: str
    marker: str
    dashes: Dashes
    width: float
    shade: float


def look_of(selector: str, turn: int, theme: Theme) -> Look:
    """The look of the line number `turn` of a selector (0: the first, which has the usual look)."""
    strong = selector not in BASELINES
    marker, dashes = _MARKERS[selector], _DASHES.get(selector, "-")
    if turn:
        marker, dashes = _MORE[(turn - 1) % len(_MORE)]
    return Look(theme.colours[selector], marker, dashes, 2.2 if strong else 1.2, 0.16 if strong else 0.07)


def series_of(setting: Setting) -> Series:
    """The line that a setting is a point of."""
    return setting.selector, setting.layer, setting.aggregation, setting.precision


def series_label(series: Series) -> str:
    """`rank`, or `rank, layer 3, col_mean, int8` where these are not the bundle's."""
    selector, layer, aggregation, precision = series
    parts = [selector]
    if layer is not None:
        parts.append(f"layer {layer}")
    if aggregation is not None:
        parts.append(aggregation)
    if precision:
        parts.append(precision)
    return ", ".join(parts)


def order_of(series: Series) -> tuple[int, int, str, str]:
    """Sorts lines: the unpruned model, FoPru's selectors, then baselines; the bundle's own layer first."""
    selector, layer, aggregation, precision = series
    place = ("none", *METHODS, *BASELINES).index(selector)
    return place, -1 if layer is None else layer, aggregation or "", precision
