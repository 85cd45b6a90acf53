"""Images put together, and positions: against loops over the unpruned prompt that strike rows out."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.assemble import assemble
from runtime.layouts.anyres import AnyresLayout
from runtime.layouts.base import IMAGE_SLOT, NEWLINE, ImagePlan, Unit, running_offsets
from runtime.layouts.stitch import stitched_grid, stitched_rows_kept
from runtime.positions import Positions, prompt_positions, unpruned_end

POLICIES = ("keep_all", "keep_nonempty", "drop")
IMAGE = 7  # id of the image token
TOY = AnyresLayout((32, 32), (4, 4), ((32, 64), (64, 32), (64, 64), (96, 96)))
LINED = TOY.plan(64, 32)  # overview of 16 tokens, then 8 lines of 4 tokens and a newline


@dataclass(frozen=True)
class Case:
    """A planned image with its kept tokens."""

    plan: ImagePlan
    kept: tuple[np.ndarray, ...]
    prefix: int


@st.composite
def cases(draw: st.DrawFn, axes: int = 1) -> Case:
    """Rows of all units in any order, newlines anywhere, cut into runs anywhere."""
    prefix = draw(st.integers(0, 2))
    units = tuple(Unit(count, None) for count in draw(st.lists(st.integers(1, 6), min_size=1, max_size=4)))
    total = sum(prefix + unit.tokens for unit in units)
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    # Some rows are padding and stand nowhere.
    rows = rng.permutation(total)[: draw(st.integers(1, total))]
    newlines = draw(st.integers(0, 5))
    sequence = rng.permutation(np.concatenate([rows, np.full(newlines, NEWLINE)])).astype(np.int64)
    lines = np.sort(rng.integers(-1, 4, len(sequence))) if draw(st.booleans()) or newlines else None
    cuts = np.sort(rng.integers(1, len(sequence) + 1, draw(st.integers(0, 3))))
    runs = tuple(int(b - a) for a, b in pairwise([0, *cuts, len(sequence)]))
    offsets = running_offsets(runs) if axes == 1 else rng.integers(0, 9, (axes, len(sequence)))
    spans = tuple(int(span) for span in rng.integers(0, 9, len(runs)))
    kept = tuple(np.flatnonzero(rng.random(unit.tokens) < 0.5) for unit in units)
    plan = ImagePlan(units, IMAGE_SLOT * len(runs), runs, sequence, offsets, spans, lines)
    return Case(plan, kept, prefix)


def expected_places(case: Case, newline: str) -> tuple[list[int], list[int]]:
    """(places, source), placeholder by placeholder."""
    outputs: list[tuple[int, int]] = []  # (unit, row of its whole output) of each kept row, in order
    for number, kept in enumerate(case.kept):
        outputs += [(number, row) for row in range(case.prefix)]
        outputs += [(number, case.prefix + int(token)) for token in kept]
    owner = [
        (number, row)
        for number, unit in enumerate(case.plan.units)
        for row in range(case.prefix + unit.tokens)
    ]
    filled = set()
    for place, row in enumerate(case.plan.sequence):
        if row != NEWLINE and owner[row] in outputs and case.plan.lines is not None:
            filled.add(int(case.plan.lines[place]))
    places, source = [], []
    for place, row in enumerate(case.plan.sequence):
        if row == NEWLINE:
            empty = case.plan.lines is not None and int(case.plan.lines[place]) not in filled
            if newline == "keep_all" or (newline == "keep_nonempty" and not empty):
                places.append(place)
                source.append(NEWLINE)
        elif owner[row] in outputs:
            places.append(place)
            source.append(outputs.index(owner[row]))
    return places, source


@given(case=cases(), newline=st.sampled_from(POLICIES))
@settings(deadline=None, max_examples=200)
def test_assembly_of_any_plan(case: Case, newline: str) -> None:
    assembly = assemble(case.plan, case.kept, case.prefix, newline)
    places, source = expected_places(case, newline)
    assert assembly.places.tolist() == places
    assert assembly.source.tolist() == source
    assert assembly.places.dtype == assembly.source.dtype == np.int64
    starts = np.cumsum([0, *case.plan.runs])
    assert assembly.runs == tuple(sum(a <= place < b for place in places) for a, b in pairwise(starts))


@pytest.mark.parametrize(
    ("newline", "kept_lines"), [("keep_all", list(range(8))), ("keep_nonempty", [0, 5]), ("drop", [])]
)
def test_newlines_of_a_picture(newline: str, kept_lines: list[int]) -> None:
    # Token 2 of the overview, (0, 1) of the upper tile, (1, 0) and (1, 3) of the lower one.
    assembly = assemble(LINED, [np.array([2]), np.array([1]), np.array([4, 7])], 0, newline)
    assert LINED.lines is not None
    is_newline = assembly.source == NEWLINE
    assert LINED.lines[assembly.places[is_newline]].tolist() == kept_lines
    assert assembly.source[~is_newline].tolist() == [0, 1, 2, 3]
    assert LINED.sequence[assembly.places[~is_newline]].tolist() == [2, 17, 36, 39]
    assert assembly.runs == (4 + len(kept_lines),)


def test_everything_kept_is_the_plan() -> None:
    assembly = assemble(LINED, [unit.valid_indices for unit in LINED.units], 0)
    assert assembly.places.tolist() == list(range(LINED.placeholders))
    assert assembly.source.tolist() == LINED.sequence.tolist()
    assert assembly.runs == LINED.runs


def prompt_of(images: list[Case], texts: list[int]) -> np.ndarray:
    """Plain ids: stretches of text (`texts` ids each) with one image id per run between them."""
    runs = sum(len(case.plan.runs) for case in images)
    ids = [1] * texts[0]
    for length in texts[1 : runs + 1]:
        ids += [IMAGE, *[1] * length]
    return np.array(ids, np.int64)


def unpruned_by_hand(
    plain: np.ndarray, images: list[Case], axes: int
) -> tuple[list[list[int]], list[int], int]:
    """(position column, run number or -1) of every id of the unpruned prompt, and the position after it."""
    columns: list[list[int]] = []
    owners: list[int] = []
    runs = [(case.plan, number) for case in images for number in range(len(case.plan.runs))]
    position, at = 0, 0
    for token in plain.tolist():
        if token != IMAGE:
            columns.append([position] * axes)
            owners.append(-1)
            position += 1
            continue
        plan, number = runs[at]
        first = sum(plan.runs[:number])
        for place in range(first, first + plan.runs[number]):
            columns.append([position + int(plan.offsets[axis, place]) for axis in range(axes)])
            owners.append(at)
        position += plan.spans[number]
        at += 1
    return columns, owners, position


@pytest.mark.parametrize("axes", [1, 3])
@given(data=st.data())
@settings(deadline=None, max_examples=100)
def test_original_positions_are_those_of_the_unpruned_prompt(axes: int, data: st.DataObject) -> None:
    images = data.draw(st.lists(cases(axes=axes), max_size=3))
    newline = data.draw(st.sampled_from(POLICIES))
    runs = sum(len(case.plan.runs) for case in images)
    texts = data.draw(st.lists(st.integers(0, 4), min_size=runs + 1, max_size=runs + 1))
    plain = prompt_of(images, texts)
    parts = [(case.plan, assemble(case.plan, case.kept, case.prefix, newline)) for case in images]
    positions = prompt_positions(plain, IMAGE, parts, "original", axes)

    columns, owners, end = unpruned_by_hand(plain, images, axes)
    stays: list[bool] = []
    for plan, assembly in parts:
        of_image = np.zeros(plan.placeholders, np.bool_)
        of_image[assembly.places] = True
        stays += of_image.tolist()
    visual = iter(stays)
    mask = [owner < 0 or next(visual) for owner in owners]
    expected = [column for column, keep in zip(columns, mask, strict=True) if keep]
    assert positions.ids.dtype == np.int64
    assert positions.ids.shape == (axes, len(expected))
    assert positions.ids.T.tolist() == expected
    assert positions.next == end == unpruned_end(plain.size, [case.plan for case in images])

    renumbered = prompt_positions(plain, IMAGE, parts, "renumber", axes)
    assert renumbered.ids.tolist() == [list(range(len(expected)))] * axes
    assert renumbered.next == len(expected)


def test_original_positions_of_two_images() -> None:
    sequence = np.arange(4)
    plan = ImagePlan((Unit(4, (2, 2)),), IMAGE_SLOT, (4,), sequence, running_offsets((4,)), (4,))
    first, second = (assemble(plan, [np.array(kept)], 0) for kept in ([1, 3], [0]))
    plain = np.array([1, IMAGE, 5, 5, IMAGE, 6])
    original = prompt_positions(plain, IMAGE, [(plan, first), (plan, second)], "original")
    assert original.ids.tolist() == [[0, 2, 4, 5, 6, 7, 11]]
    assert original.next == 12
    renumbered = prompt_positions(plain, IMAGE, [(plan, first), (plan, second)], "renumber")
    assert renumbered.ids.tolist() == [list(range(7))]
    assert renumbered.next == 7


def test_text_goes_on_after_the_longest_side_of_a_picture() -> None:
    places = np.indices((2, 3)).reshape(2, -1)
    offsets = np.concatenate([np.zeros_like(places[:1]), places])
    plan = ImagePlan((Unit(6, (2, 3)),), IMAGE_SLOT, (6,), np.arange(6), offsets, (3,))
    assembly = assemble(plan, [np.array([2, 3])], 0)
    positions = prompt_positions(np.array([1, IMAGE, 5]), IMAGE, [(plan, assembly)], "original", 3)
    assert positions.ids.tolist() == [[0, 1, 1, 4], [0, 1, 2, 4], [0, 3, 1, 4]]
    assert positions.next == 5


@pytest.mark.parametrize("policy", ["original", "renumber"])
def test_positions_of_text_alone(policy: str) -> None:
    positions = prompt_positions(np.array([1, 5, 6]), IMAGE, [], policy, 3)
    assert positions.ids.tolist() == [[0, 1, 2]] * 3
    assert isinstance(positions, Positions)
    assert positions.next == 3


def stitched_by_hand(plan: ImagePlan, scores: list[np.ndarray], rows_kept: int) -> list[list[int]]:
    """Kept tokens of each unit: the picture is laid out, its lines averaged in float64 and ordered."""
    assert plan.mosaic is not None
    cells: dict[tuple[int, int], tuple[int, int]] = {}
    tiles = [number for number in range(len(plan.units)) if number != plan.overview]
    for place, number in enumerate(tiles):
        down, across = divmod(place, plan.mosaic[1])
        unit = plan.units[number]
        rows, columns = unit.grid or (0, 0)
        for token in unit.valid_indices.tolist():
            y, x = divmod(token, columns)
            cells[down * rows + y, across * columns + x] = (number, token)
    lines: dict[int, list[tuple[int, int]]] = {}
    for y, x in sorted(cells):
        lines.setdefault(y, []).append(cells[y, x])
    means = {y: np.mean([float(scores[unit][token]) for unit, token in own]) for y, own in lines.items()}
    best = sorted(lines, key=lambda y: (-means[y], y))[:rows_kept]
    kept: list[list[int]] = [[] for _ in plan.units]
    for y in best:
        for unit, token in lines[y]:
            kept[unit].append(token)
    return [sorted(own) for own in kept]


@given(height=st.integers(1, 300), width=st.integers(1, 300), seed=st.integers(0, 9), data=st.data())
@settings(deadline=None, max_examples=60)
def test_stitched_rows_are_lines_of_the_picture(
    height: int, width: int, seed: int, data: st.DataObject
) -> None:
    plan = TOY.plan(height, width)
    rows, columns = stitched_grid(plan)
    assert rows * columns == plan.prunable - 16
    rng = np.random.default_rng(seed)
    # Whole numbers, so that means of equal lines tie exactly.
    scores = [rng.integers(0, 3, unit.tokens).astype(np.float32) for unit in plan.units]
    count = data.draw(st.integers(0, rows))
    kept = stitched_rows_kept(plan, scores, count * columns)
    assert [own.tolist() for own in kept] == stitched_by_hand(plan, scores, count)
    assert kept[0].size == 0  # the overview has its own rows


@pytest.mark.parametrize("size", [(1, 5000), (5000, 1)])
def test_a_sliver_has_no_stitched_picture(size: tuple[int, int]) -> None:
    plan = replace(TOY, pinpoints=((32, 64), (64, 32), (64, 64))).plan(*size)
    assert stitched_grid(plan) == (0, 0)
    scores = [np.ones(16, np.float32)] * len(plan.units)
    assert [own.tolist() for own in stitched_rows_kept(plan, scores, 0)] == [[]] * len(plan.units)
