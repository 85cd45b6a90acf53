"""The picture of a run: time to first token and decoding speed of every engine at every ratio."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bench.vlm.base import DECODE, PREFILL, TTFT, VISION
from bench.vlm.figures import VlmRun

__all__ = ["draw"]

VISION_COLOUR, PREFILL_COLOUR, DECODE_COLOUR, PREDICTED_COLOUR = "#2b6ca3", "#7fb2dd", "#5a9e6f", "#222222"
HEIGHT, ROW_INCHES = 0.72, 0.27


def draw(run: VlmRun, target: Path) -> Path:
    """Draw two panels of horizontal bars, one row per engine and ratio; writes a PNG and returns its path."""
    import matplotlib

    matplotlib.use("Agg")  # no display on a server
    from matplotlib import pyplot

    rows = [(entry, ratio) for entry in run.good for ratio in entry.spec.ratios]
    size = (11.5, 1.6 + ROW_INCHES * len(rows))
    figure, (first, speed) = pyplot.subplots(
        1, 2, figsize=size, dpi=110, sharey=True, layout="constrained", width_ratios=(3, 2)
    )
    labels = []
    for place, (entry, ratio) in enumerate(rows):
        name = f"{entry.name} (decoder)" if entry.spec.peer else entry.name
        labels.append(f"{name}   {ratio:g}")
        _draw_first_token(first, run, (entry.name, ratio), place)
        decode = run.seconds(entry.name, DECODE, ratio)
        if decode:
            speed.barh(place, 1 / decode, HEIGHT, color=DECODE_COLOUR)
            speed.annotate(f" {1 / decode:.0f}", (1 / decode, place), va="center", fontsize=8)
    first.set_yticks(range(len(rows)), labels, fontsize=8)
    first.invert_yaxis()
    for axes, title in ((first, "Time to first token, seconds"), (speed, "Decoding, tokens per second")):
        axes.set_title(title, loc="left", fontsize=11)
        axes.spines[["top", "right"]].set_visible(False)
        axes.margins(x=0.08, y=0.01)
    handles, names = first.get_legend_handles_labels()
    unique = dict(zip(names, handles, strict=True))
    first.legend(unique.values(), unique.keys(), frameon=False, fontsize=8, loc="lower right")
    target.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(target)
    pyplot.close(figure)
    return target


def _draw_first_token(axes: Any, run: VlmRun, which: tuple[str, float], place: int) -> None:
    engine, ratio = which
    vision, prefill, total = (run.seconds(engine, figure, ratio) for figure in (VISION, PREFILL, TTFT))
    start = vision or 0.0
    end = total or prefill or 0.0  # a language model alone has no time to first token
    if vision:
        axes.barh(place, vision, HEIGHT, color=VISION_COLOUR, label="vision encoder")
    axes.barh(place, end - start, HEIGHT, left=start, color=PREFILL_COLOUR, label="embed + prefill")
    predicted, whole = run.predicted(engine, TTFT, ratio), run.seconds(engine, TTFT, 1.0)
    mark = end
    if predicted and whole and ratio < 1.0:
        half, mark = HEIGHT / 2, max(end, whole / predicted)
        line = {"color": PREDICTED_COLOUR, "linewidth": 1.6, "label": "predicted from multiply-adds"}
        axes.vlines(whole / predicted, place - half, place + half, **line)
    axes.annotate(f" {end:.2f}", (mark, place), va="center", fontsize=8)
