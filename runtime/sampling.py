"""The next token from the logits: greedy, or temperature and top-p; pure functions over float64."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from runtime.errors import BackendError

__all__ = ["greedy", "nucleus", "pick", "probabilities"]


def pick(logits: npt.NDArray[np.float32], temperature: float, top_p: float, rng: np.random.Generator) -> int:
    """The next token id from logits [V].

    Raises:
        BackendError: a logit is NaN, or none is finite.
    """
    if np.isnan(logits).any() or not np.isfinite(logits.max()):
        raise BackendError(
            "the decoder gave logits that are not numbers: check the bundle with `python -m runtime.check`"
        )
    if temperature == 0.0:
        return greedy(logits)
    ids, weights = nucleus(probabilities(logits, temperature), top_p)
    # Inverse of the cumulative distribution: one uniform number per token, so a seed gives the same text
    # anywhere.
    place = int(np.searchsorted(np.cumsum(weights), rng.random(), side="right"))
    return int(ids[min(place, ids.size - 1)])


def greedy(logits: npt.NDArray[np.float32]) -> int:
    """The most likely token, ties to the lower id."""
    return int(np.argmax(logits))


def probabilities(logits: npt.NDArray[np.float32], temperature: float) -> npt.NDArray[np.float64]:
    """softmax(logits / temperature) of [V], temperature > 0."""
    scaled = logits.astype(np.float64) / temperature
    weights = np.exp(scaled - scaled.max())
    result: npt.NDArray[np.float64] = weights / weights.sum()
    return result


def nucleus(
    weights: npt.NDArray[np.float64], top_p: float
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """The smallest set of most likely tokens whose probability reaches `top_p`, never empty.

    Returns:
        (token ids, their probabilities made to sum to 1), most likely first, ties to the lower id.
    """
    order = np.argsort(-weights, kind="stable")
    before = np.cumsum(weights[order]) - weights[order]
    inside = before < top_p
    inside[0] = True
    kept = weights[order][inside]
    return order[inside].astype(np.int64), kept / kept.sum()
