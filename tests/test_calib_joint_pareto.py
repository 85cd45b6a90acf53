"""The Pareto front of two objectives."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from calib.joint.pareto import pareto_front

NAN = math.nan
Point = tuple[float, float]


def beats(first: Point, second: Point) -> bool:
    """At least its gain for no more than its cost, and not the same."""
    return first[0] >= second[0] and first[1] <= second[1] and first != second


# Few values, so that ties are common; infinities are numbers, NaN is not.
VALUES = st.sampled_from([-math.inf, 0.0, 0.5, 0.9, 1.0, math.inf])
POINTS = st.lists(st.tuples(VALUES | st.just(NAN), VALUES | st.just(NAN)), max_size=12)


@given(POINTS)
def test_nothing_beats_the_front_and_it_beats_all_else(points: list[Point]) -> None:
    on_front = pareto_front(points)
    front = [point for point, on in zip(points, on_front, strict=True) if on]
    for point, on in zip(points, on_front, strict=True):
        if on:
            assert not any(beats(other, point) for other in points)
        else:
            assert any(map(math.isnan, point)) or any(beats(other, point) for other in front)


@given(POINTS, st.randoms())
def test_the_order_of_points_does_not_matter(points: list[Point], random: object) -> None:
    order = list(range(len(points)))
    random.shuffle(order)  # type: ignore[attr-defined]
    front = pareto_front(points)
    assert pareto_front([points[place] for place in order]) == [front[place] for place in order]


@pytest.mark.parametrize(
    ("points", "front"),
    [
        ([], []),
        ([(NAN, 1.0)], [False]),
        ([(1.0, 1.0), (1.0, 1.0)], [True, True]),
        ([(1.0, 2.0), (1.0, 1.0)], [False, True]),
        ([(0.9, 1.0), (1.0, 1.0)], [False, True]),
        ([(1.0, 3.0), (0.9, 2.0), (0.95, 2.5), (0.8, 2.2)], [True, True, True, False]),
    ],
)
def test_small_fronts(points: list[Point], front: list[bool]) -> None:
    assert pareto_front(points) == front
