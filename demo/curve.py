"""Accuracy against ratio: what is asked, one point of the curve, and how it is shown. No torch here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.table import Table

from demo.questions import KINDS, Question, ask
from demo.scenes import Layout, Scene, draw_scenes

__all__ = ["EVALUATION_SEED", "Point", "draw_curve", "held_out", "points_table", "questions_of"]

EVALUATION_SEED = 9001  # not among the seeds that training measures itself with


@dataclass(frozen=True)
class Point:
    """One row of the curve."""

    selector: str  # "none" where every token is kept
    ratio: float  # asked for
    tokens: int  # kept per image, realised
    exact: dict[str, float]  # exact match of each kind of question, 0-1

    @property
    def mean(self) -> float:
        """Mean over the kinds of question."""
        return float(np.mean(list(self.exact.values())))


def held_out(count: int, seed: int) -> list[Scene]:
    """Held-out scenes of the full layout."""
    return draw_scenes("test", Layout(), seed, count)


def questions_of(scene: Scene, seed: int) -> list[Question]:
    """One question of each kind."""
    rng = np.random.default_rng(seed)
    return [ask(kind, scene.digits, rng) for kind in KINDS]


def points_table(points: Sequence[Point], title: str) -> Table:
    """The curve as a table."""
    table = Table(title=title)
    for column in ("selector", "ratio", "tokens", *points[0].exact, "mean"):
        table.add_column(column, justify="left" if column == "selector" else "right")
    for point in points:
        exact = [f"{value:.3f}" for value in (*point.exact.values(), point.mean)]
        table.add_row(point.selector, f"{point.ratio:g}", str(point.tokens), *exact)
    return table


def draw_curve(points: Sequence[Point], title: str, path: Path) -> None:
    """Draws mean exact match against the realised number of tokens, one line per selector."""
    from matplotlib.figure import Figure  # lazily: only a picture needs it

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    unpruned = [point for point in points if point.selector == "none"]
    for selector in dict.fromkeys(point.selector for point in points if point.selector != "none"):
        line = sorted(
            [p for p in points if p.selector == selector] + unpruned, key=lambda point: point.tokens
        )
        axes.plot([p.tokens for p in line], [p.mean for p in line], marker="o", label=selector)
    for point in unpruned:
        axes.axhline(point.mean, color="grey", linewidth=0.8, linestyle=":", label="unpruned")
    axes.set(
        xlabel="visual tokens kept per image", ylabel="exact match, mean over question types", title=title
    )
    axes.set_ylim(0, 1.02)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=130)
