"""What each selector should choose, in plain numpy for one image, and its scores in plain PyTorch.

Nothing here knows `fopru_graph`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from tests.exporter_zoo import Case, encoder

__all__ = ["PUBLISHED", "REFERENCES", "Image", "attention_scores", "cosines", "greedy"]

MODULUS = 2**24 - 17


@dataclass(frozen=True)
class Image:
    """One image: `scores` [N], `rows` [N, D] of the features, `grid` (R, C), and the seed."""

    scores: np.ndarray
    rows: np.ndarray
    grid: tuple[int, int]
    seed: int = 0

    @property
    def tokens(self) -> int:
        return len(self.scores)


def _rank(image: Image, keep: int) -> list[int]:
    return sorted(sorted(range(image.tokens), key=lambda j: (-image.scores[j], j))[:keep])


def _row(image: Image, keep: int) -> list[int]:
    columns = image.grid[1]
    means = image.scores.reshape(image.grid).mean(axis=1)
    best = sorted(range(image.grid[0]), key=lambda y: (-means[y], y))[: keep // columns]
    return [y * columns + x for y in sorted(best) for x in range(columns)]


def _none(image: Image, keep: int) -> list[int]:
    del keep
    return list(range(image.tokens))


def _random(image: Image, keep: int) -> list[int]:
    words = np.random.SeedSequence(image.seed).generate_state(4, dtype=np.uint64)
    keys = []
    for position in range(image.tokens):
        key = position
        for word in words:
            key = pow(key + int(word), 3, MODULUS)
        keys.append(key)
    return sorted(sorted(range(image.tokens), key=lambda j: -keys[j])[:keep])


def _uniform(image: Image, keep: int) -> list[int]:
    return [(2 * t + 1) * image.tokens // (2 * keep) for t in range(keep)]


def _uniform_grid(image: Image, keep: int) -> list[int]:
    rows, columns = image.grid
    root = sum((2 * j - 1) ** 2 * columns <= 4 * keep * rows for j in range(1, rows + 1))
    used = min(max(root, -(-keep // columns)), keep)
    found = []
    for r in range(used):
        y, count = (2 * r + 1) * rows // (2 * used), (r + 1) * keep // used - r * keep // used
        found += [y * columns + (2 * t + 1) * columns // (2 * count) for t in range(count)]
    return found


def cosines(rows: np.ndarray) -> np.ndarray:
    """float64 [N, N]."""
    wide = rows.astype(np.float64)
    unit = wide / np.linalg.norm(wide, axis=1, keepdims=True)
    return np.asarray(unit @ unit.T)


def greedy(scores: np.ndarray, near: np.ndarray, keep: int) -> tuple[list[int], float]:
    """Picked tokens in order, and the smallest relative lead of a pick over the runner-up."""
    covered, picked, lead = np.zeros(len(scores)), [], np.inf
    for _ in range(keep):
        gains = scores * np.maximum(near - covered[:, None], 0).sum(axis=0)
        gains[picked] = -1
        order = np.argsort(-gains, kind="stable")
        if len(picked) < len(scores) - 1:
            lead = min(lead, float((gains[order[0]] - gains[order[1]]) / gains.max()))
        picked.append(int(order[0]))
        covered = np.maximum(covered, near[:, order[0]])
    return picked, lead


def _scope(image: Image, keep: int) -> list[int]:
    return sorted(greedy(image.scores.astype(np.float64), cosines(image.rows), keep)[0])


REFERENCES: dict[str, Callable[[Image, int], list[int]]] = {
    "rank": _rank,
    "row": _row,
    "cls": _rank,
    "vtc_cls": _rank,
    "visionzip": _rank,
    "scope": _scope,
    "none": _none,
    "random": _random,
    "uniform": _uniform,
    "uniform_grid": _uniform_grid,
}

PUBLISHED = {
    "rank": "mean",
    "row": "mean",
    "cls": "cls",
    "vtc_cls": "sum",
    "visionzip": "cls",
    "scope": "cls",
}
"""Whose attention scores: all queries, the class token, or the class token of all layers."""


def attention_scores(case: Case, images: np.ndarray, kind: str) -> np.ndarray:
    """float32 [B, N]: attention of the last layer in PyTorch; "cls" without a class token is "mean"."""
    model = copy.deepcopy(encoder(case))
    model.tower.set_attn_implementation("eager")
    with torch.no_grad():
        tower = model.tower(torch.from_numpy(images), output_attentions=True, **model.choices)
    layers = [layer.mean(dim=1) for layer in tower.attentions]
    if kind == "mean" or not case.special:
        received = layers[-1].mean(dim=1)
    else:
        received = layers[-1][:, 0] if kind == "cls" else sum(layer[:, 0] for layer in layers)
    return np.asarray(received[:, case.special :])
