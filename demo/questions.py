"""Questions about a scene, each with one exact answer string."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

import numpy as np

__all__ = ["KINDS", "Kind", "Question", "all_prompts", "ask"]

T = TypeVar("T")
Kind = Literal["count", "read", "presence", "edge"]
KINDS: tuple[Kind, ...] = ("count", "read", "presence", "edge")

_COUNT = (
    "How many digits are there?",
    "How many digits can you see?",
    "Count the digits.",
    "How many numbers are in the picture?",
)
_READ = (
    "Read the digits from left to right.",
    "What are the digits, from left to right?",
    "List the digits from left to right.",
    "Which digits are in the picture?",
)
_PRESENCE = (
    "Is there a {}?",
    "Do you see a {}?",
    "Is there a {} in the picture?",
)
_LEFT = ("Which digit is leftmost?", "What is the leftmost digit?")
_RIGHT = ("Which digit is rightmost?", "What is the rightmost digit?")


@dataclass(frozen=True)
class Question:
    """A prompt and the only answer that counts as right."""

    kind: Kind
    prompt: str
    answer: str


def ask(kind: Kind, digits: Sequence[int], rng: np.random.Generator) -> Question:
    """A question of one kind about digits given from left to right; the phrasing is drawn from ``rng``."""
    if kind == "count":
        return Question(kind, _pick(_COUNT, rng), str(len(digits)))
    if kind == "read":
        return Question(kind, _pick(_READ, rng), " ".join(map(str, digits)))
    if kind == "presence":
        # Half of the answers are "yes", so that saying one word always is worth 0.5.
        absent = [digit for digit in range(10) if digit not in digits]
        present = bool(rng.random() < 0.5)
        asked = _pick(digits, rng) if present else _pick(absent, rng)
        return Question(kind, _pick(_PRESENCE, rng).format(asked), "yes" if present else "no")
    if kind == "edge":
        left = bool(rng.random() < 0.5)
        return Question(kind, _pick(_LEFT if left else _RIGHT, rng), str(digits[0] if left else digits[-1]))
    raise ValueError(f"unknown kind of question {kind!r}; the kinds are {', '.join(KINDS)}")


def all_prompts() -> list[str]:
    """Every prompt that `ask` can make: the text that the tokenizer is trained on."""
    presence = [phrase.format(digit) for phrase in _PRESENCE for digit in range(10)]
    return [*_COUNT, *_READ, *presence, *_LEFT, *_RIGHT]


def _pick(options: Sequence[T], rng: np.random.Generator) -> T:
    return options[int(rng.integers(len(options)))]
