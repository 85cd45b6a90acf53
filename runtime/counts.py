"""How many visual tokens to keep: the one function every part of the project asks (K is host-known)."""

from __future__ import annotations

import math

from runtime.errors import RequestError

__all__ = ["kept_count", "kept_rows"]


def kept_count(tokens: int, ratio: float) -> int:
    """Tokens kept of one image: clamp(floor(tokens * ratio + 0.5), 1, tokens), in double precision.

    Args:
        tokens: tokens of one unit (image or tile) before pruning, >= 1.
        ratio: fraction kept, in (0, 1].

    Raises:
        RequestError: `tokens` < 1, or `ratio` outside (0, 1] or not a number.
    """
    if tokens < 1:
        raise RequestError(f"cannot prune {tokens} tokens: an image has at least 1 visual token")
    if not 0.0 < ratio <= 1.0:  # also false for NaN
        raise RequestError(
            f"ratio is {ratio}, but it is the fraction of tokens kept: give a number in (0, 1], e.g. 0.3"
        )
    return min(max(math.floor(tokens * ratio + 0.5), 1), tokens)


def kept_rows(rows: int, ratio: float) -> int:
    """Grid rows kept by the `row` strategy: the same rule over rows; K is this times the row length."""
    return kept_count(rows, ratio)
