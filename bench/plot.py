"""The picture of a time-to-first-token run: measured against predicted, and where transformers stands."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bench.ttft import TtftRun

__all__ = ["draw_ttft"]

VISION_COLOUR, PREFILL_COLOUR, PREDICTED_COLOUR, REFERENCE_COLOUR = "#2b6ca3", "#7fb2dd", "#222222", "#c0504d"
BAR_WIDTH = 0.62


def draw_ttft(run: TtftRun, target: Path) -> Path:
    """Draw stacked bars per ratio, the predicted time marked on each; writes a PNG and returns its path."""
    import matplotlib

    matplotlib.use("Agg")  # no display on a server
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7.2, 4.2), dpi=120, layout="constrained")
    labels = _draw_bars(axes, run)
    axes.set_xticks(range(len(labels)), labels)
    axes.set_ylabel("seconds")
    axes.set_title(
        f"Time to first token, {run.text} text tokens + kept visual tokens", loc="left", fontsize=11
    )
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_ylim(0, axes.get_ylim()[1] * 1.08)  # room for the figures over the bars
    axes.legend(frameon=False, fontsize=9, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    target.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(target)
    pyplot.close(figure)
    return target


def _draw_bars(axes: Any, run: TtftRun) -> list[str]:
    variants = [(f"ratio {ratio:g}", f"ratio {ratio:g}\n{keep} kept") for ratio, keep in run.keeps.items()]
    if "transformers" in run.measured.samples:
        variants.append(("transformers", f"transformers\n{run.keeps[1.0]} tokens"))
    for place, (variant, _) in enumerate(variants):
        vision, total = (run.measured.summary(variant, figure).median for figure in ("vision", "ttft"))
        colours = (
            (REFERENCE_COLOUR, "#e3a29f") if variant == "transformers" else (VISION_COLOUR, PREFILL_COLOUR)
        )
        first = place == 0
        axes.bar(place, vision, BAR_WIDTH, color=colours[0], label="vision encoder" if first else None)
        rest = total - vision
        axes.bar(
            place,
            rest,
            BAR_WIDTH,
            bottom=vision,
            color=colours[1],
            label="embed + prefill" if first else None,
        )
        predicted = run.predicted_seconds(list(run.keeps)[place]) if place < len(run.keeps) else 0.0
        above = {"xytext": (0, 4), "textcoords": "offset points", "ha": "center", "fontsize": 9}
        axes.annotate(f"{total:.2f}", (place, max(total, predicted)), **above)
    for place, ratio in enumerate(run.keeps):
        half, label = BAR_WIDTH / 2 + 0.06, "predicted from multiply-adds" if place == 0 else None
        line = {"color": PREDICTED_COLOUR, "linestyle": "--", "linewidth": 1.6, "label": label}
        axes.hlines(run.predicted_seconds(ratio), place - half, place + half, **line)
    return [label for _, label in variants]
