"""Accuracy against ratio with the PyTorch oracle: the table that training ends with."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from rich.table import Table
from transformers import LlavaForConditionalGeneration, PreTrainedTokenizerBase

from demo.batches import batch_from_scenes
from demo.oracle import SELECTORS, Selector, encode, gather_tokens, select
from demo.questions import KINDS, Question, ask
from demo.scenes import Layout, Scene, draw_scenes
from demo.sequences import build_sequences
from demo.tune import answer_logits, exact_answers

__all__ = ["RATIOS", "Point", "held_out", "measure", "points_table", "questions_of"]

RATIOS = (0.5, 0.3, 0.15)
CHUNK = 50  # scenes per forward pass


@dataclass(frozen=True)
class Point:
    """One row of the curve."""

    selector: str  # "none" at ratio 1
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


@torch.no_grad()
def measure(
    model: LlavaForConditionalGeneration, tokenizer: PreTrainedTokenizerBase, scenes: list[Scene], seed: int
) -> list[Point]:
    """Every selector at every ratio of `RATIOS`, and the unpruned model, on the same scenes and questions."""
    plan: list[tuple[Selector, float]] = [("rank", 1.0), *((s, r) for s in SELECTORS for r in RATIOS)]
    right: dict[tuple[Selector, float], list[list[bool]]] = {key: [] for key in plan}
    tokens: dict[tuple[Selector, float], int] = {}
    for first, chunk in _chunks(scenes):
        vision = encode(model, batch_from_scenes(chunk).pixel_values.to(model.device))
        questions = [questions_of(scene, seed + first + index) for index, scene in enumerate(chunk)]
        seeds = range(seed + first, seed + first + len(chunk))
        for selector, ratio in plan:
            features = gather_tokens(vision.features, select(vision.scores, ratio, selector, seeds))
            sequences = build_sequences(tokenizer, questions, features.shape[1], chained=False)
            exact = exact_answers(answer_logits(model, features, sequences), sequences)
            right[selector, ratio] += exact.view(len(chunk), len(KINDS)).tolist()
            tokens[selector, ratio] = features.shape[1]
    points = []
    for (selector, ratio), rows in right.items():
        exact_by_kind = dict(zip(KINDS, np.mean(rows, axis=0).tolist(), strict=True))
        name = "none" if ratio == 1.0 else selector
        points.append(Point(name, ratio, tokens[selector, ratio], exact_by_kind))
    return points


def points_table(points: list[Point], title: str) -> Table:
    """The curve as a table."""
    table = Table(title=title)
    for column in ("selector", "ratio", "tokens", *points[0].exact, "mean"):
        table.add_column(column, justify="left" if column == "selector" else "right")
    for point in points:
        exact = [f"{value:.3f}" for value in (*point.exact.values(), point.mean)]
        table.add_row(point.selector, f"{point.ratio:g}", str(point.tokens), *exact)
    return table


def _chunks(scenes: list[Scene]) -> Iterator[tuple[int, list[Scene]]]:
    for first in range(0, len(scenes), CHUNK):
        yield first, scenes[first : first + CHUNK]
