"""Which plots a report has, what they are called, and what a reader should see in them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from calib.report.heat import draw_map, kept_maps, score_map
from calib.report.layers import layers_plot, searched_ratio
from calib.report.look import DARK, LIGHT, Theme
from calib.report.pictures import Pictures
from calib.report.plots import Curve, cost_plot, ratio_plot
from calib.report.view import metric_name
from calib.settings import Setting
from calib.study import Study
from calib.summary import Summary

__all__ = ["Chart", "draw_charts"]

_ZOOM_BELOW = 0.9  # where a curve falls below this, what is near the constraint cannot be read off


@dataclass(frozen=True)
class Chart:
    """A plot: the name of its file, PNG for light and for dark pages, a description for those who cannot see
    it, and a caption."""

    name: str
    light: bytes
    dark: bytes
    alt: str
    caption: str


def draw_charts(study: Study, shown: Setting | None, pictures: Pictures) -> list[Chart]:
    """All plots, in the order of the page.

    Args:
        study: what was found.
        shown: the setting whose kept tokens are mapped; None: no map.
        pictures: of the bundle.
    """
    charts = _curves(study) if any(summary.samples for summary in study.summaries.values()) else []
    if shown is None:
        return charts
    records = [record for record in study.records if record.setting == shown]
    for turn, found in enumerate(kept_maps(study.data.samples, records, pictures), start=1):
        count = f"{found.images} picture{'s' * (found.images != 1)}"
        charts.append(
            _chart(
                f"kept_{turn}",
                lambda theme, found=found: draw_map(found, theme),  # type: ignore[misc]
                f"Heat map of how often each position was kept: {found.title}",
                f"{found.title}: {count}. Yellow is kept most often, dark blue least.",
            )
        )
    own = shown.selector in ("rank", "row") and (shown.layer, shown.aggregation) == (None, None)
    scores = score_map(study.data.samples, pictures) if own and pictures.scored else None
    if scores is not None:
        charts.append(
            _chart(
                "scores",
                lambda theme: draw_map(scores, theme, percent=False),
                "Heat map of the mean score of each position",
                f"The scores that decide, mean of {scores.images} pictures: 1 is the mean of a picture.",
            )
        )
    return charts


def _curves(study: Study) -> list[Chart]:
    limits, metric = study.limits, study.metric
    curve = Curve(
        study.summaries,
        lambda summary: summary.fraction(metric),
        metric_name(metric),
        None if metric == "accuracy" else limits.get("agreement"),  # there it is about a difference
        None if study.pick is None else study.pick.setting,
    )
    name = metric_name(metric)
    charts = [
        _chart(
            "agreement",
            lambda theme: ratio_plot(curve, theme),
            f"Curves of {name} against the ratio of tokens kept, one per selector",
            "One line per selector, 95\N{NO-BREAK SPACE}% intervals shaded. "
            "Coloured: FoPru's selectors. Grey: baselines.",
        )
    ]
    values = [point[2].low for line in curve.points().values() for point in line]
    if curve.least is not None and min(values) < _ZOOM_BELOW <= curve.least < 1:
        charts.append(
            _chart(
                "agreement_near",
                lambda theme: ratio_plot(curve, theme, zoom=True),
                f"The same curves, only what is near {100 * curve.least:g} %",
                "The same near what was asked for. The lower end of the interval must reach the red line.",
            )
        )
    charts += [
        _cost(curve, "ttft", lambda summary: 1000 * summary.ttft.mean, limits.get("ttft"), 1000),
        _cost(curve, "kv", lambda summary: summary.kv_bytes / 2**20, limits.get("kv"), 2**-20),
    ]
    ratio = searched_ratio(curve)
    if ratio is not None:
        charts.append(
            _chart(
                "layers",
                lambda theme: layers_plot(curve, ratio, theme),
                f"{name} by the layer and aggregation that score, at one ratio",
                "Other layers and aggregations at one ratio, where they were searched; some are measured on "
                "a part of the samples, which the table counts. The best of many looks better than it is.",
            )
        )
    if metric != "accuracy" and any(summary.accuracy is not None for summary in study.summaries.values()):
        accuracy = Curve(
            study.summaries, lambda summary: summary.accuracy, metric_name("accuracy"), None, curve.pick
        )
        charts.append(
            _chart(
                "accuracy",
                lambda theme: ratio_plot(accuracy, theme),
                "Curves of accuracy against the ratio of tokens kept, one per selector",
                "Labelled samples whose answer is the right one, 95\N{NO-BREAK SPACE}% intervals shaded.",
            )
        )
    return charts


_COSTS = {
    "ttft": ("time to first token, median, ms", "time to first token"),
    "kv": ("KV cache, mean, MiB", "the size of the KV cache"),
}


def _cost(
    curve: Curve, name: str, cost: Callable[[Summary], float], limit: float | None, scale: float
) -> Chart:
    axis, words = _COSTS[name]
    most = None if limit is None else limit * scale
    asked = "" if limit is None else " The upright red line is the most that was asked for."
    return _chart(
        f"agreement_{name}",
        lambda theme: cost_plot(curve, cost, axis, most, theme),
        f"Curves of {curve.name} against {words}, one per selector",
        f"The same against {words}: cheaper to the right, better at the top.{asked}",
    )


def _chart(name: str, draw: Callable[[Theme], bytes], alt: str, caption: str) -> Chart:
    return Chart(name, draw(LIGHT), draw(DARK), alt, caption)
