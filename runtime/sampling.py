"""The next token from the logits: repetition penalty, then greedy or a draw that follows a seed.

The rules and their order are those of transformers' `generate` (`RepetitionPenaltyLogitsProcessor`, then, for
a draw, `TemperatureLogitsWarper`, `TopKLogitsWarper`, `TopPLogitsWarper`, `MinPLogitsWarper`). A penalty is
computed in float32 as there, so that greedy answers are the same; weights in float64, so that a seed gives
the same text on any machine.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from runtime.errors import BackendError

if TYPE_CHECKING:
    from runtime.request import Request

__all__ = ["Sampler", "nucleus"]

_LIKELY = (1e-2, 1e-4, 1e-8)
"""A nucleus is looked for among weights of at least this part of the largest, before all are sorted: a
vocabulary has 10^5 tokens and a nucleus mostly a few."""

_LOWEST = float(np.finfo(np.float32).min)


class Sampler:
    """Chooses the tokens of one answer.

    Holds the generator of random numbers, the ids that count as repeated, and scratch memory of the
    vocabulary's size V, made on construction as far as the request needs it: 4 bytes per entry for a
    repetition penalty, 17 for draws, none for plain greedy. Not to be used from two threads at once.
    """

    def __init__(self, request: Request, vocab_size: int, prompt_ids: npt.NDArray[np.int64]) -> None:
        """Start an answer.

        Args:
            request: its sampling fields.
            vocab_size: number of logits V.
            prompt_ids: int64 [L], what the repetition penalty takes for said. Special tokens and the image
                placeholders count, as they do in transformers; ids of V and above have no logit and do not.
        """
        self._request = request
        self._random = np.random.default_rng(request.seed)
        self._penalised: npt.NDArray[np.float32] | None = None
        if request.repetition_penalty != 1.0:
            self._penalised = np.empty(vocab_size, np.float32)
            self._said = np.zeros(vocab_size, np.bool_)
            self._said[prompt_ids[prompt_ids < vocab_size]] = True
            self._repeated = np.flatnonzero(self._said)
        if request.temperature > 0.0:
            self._weights = np.empty(vocab_size, np.float64)
            self._sums = np.empty(vocab_size, np.float64)
            self._mask = np.empty(vocab_size, np.bool_)

    def pick(self, logits: npt.NDArray[np.float32]) -> int:
        """The next token id from logits [V], which stay as they are; ties to the lower id.

        Raises:
            BackendError: a logit is NaN or plus infinity, or all are minus infinity.
        """
        scores = self._scores(logits)
        best = int(scores.argmax())  # that of a NaN, where there is one
        if not math.isfinite(scores[best]):
            raise BackendError(
                "the decoder gave logits that are not numbers: "
                "check the bundle with `python -m runtime.check`"
            )
        token = best if self._request.temperature == 0.0 else self._draw(scores, float(scores[best]))
        if self._penalised is not None and not self._said[token]:
            self._said[token] = True
            self._repeated = np.append(self._repeated, token)
        return token

    def distribution(
        self, logits: npt.NDArray[np.float32]
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
        """The token ids that `pick` draws from for logits [V], temperature > 0, and their probabilities."""
        scores = self._scores(logits)
        ids, weights = self._candidates(scores, float(scores.max()))
        return (np.arange(weights.size) if ids is None else ids), weights / weights.sum()

    def _scores(self, logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """The logits, those of repeated tokens moved down: divided by the penalty, or multiplied below 0."""
        if self._penalised is None:
            return logits
        penalty = np.float32(self._request.repetition_penalty)
        np.copyto(self._penalised, logits)
        values = logits[self._repeated]
        self._penalised[self._repeated] = np.where(values < 0, values * penalty, values / penalty)
        return self._penalised

    def _draw(self, scores: npt.NDArray[np.float32], best: float) -> int:
        # Inverse of the cumulative distribution: one uniform number per token, so a seed gives the same text
        # anywhere.
        ids, weights = self._candidates(scores, best)
        sums = np.cumsum(weights, out=self._sums[: weights.size])
        # At most 1 - 2^-53 of the sum, which no rounding makes the sum: so never a token without a weight.
        target = self._random.random() * sums[-1]
        place = int(np.searchsorted(sums, target, side="right"))
        return place if ids is None else int(ids[place])

    def _candidates(
        self, scores: npt.NDArray[np.float32], best: float
    ) -> tuple[npt.NDArray[np.int64] | None, npt.NDArray[np.float64]]:
        """Token ids to draw from, None for all [V], and their weights as parts of the best one's.

        The weights may lie in scratch memory, valid until the next call.
        """
        request = self._request
        ids = self._eligible(scores, best)
        weights = self._weights
        if ids is None:
            np.subtract(scores, best, out=weights, dtype=np.float64)
        else:
            weights = weights[: ids.size]
            np.subtract(scores[ids], best, out=weights, dtype=np.float64)
        # The difference first: a tiny temperature then makes -inf, whose weight is 0, and never inf - inf.
        with np.errstate(over="ignore"):
            np.divide(weights, request.temperature, out=weights)
        np.exp(weights, out=weights)
        if request.top_p < 1.0:
            places = nucleus(weights, request.top_p)
            ids, weights = (places if ids is None else ids[places]), weights[places]
        if request.min_p > 0.0:
            places = np.flatnonzero(weights >= request.min_p)
            ids, weights = (places if ids is None else ids[places]), weights[places]
        return ids, weights

    def _eligible(self, scores: npt.NDArray[np.float32], best: float) -> npt.NDArray[np.int64] | None:
        """The ids that are worth a weight, None for all: it is the exponentials of 10^5 tokens that cost."""
        request = self._request
        if 0 < request.top_k < scores.size:
            # The sums are not needed yet, and their memory is large enough.
            work = self._sums.view(np.float32)[: scores.size]
            np.copyto(work, scores)
            work.partition(scores.size - request.top_k)
            least = work[scores.size - request.top_k]  # every tie of it stays, as in transformers
        elif request.min_p > 0.0 and request.top_p == 1.0:
            # Not quite the limit, so that no rounding counts: those about it are compared by weight.
            limit = best + request.temperature * (math.log(request.min_p) - 1e-3)
            least = np.float32(max(limit - 1e-6 * abs(limit), _LOWEST))
        else:
            return None
        np.greater_equal(scores, least, out=self._mask)
        return np.flatnonzero(self._mask)


def nucleus(weights: npt.NDArray[np.float64], top_p: float) -> npt.NDArray[np.int64]:
    """Places of the smallest set of largest weights that has at least `top_p` of their sum, never empty.

    Returns:
        int64, largest weight first, ties to the lower place.
    """
    goal, most = top_p * weights.sum(), weights.max()
    for part in (*_LIKELY, 0.0):
        likely = np.flatnonzero(weights >= part * most)
        order = np.argsort(-weights[likely], kind="stable")
        reached = np.cumsum(weights[likely[order]])
        if reached[-1] >= goal:
            break
    size = int(np.searchsorted(reached, goal, side="left")) + 1
    return likely[order[:size]]
