"""The next token from the logits: greedy, or temperature and top-p; pure functions over float64."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from runtime.errors import BackendError

__all__ = ["greedy", "nucleus", "pick", "probabilities"]

_FIRST_HEAD = 256


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
    weights = probabilities(logits, temperature)
    if top_p == 1.0:  # every token, so their order does not matter
        ids = np.arange(weights.size)
    else:
        ids, weights = nucleus(weights, top_p)
    # Inverse of the cumulative distribution: one uniform number per token, so a seed gives the same text
    # anywhere.
    place = int(np.searchsorted(np.cumsum(weights), rng.random(), side="right"))
    return int(ids[min(place, ids.size - 1)])


def greedy(logits: npt.NDArray[np.float32]) -> int:
    """The most likely token, ties to the lower id."""
    return int(np.argmax(logits))


def probabilities(logits: npt.NDArray[np.float32], temperature: float) -> npt.NDArray[np.float64]:
    """softmax(logits / temperature) of [V], temperature > 0."""
    wide = logits.astype(np.float64)
    # The difference first: a tiny temperature then makes -inf, whose weight is 0, and never inf - inf.
    with np.errstate(over="ignore"):
        weights = np.exp((wide - wide.max()) / temperature)
    result: npt.NDArray[np.float64] = weights / weights.sum()
    return result


def nucleus(
    weights: npt.NDArray[np.float64], top_p: float
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """The smallest set of most likely tokens whose probability reaches `top_p`, never empty.

    Returns:
        (token ids, their probabilities made to sum to 1), most likely first, ties to the lower id.
    """
    for head in _heads(weights):
        reached = np.cumsum(weights[head])
        if reached[-1] >= top_p:
            break
    size = int(np.searchsorted(reached, top_p, side="left")) + 1
    kept = weights[head[:size]]
    return head[:size], kept / kept.sum()


def _heads(weights: npt.NDArray[np.float64]) -> Iterator[npt.NDArray[np.int64]]:
    """Token ids most likely first, ties to the lower id: ever longer beginnings of that list, then all of it.

    A vocabulary has 10^5 tokens and a nucleus mostly a few, so sorting everything for each token is waste.
    """
    size = _FIRST_HEAD
    while size < weights.size:
        smallest = np.partition(weights, weights.size - size)[weights.size - size]
        likely = np.flatnonzero(weights >= smallest)  # with every tie of the smallest, ascending ids
        yield likely[np.argsort(-weights[likely], kind="stable")]
        size *= 16
    yield np.argsort(-weights, kind="stable")
