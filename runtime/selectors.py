"""Host selectors: which tokens of an image to keep, as pure functions.

`rank` and `row` are the host's form of what the pruned graph does; `random` and `uniform` are the baselines
without which no accuracy claim is made; `none` keeps all. A new selector is one function with the
`@_register` line above it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from runtime.errors import BackendError, RequestError

__all__ = ["GRAPH", "SELECTORS", "Choice", "allowed_selectors", "needs_scores", "select"]

GRAPH = "graph"
"""Not a host selector: the pruned graph selects by its own strategy."""

Indices: TypeAlias = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Choice:
    """What a selector chooses from, for one unit (an image or a tile).

    `scores` float32 [N] (zeros will do for a selector that does not look at them), `grid` (R, C) with R * C
    = N or None where there is no full grid, `keep` K with 1 <= K <= N, `seed` >= 0.
    """

    scores: npt.NDArray[np.float32]
    grid: tuple[int, int] | None
    keep: int
    seed: int = 0


Selector: TypeAlias = Callable[[Choice], Indices]
"""Returns K positions in 0..N-1, strictly increasing."""

SELECTORS: dict[str, Selector] = {}


def _register(selector: Selector) -> Selector:
    SELECTORS[selector.__name__.lstrip("_")] = selector
    return selector


def allowed_selectors() -> tuple[str, ...]:
    """Names a request may give."""
    return (GRAPH, *SELECTORS)


def needs_scores(name: str) -> bool:
    """Whether a host selector looks at the scores."""
    return name in ("rank", "row")


def select(name: str, choice: Choice) -> Indices:
    """Run a host selector: int64 [K], strictly increasing.

    Raises:
        RequestError: unknown selector, K out of range, or one that needs a grid or full rows.
        BackendError: a score is not finite.
    """
    if name not in SELECTORS:
        raise RequestError(f'selector is "{name}", expected one of {", ".join(SELECTORS)}')
    total = choice.scores.size
    if not 1 <= choice.keep <= total:
        raise RequestError(f"cannot keep {choice.keep} tokens: the image has {total}, give 1..{total}")
    if not np.isfinite(choice.scores).all():
        raise BackendError(
            "the vision encoder gave a token score that is not finite: check the image and the bundle"
        )
    return SELECTORS[name](choice)


@_register
def _none(choice: Choice) -> Indices:
    """Every token; `keep` must say so."""
    if choice.keep != choice.scores.size:
        raise RequestError(
            f'selector "none" keeps all {choice.scores.size} tokens, not {choice.keep}: drop ratio and tokens'
        )
    return np.arange(choice.keep, dtype=np.int64)


@_register
def _rank(choice: Choice) -> Indices:
    """The K largest scores, ties to the lower position."""
    return np.sort(np.argsort(-choice.scores, kind="stable")[: choice.keep]).astype(np.int64)


@_register
def _row(choice: Choice) -> Indices:
    """The rows with the largest mean score, ties to the upper row; all tokens of these rows."""
    if choice.grid is None:
        raise RequestError('selector "row" needs a full grid of tokens, which this model lacks: use "rank"')
    columns = choice.grid[1]
    if choice.keep % columns:
        raise RequestError(
            f'selector "row" keeps whole rows of {columns} tokens, not {choice.keep}: give a multiple'
        )
    means = choice.scores.reshape(choice.grid).mean(axis=1)
    rows = np.sort(np.argsort(-means, kind="stable")[: choice.keep // columns])
    return (rows[:, None] * columns + np.arange(columns)).reshape(-1).astype(np.int64)


@_register
def _random(choice: Choice) -> Indices:
    """A seeded random subset: the first K of a permutation."""
    order = np.random.default_rng(choice.seed).permutation(choice.scores.size)
    return np.sort(order[: choice.keep]).astype(np.int64)


@_register
def _uniform(choice: Choice) -> Indices:
    """Evenly spread: the middle of each of K equal stretches, floor((2t + 1) N / 2K)."""
    steps = np.arange(choice.keep, dtype=np.int64)
    return (2 * steps + 1) * choice.scores.size // (2 * choice.keep)
