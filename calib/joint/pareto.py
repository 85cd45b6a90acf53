"""Which of several points no other beats in both of two objectives."""

from __future__ import annotations

import math
from collections.abc import Sequence

__all__ = ["pareto_front"]


def pareto_front(points: Sequence[tuple[float, float]]) -> list[bool]:
    """Of each point (gain, cost), whether it is on the Pareto front: none has at least its gain at no more
    than its cost and is better in one of the two.

    Equal points are on it together. A point with a NaN is not on it, and beats none.
    """
    places = [place for place, point in enumerate(points) if not any(map(math.isnan, point))]
    places.sort(key=lambda place: (points[place][1], -points[place][0]))  # cheap first, then good
    found = [False] * len(points)
    best: tuple[float, float] | None = None
    for place in places:
        if best is None or points[place][0] > best[0] or points[place] == best:
            found[place] = True
            best = points[place]
    return found
