"""The curves of the report: that they can be drawn of every study, and that they show what they should."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

from calib.report.canvas import EndLabel, figure, label_ends
from calib.report.charts import draw_charts
from calib.report.layers import layers_plot, searched_ratio
from calib.report.look import DARK, LIGHT, Theme
from calib.report.pictures import Pictures
from calib.report.plots import Curve, cost_plot, ratio_plot
from calib.settings import REFERENCE, SELECTORS, Setting
from calib.summary import Interval, Summary
from tests.calib_studies import PICKED, study, summaries, summary


def curve(found: dict[Setting, Summary] | None = None, pick: Setting | None = PICKED) -> Curve:
    return Curve(
        summaries() if found is None else found, lambda summary: summary.first, "agreement", 0.9, pick
    )


def has(content: bytes, colour: str) -> int:
    """Pixels of exactly this colour."""
    pixels = np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))
    wanted = [int(colour[place : place + 2], 16) for place in (1, 3, 5)]
    return int((pixels == wanted).all(axis=2).sum())


@pytest.mark.parametrize("theme", [LIGHT, DARK], ids=["light", "dark"])
def test_each_selector_is_drawn_in_its_colour_on_the_paper_of_the_page(theme: Theme) -> None:
    drawn = ratio_plot(curve(), theme)
    assert has(drawn, theme.paper) > 100_000
    for selector in ("rank", "row", "cls"):
        assert has(drawn, theme.colours[selector]) > 300
        without = ratio_plot(curve({s: v for s, v in summaries().items() if s.selector != selector}), theme)
        assert has(without, theme.colours[selector]) == 0


def test_the_pick_and_the_constraint_are_marked() -> None:
    plain = Curve(summaries(), lambda summary: summary.first, "agreement")
    assert has(ratio_plot(plain, LIGHT), LIGHT.accent) == 0
    marked = has(ratio_plot(curve(), LIGHT), LIGHT.accent)
    line_alone = has(ratio_plot(curve(pick=None), LIGHT), LIGHT.accent)
    assert marked > line_alone > 0
    cost = has(cost_plot(plain, lambda s: s.ttft.mean, "s", None, LIGHT), LIGHT.accent)
    assert cost == 0
    assert has(cost_plot(plain, lambda s: s.ttft.mean, "s", 0.1, LIGHT), LIGHT.accent) > 0


def test_equal_curves_make_equal_bytes_without_the_version_of_matplotlib() -> None:
    first, second = ratio_plot(curve(), LIGHT), ratio_plot(curve(), LIGHT)
    assert first == second
    assert b"matplotlib" not in first.lower()


def _one(setting: Setting, found: Summary) -> dict[Setting, Summary]:
    return {REFERENCE: summary(1.0, 1.0), setting: found}


NOTHING = Interval(float("nan"), float("nan"), float("nan"))


@pytest.mark.parametrize(
    "found",
    [
        {REFERENCE: summary(1.0, 1.0)},
        {PICKED: summary(0.9, 0.5)},
        _one(PICKED, summary(0.0, 0.5)),
        _one(PICKED, summary(1.0, 0.5)),
        _one(PICKED, summary(0.9, 0.5, samples=0, first=NOTHING)),
        {Setting("rank", ratio): summary(0.5, ratio) for ratio in np.linspace(0.01, 0.99, 60).tolist()},
        {
            Setting("rank", 0.5, precision=f"precision {number}"): summary(0.5 + number / 100, 0.5)
            for number in range(48)
        },
    ],
    ids=["unpruned", "one", "never", "always", "failed", "many ratios", "many lines"],
)
def test_every_study_can_be_drawn(found: dict[Setting, Summary]) -> None:
    for zoom in (False, True):
        assert ratio_plot(curve(found), LIGHT, zoom).startswith(b"\x89PNG")
    assert cost_plot(curve(found), lambda summary: summary.kv_bytes, "B", None, LIGHT).startswith(b"\x89PNG")


@pytest.mark.parametrize("ends", [[0.5] * 6, [1.0, 0.99, 0.0, 0.01, 0.5], [0.0] * 20, [0.3]])
def test_labels_do_not_collide(ends: list[float]) -> None:
    made, axes = figure(LIGHT)
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
    label_ends(
        axes, [EndLabel(f"line {n}", (1.0, end), "#000000", True) for n, end in enumerate(ends)], LIGHT
    )
    heights = sorted(text.xyann[1] for text in axes.texts)
    assert len(heights) == len(ends)
    assert min(np.diff(heights), default=1.0) > 0.06  # of the axes: a line of text
    if len(ends) < 10:  # else there is no room
        assert heights[0] > -0.01
        assert heights[-1] < 1.01
    del made


def test_labels_of_lines_that_are_not_shown_are_left_out() -> None:
    _, axes = figure(LIGHT)
    axes.set_ylim(0.9, 1)
    ends = [EndLabel("in", (1.0, 0.95), "#000000", True), EndLabel("out", (1.0, 0.2), "#000000", True)]
    label_ends(axes, ends, LIGHT)
    assert [text.get_text() for text in axes.texts] == ["in"]


class _NoPictures(Pictures):
    def __init__(self) -> None:
        self.scored = 0


def test_which_plots_there_are() -> None:
    def names(**changes: Any) -> list[str]:
        return [chart.name for chart in draw_charts(study(**changes), None, _NoPictures())]

    usual = ["agreement", "agreement_near", "agreement_ttft", "agreement_kv"]
    assert names() == [*usual, "accuracy"]
    without_labels = {
        setting: summary(found.first.mean, setting.ratio, accuracy=None)
        for setting, found in summaries().items()
    }
    assert names(summaries=without_labels) == usual
    right = [
        name for name in usual if name != "agreement_near"
    ]  # 0.98 is no level: accuracy may drop by 0.02
    assert names(metric="accuracy") == right
    assert names(limits={"ttft": 0.1}) == [name for name in (*usual, "accuracy") if name != "agreement_near"]
    assert names(limits={"agreement": 1.0})[1] == "agreement_ttft"
    searched = summaries() | {Setting("rank", 0.5, layer, "cls"): summary(0.9, 0.5) for layer in range(3)}
    assert names(summaries=searched) == [*usual, "layers", "accuracy"]
    assert names(summaries={}) == []
    assert names(summaries={REFERENCE: summary(0, 1, samples=0, first=NOTHING)}) == []


def test_captions_say_what_the_lines_are() -> None:
    charts = {chart.name: chart for chart in draw_charts(study(limits={"kv": 2**20}), None, _NoPictures())}
    assert "Grey: baselines" in charts["agreement"].caption
    assert "The upright red line is the most that was asked for." in charts["agreement_kv"].caption
    assert "red line" not in charts["agreement_ttft"].caption
    assert charts["agreement"].alt == (
        "Curves of first token as unpruned against the ratio of tokens kept, one per selector"
    )
    assert {chart.light[:4] for chart in charts.values()} == {b"\x89PNG"}
    assert len(SELECTORS) == 6  # markers and colours are made for as many


def test_other_layers_are_no_lines_of_the_curves_but_those_of_the_pick() -> None:
    searched = {Setting("rank", ratio, 3, "cls"): summary(0.9, ratio) for ratio in (0.5, 0.25)}
    with_search = summaries(("rank", "random")) | searched
    names = [series[:3] for series in curve(with_search).points()]
    assert names == [("none", None, None), ("rank", None, None), ("random", None, None)]
    picked = curve(with_search, Setting("rank", 0.25, 3, "cls")).points()
    assert [len(picked[series]) for series in picked if series[1] == 3] == [2]


def test_layers_are_shown_at_the_ratio_where_most_were_measured() -> None:
    own = summaries(("rank", "random"))
    assert searched_ratio(curve(own)) is None
    tried = {Setting("rank", 0.5, layer, name): summary(0.6 + layer / 20, 0.5)
             for layer in range(4) for name in ("cls", "col_mean")}  # fmt: skip
    own |= tried | {Setting("rank", 0.25, 2, "cls"): summary(0.9, 0.25)}
    assert searched_ratio(curve(own)) == 0.5
    for theme in (LIGHT, DARK):
        drawn = layers_plot(curve(own), 0.5, theme)
        assert has(drawn, theme.colours["rank"]) > 300
        assert has(drawn, theme.colours["row"]) > 300
    without = layers_plot(curve(tried), 0.5, LIGHT)
    assert without != layers_plot(curve(own), 0.5, LIGHT)  # the bundle's own is a level line
    failed = {Setting("rank", 0.5, 1, "cls"): summary(0, 0.5, samples=0, first=NOTHING)}
    assert searched_ratio(curve(failed)) is None
