"""How far an answer is from that of the unpruned model."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

__all__ = ["divergence", "is_correct", "same_first"]


def divergence(reference: npt.NDArray[np.float32], other: npt.NDArray[np.float32]) -> float:
    """KL divergence of softmax(`other`) from softmax(`reference`), in nats; float32 logits [V] both.

    Computed in float64. Equal logits give exactly 0.0; rounding never gives less. Tokens that `reference`
    rules out (minus infinity) count nothing; one that `other` alone rules out makes it infinite.
    """
    expected, found = _log_softmax(reference), _log_softmax(other)
    known = expected != -np.inf  # 0 times infinity is NaN
    expected, found = expected[known], found[known]
    return max(float(np.sum(np.exp(expected) * (expected - found))), 0.0)  # in this order NaN stays NaN


def same_first(reference: npt.NDArray[np.float32], other: npt.NDArray[np.float32]) -> bool:
    """Whether both logits [V] have the same likeliest token; of equals the lower id counts."""
    return int(np.argmax(reference)) == int(np.argmax(other))


def is_correct(text: str, answer: str | None) -> bool | None:
    """Whether a text is the right answer: exactly, but for blanks at the ends. Case counts: "No" is not "no",
    as whoever writes the answers knows what the model writes. None: there is no answer to compare with."""
    return None if answer is None else text.strip() == answer.strip()


def _log_softmax(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    shifted = logits.astype(np.float64) - float(logits.max())
    result: npt.NDArray[np.float64] = shifted - np.log(np.sum(np.exp(shifted)))
    return result
