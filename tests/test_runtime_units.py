"""Tokens kept of each unit: tiles, padding, budgets, rows of tiles and of the stitched picture."""

from __future__ import annotations

import math
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from runtime.errors import RequestError
from runtime.layouts.anyres import AnyresLayout
from runtime.layouts.base import IMAGE_SLOT, NEWLINE, ImagePlan, Unit, running_offsets
from runtime.manifest import Manifest
from runtime.plan import Amount, kept_placeholders, plan_pruning, unit_counts
from runtime.request import Request
from tests.toy_bundle import TILES, ToyModel, toy_files, toy_manifest

PUBLISHED = AnyresLayout((336, 336), (24, 24), ((336, 672), (672, 336), (672, 672), (1008, 336), (336, 1008)))
IMAGE = ("photo.png",)


def plan_of(*units: Unit, overview: int | None = None, mosaic: tuple[int, int] | None = None) -> ImagePlan:
    """A plan whose prompt has every valid token once, without newlines."""
    starts = np.cumsum([0, *(unit.tokens for unit in units)])
    sequence = np.concatenate(
        [start + unit.valid_indices for start, unit in zip(starts[:-1], units, strict=True)]
    )
    runs = (len(sequence),)
    offsets = running_offsets(runs)
    return ImagePlan(units, IMAGE_SLOT, runs, sequence, offsets, runs, overview=overview, mosaic=mosaic)


def manifest(strategy: str = "rank", **pruning: object) -> Manifest:
    base = toy_manifest(ToyModel(pinpoints=TILES, strategy=strategy), toy_files())
    return replace(base, pruning=replace(base.pruning, **pruning))


FULL = Unit(16, (4, 4))
PADDED = Unit(16, (4, 4), (1, 3, 0, 4))  # two rows of four
SIDES = Unit(16, (4, 4), (0, 4, 1, 4))  # four rows of three
EMPTY = Unit(16, (4, 4), (0, 0, 0, 4))
RAGGED = Unit(10, None)


def test_five_tiles_keep_865_of_2880_tokens() -> None:
    plan = PUBLISHED.plan(672, 672)
    counts = unit_counts(plan, Amount(ratio=0.3), "rank")
    assert counts == (173,) * 5
    assert (plan.prunable, sum(counts)) == (2880, 865)  # not the 864 of one unit of 2880


@pytest.mark.parametrize(
    ("units", "amount", "strategy", "expected"),
    [
        ((FULL,), Amount(), "rank", (16,)),
        ((FULL, PADDED, EMPTY), Amount(), "row", (16, 8, 0)),
        ((FULL, PADDED, EMPTY), Amount(ratio=0.3), "rank", (5, 2, 0)),
        ((FULL, PADDED, SIDES, EMPTY), Amount(ratio=0.5), "row", (8, 4, 6, 0)),
        ((FULL, PADDED), Amount(ratio=0.01), "rank", (1, 1)),
        ((FULL, PADDED), Amount(ratio=0.01), "row", (4, 4)),
        ((FULL, PADDED), Amount(ratio=1.0), "row", (16, 8)),
        ((FULL, PADDED), Amount(ratio=0.5), "uniform", (8, 4)),
        ((RAGGED,), Amount(ratio=0.5), "random", (5,)),
        # The remainder of a budget goes to the first unit with tokens, or to the overview.
        ((FULL, FULL, FULL), Amount(tokens=11), "rank", (5, 3, 3)),
        ((EMPTY, FULL, FULL), Amount(tokens=11), "rank", (0, 6, 5)),
        ((FULL, PADDED), Amount(tokens=22), "rank", (14, 8)),  # a small unit keeps all it has
        (
            (PADDED, FULL),
            Amount(tokens=22),
            "rank",
            (8, 14),
        ),  # the first unit cannot take the rest, the next does
        ((FULL, PADDED), Amount(tokens=24), "rank", (16, 8)),
        ((FULL, SIDES), Amount(tokens=15), "row", (8, 6)),  # 8 and 7, whole rows of 4 and 3
        ((FULL,), Amount(tokens=15), "row", (12,)),
        ((FULL, EMPTY), Amount(tokens=4), "row", (4, 0)),
    ],
)
def test_counts_of_units(
    units: tuple[Unit, ...], amount: Amount, strategy: str, expected: tuple[int, ...]
) -> None:
    assert unit_counts(plan_of(*units), amount, strategy) == expected


def test_the_overview_gets_what_is_left_of_a_budget() -> None:
    plan = plan_of(FULL, FULL, FULL, overview=2, mosaic=(1, 2))
    assert unit_counts(plan, Amount(tokens=11), "rank") == (3, 3, 5)


@pytest.mark.parametrize(
    ("units", "tokens", "strategy", "message"),
    [
        ((FULL, PADDED), 25, "rank", r"tokens is 25, but an image has 24: give 1\.\.24"),
        ((FULL, PADDED), 0, "rank", r"tokens is 0, but an image has 24: give 1\.\.24"),
        (
            (FULL, PADDED, EMPTY),
            1,
            "rank",
            r"tokens is 1, but the image is seen in 2 parts, each of which keeps at least one: give 2\.\.24",
        ),
        ((FULL,), 3, "row", r'tokens is 3, but strategy "row" keeps whole rows of 4: give 4\.\.16'),
        (
            (FULL, FULL),
            7,
            "row",
            'tokens is 7, and a part of the image gets 3 of them, but strategy "row" keeps whole rows of 4: '
            "give more",
        ),
        ((RAGGED,), 5, "row", 'selector "row" needs a full grid of tokens, which this model lacks'),
    ],
)
def test_budget_that_cannot_be_shared(
    units: tuple[Unit, ...], tokens: int, strategy: str, message: str
) -> None:
    with pytest.raises(RequestError, match=message):
        unit_counts(plan_of(*units), Amount(tokens=tokens), strategy)


@st.composite
def units(draw: st.DrawFn) -> Unit:
    rows, columns = draw(st.integers(1, 9)), draw(st.integers(1, 9))
    if draw(st.booleans()):
        return Unit(rows * columns, (rows, columns))
    top, left = draw(st.integers(0, rows)), draw(st.integers(0, columns))
    box = (top, draw(st.integers(top, rows)), left, draw(st.integers(left, columns)))
    return Unit(rows * columns, (rows, columns), box)


@given(own=st.lists(units(), min_size=1, max_size=5), percent=st.integers(1, 100))
@settings(deadline=None)
def test_a_ratio_holds_for_every_unit_and_its_valid_tokens(own: list[Unit], percent: int) -> None:
    assume(any(unit.prunable for unit in own))
    plan = plan_of(*own)
    ratio = Fraction(percent / 100)  # of the double, exactly
    for strategy in ("rank", "row"):
        counts = unit_counts(plan, Amount(ratio=percent / 100), strategy)
        for unit, count in zip(own, counts, strict=True):
            assert unit.grid is not None
            valid = np.zeros(unit.grid, np.bool_)
            top, bottom, left, right = unit.valid or (0, unit.grid[0], 0, unit.grid[1])
            valid[top:bottom, left:right] = True
            rows, length = int(valid.any(axis=1).sum()), int(valid.any(axis=0).sum())
            assert unit.valid_indices.tolist() == np.flatnonzero(valid).tolist()
            total = rows if strategy == "row" else rows * length
            # The golden table checks the double arithmetic; here no product is near a half.
            product = total * ratio
            assume(abs(product - math.floor(product) - Fraction(1, 2)) > Fraction(1, 10**6) or not total)
            kept = min(max(math.floor(product + Fraction(1, 2)), 1), total)
            assert count == kept * (length if strategy == "row" else 1)


@given(own=st.lists(units(), min_size=1, max_size=5), data=st.data())
@settings(deadline=None)
def test_a_budget_is_never_exceeded_and_never_leaves_a_unit_empty(
    own: list[Unit], data: st.DataObject
) -> None:
    plan = plan_of(*own)
    filled = sum(1 for unit in own if unit.prunable)
    assume(filled)
    tokens = data.draw(st.integers(filled, plan.prunable))
    counts = unit_counts(plan, Amount(tokens=tokens), "rank")
    assert sum(counts) <= tokens
    for unit, count in zip(own, counts, strict=True):
        assert min(unit.prunable, 1) <= count <= unit.prunable
        if count < unit.prunable:
            assert count >= tokens // filled


def test_stitched_counts_are_the_overviews_and_the_canvas_rows() -> None:
    bundle = manifest("row", row_scope="stitched")
    plan = bundle.layout.plan(32, 32)  # an overview of 4 rows, a canvas of 8 rows of 8
    pruned = plan_pruning(Request("?", IMAGE, ratio=0.3), bundle, [plan])
    assert pruned.counts == ((4, 2 * 8),)  # 1.2 rows of 4, 2.4 rows of 8
    # Every host selector but "row" keeps to units.
    assert plan_pruning(Request("?", IMAGE, ratio=0.3, selector="rank"), bundle, [plan]).counts == ((5,) * 5,)
    assert plan_pruning(Request("?", IMAGE, ratio=0.3, selector="row"), bundle, [plan]).counts == ((4, 16),)
    whole = plan_pruning(Request("?", IMAGE, ratio=1.0), bundle, [plan])
    assert (whole.pruned, whole.counts) == (False, ((16, 64),))  # in the form that the encoder reads


def test_a_stitched_budget_is_shared_between_overview_and_canvas() -> None:
    bundle = manifest("row", row_scope="stitched")
    plan = bundle.layout.plan(32, 32)
    # 40 tokens over 5 units are 8 for the overview and 32 for the canvas, rows of 4 and of 8.
    assert plan_pruning(Request("?", IMAGE, tokens=40), bundle, [plan]).counts == ((8, 32),)
    assert plan_pruning(Request("?", IMAGE, tokens=47), bundle, [plan]).counts == ((8, 32),)
    with pytest.raises(
        RequestError, match=r"tokens is 15, and a part of the image gets 3 of them, but .* of 4"
    ):
        plan_pruning(Request("?", IMAGE, tokens=15), bundle, [plan])


def test_stitched_rows_of_padded_tiles() -> None:
    bundle = manifest("row", row_scope="stitched")
    plan = bundle.layout.plan(20, 32)  # on 32 x 32 pixels, 6 of 8 rows of 8
    assert [unit.prunable for unit in plan.units] == [16, 12, 12, 12, 12]
    assert plan_pruning(Request("?", IMAGE, ratio=0.5), bundle, [plan]).counts == ((8, 3 * 8),)


@pytest.mark.parametrize("size", [(1, 5000), (5000, 1)])
def test_a_sliver_has_no_stitched_rows(size: tuple[int, int]) -> None:
    layout = AnyresLayout((32, 32), (4, 4), ((32, 64), (64, 32), (64, 64)))
    plan = layout.plan(*size)
    assert plan.prunable == 16
    bundle = manifest("row", row_scope="stitched")
    assert plan_pruning(Request("?", IMAGE, ratio=0.5), bundle, [plan]).counts == ((8, 0),)


def test_an_image_without_tiles_in_a_stitched_bundle() -> None:
    bundle = manifest("row", row_scope="stitched")
    assert plan_pruning(Request("?", IMAGE, ratio=0.5), bundle, [plan_of(SIDES)]).counts == ((6,),)


def test_images_of_different_sizes_have_their_own_counts() -> None:
    bundle = manifest()
    plans = [bundle.layout.plan(32, 32), bundle.layout.plan(16, 32)]
    request = Request("?", IMAGE * 2, ratio=0.5)
    pruned = plan_pruning(request, bundle, plans)
    assert pruned.counts == ((8,) * 5, (8,) * 3)
    # A budget is per image.
    pruned = plan_pruning(Request("?", IMAGE * 2, tokens=30), bundle, plans)
    assert pruned.counts == ((6,) * 5, (10,) * 3)


@pytest.mark.parametrize(("newline", "lines"), [("keep_all", 8), ("keep_nonempty", 8), ("drop", 0)])
def test_placeholders_of_a_budget(newline: str, lines: int) -> None:
    plan = manifest().layout.plan(32, 32)
    assert (plan.sequence == NEWLINE).sum() == 8
    assert kept_placeholders(plan, 21, 0, newline) == 21 + lines
    assert kept_placeholders(plan, 21, 2, newline) == 21 + lines + 2 * 5  # prefix rows of every unit
