"""Accuracy against ratio with the PyTorch oracle: the table that training ends with."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from transformers import LlavaForConditionalGeneration, PreTrainedTokenizerBase

from demo.batches import batch_from_scenes
from demo.curve import Point, questions_of
from demo.oracle import SELECTORS, Selector, encode, gather_tokens, select
from demo.questions import KINDS
from demo.scenes import Scene
from demo.sequences import build_sequences
from demo.tune import answer_logits, exact_answers

__all__ = ["RATIOS", "measure"]

RATIOS = (0.5, 0.3, 0.15)
CHUNK = 50  # scenes per forward pass


@torch.no_grad()
def measure(
    model: LlavaForConditionalGeneration,
    tokenizer: PreTrainedTokenizerBase,
    scenes: list[Scene],
    seed: int,
    ratios: Sequence[float] = RATIOS,
) -> list[Point]:
    """Every selector at every ratio, and the unpruned model, on the same scenes and questions."""
    plan: list[tuple[Selector, float]] = [("rank", 1.0), *((s, r) for s in SELECTORS for r in ratios)]
    right: dict[tuple[Selector, float], list[list[bool]]] = {key: [] for key in plan}
    tokens: dict[tuple[Selector, float], int] = {}
    for first in range(0, len(scenes), CHUNK):
        chunk = scenes[first : first + CHUNK]
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
