"""The baseline that makes pictures smaller."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from calib.errors import RunError
from calib.measure.resize import Smaller, corner, in_corner, prepare_smaller, smaller, stand_in_note
from runtime.counts import kept_count
from runtime.errors import ImageError
from runtime.layouts import ImageLayout
from runtime.layouts.anyres import AnyresLayout
from runtime.layouts.aspect import AspectLayout
from runtime.layouts.native import NativeLayout
from runtime.layouts.single import SingleLayout
from runtime.layouts.split import SplitLayout
from runtime.manifest import Preprocess
from runtime.preprocess import prepare
from tests.measuring import noise

NATIVE = NativeLayout(4, 2, 2, 64, 8 * 8 * 400, 2)
ANYRES = AnyresLayout((8, 8), (4, 4), ((8, 16), (16, 8), (16, 16), (24, 24)))
SPLIT = SplitLayout(
    8, (2, 2), {"longest_edge": 32}, True, "<r{row}c{column}>{image}", "\n", "all{image}", "{image}"
)
ASPECT = AspectLayout(8, (2, 2), (1, 6), "{image}")
SINGLE = SingleLayout((4, 4), 16, {"shortest_edge": 16}, {"height": 16, "width": 16}, None)
CONFIG = Preprocess(3, 1 / 255, (0.5, 0.25, 0.0), (0.5, 0.5, 0.5))

edges = st.integers(8, 200)
ratios = st.floats(0.01, 1.0)


def tokens(layout: ImageLayout, size: tuple[int, int]) -> int:
    return layout.plan(*size).placeholders


def scales(size: tuple[int, int]) -> list[tuple[int, int]]:
    """Every smaller form of a picture, the largest first."""
    longest = max(size)
    return [
        (max(1, round(size[0] * edge / longest)), max(1, round(size[1] * edge / longest)))
        for edge in range(longest, -(-longest // min(size)) - 1, -1)
    ]


@settings(max_examples=60, deadline=None)
@given(st.tuples(edges, edges), ratios, st.sampled_from([ANYRES, SPLIT, ASPECT]))
def test_a_smaller_picture_has_few_enough_tokens(
    size: tuple[int, int], ratio: float, layout: ImageLayout
) -> None:
    limit = kept_count(tokens(layout, size), ratio)
    try:
        form = smaller(size, layout, ratio)
    except RunError:
        # A picture that is cut into tiles has one at least, whatever its size.
        fewest = min(tokens(layout, form) for form in scales(size)) if layout is ANYRES else 4
        assert limit < fewest
        return
    assert tokens(form.layout, form.size) <= limit
    assert form.size <= size


@settings(max_examples=30, deadline=None)  # each plans some hundred pictures
@given(st.tuples(edges, edges), ratios)
def test_no_larger_scale_would_do(size: tuple[int, int], ratio: float) -> None:
    limit = kept_count(tokens(NATIVE, size), ratio)
    fitting = (form for form in scales(size) if tokens(NATIVE, form) <= limit)
    expected = next(fitting, None)
    if expected is None:
        with pytest.raises(RunError, match=rf"but ratio \S+ is {limit}: compare resizing at higher ratios"):
            smaller(size, NATIVE, ratio)
    else:
        assert smaller(size, NATIVE, ratio) == Smaller(expected, NATIVE)


@given(st.tuples(edges, edges), st.sampled_from([NATIVE, ANYRES, SPLIT, ASPECT]))
def test_ratio_1_leaves_a_picture_as_it_is(size: tuple[int, int], layout: ImageLayout) -> None:
    assert smaller(size, layout, 1.0) == Smaller(size, layout)


@pytest.mark.parametrize(
    ("ratio", "resize", "splitting"),
    [(1.0, 32, True), (0.99, 24, True), (0.4, 16, True), (0.25, 8, True), (0.06, 8, True)],
)
def test_pictures_that_are_cut_get_a_smaller_longest_edge(ratio: float, resize: int, splitting: bool) -> None:
    form = smaller((40, 40), SPLIT, ratio)  # 17, 10, 5 or 1 tiles of four tokens
    assert form == Smaller((40, 40), replace(SPLIT, resize={"longest_edge": resize}, splitting=splitting))


def test_pictures_of_one_cut_size_shrink_on_both_sides() -> None:
    layout = replace(SPLIT, resize={"height": 16, "width": 32})
    # nine units of four tokens; 2 x 3 tiles and the overview are seven, 1 x 2 and the overview three
    assert smaller((40, 40), layout, 0.8).layout == replace(layout, resize={"height": 16, "width": 24})
    assert smaller((40, 40), layout, 0.6).layout == replace(layout, resize={"height": 8, "width": 16})
    only = replace(SPLIT, resize={"height": 8, "width": 8}, splitting=False)
    assert smaller((40, 40), only, 1.0).layout == only


def test_pictures_in_tiles_get_fewer() -> None:
    assert tokens(ASPECT, (40, 60)) == 7 * 4
    assert smaller((40, 60), ASPECT, 0.5).layout == replace(ASPECT, tiles=(1, 3))
    assert smaller((40, 60), ASPECT, 0.2).layout == replace(ASPECT, tiles=(1, 1))
    many = replace(ASPECT, tiles=(4, 6))
    assert smaller((40, 60), many, 0.2).layout == replace(ASPECT, tiles=(1, 1))


def test_what_cannot_be_made_small_enough() -> None:
    # 16 tokens of the overview, and 2 lines of 4 and a newline of the smallest canvas that it is fitted to
    with pytest.raises(
        RunError,
        match=r"^a picture of 24 x 24 pixels has 172 visual tokens and at least 36 however small it is "
        r"made, but ratio 0.05 is 9: compare resizing at higher ratios$",
    ):
        smaller((24, 24), ANYRES, 0.05)
    with pytest.raises(ImageError, match=r"one side may be at most 200 times the other"):
        smaller((1, 300), NATIVE, 0.5)


def test_the_smaller_form_is_what_the_runtime_would_prepare() -> None:
    picture = noise(100, 60)
    form = smaller((100, 60), NATIVE, 0.3)
    found = prepare_smaller(picture, form, CONFIG)
    height, width = form.size
    expected = prepare(picture.resize((width, height), resample=3), NATIVE, CONFIG)
    assert np.array_equal(found.pixel_values, expected.pixel_values)
    whole = prepare_smaller(picture, smaller((100, 60), NATIVE, 1.0), CONFIG)
    assert np.array_equal(whole.pixel_values, prepare(picture, NATIVE, CONFIG).pixel_values)


# One fixed size


@given(st.integers(1, 30), st.integers(1, 30), st.data())
def test_a_corner_has_the_shape_of_the_grid(rows: int, columns: int, data: st.DataObject) -> None:
    keep = data.draw(st.integers(1, rows * columns))
    r, c = corner((rows, columns), keep)
    assert 1 <= r <= rows
    assert 1 <= c <= columns
    assert r * c <= keep
    assert r <= max(1, (keep * rows / columns) ** 0.5 + 1)
    assert c <= max(1, (keep * columns / rows) ** 0.5 + 1)


@pytest.mark.parametrize(
    ("grid", "keep", "expected"),
    [
        ((14, 14), 196, (14, 14)),
        ((14, 14), 59, (7, 8)),
        ((14, 14), 49, (7, 7)),
        ((14, 14), 8, (2, 3)),
        ((14, 14), 1, (1, 1)),
        ((2, 8), 4, (1, 4)),
        ((8, 2), 4, (4, 1)),
    ],
)
def test_corners(grid: tuple[int, int], keep: int, expected: tuple[int, int]) -> None:
    assert corner(grid, keep) == expected


def test_a_small_picture_lies_in_the_corner_of_an_empty_canvas() -> None:
    picture = noise(32, 48)
    prepared, kept = in_corner(picture, SINGLE, CONFIG, 0.25)
    assert kept.tolist() == [0, 1, 4, 5]
    (view,) = prepared.views
    seen = picture.resize((24, 16), resample=3).crop((4, 0, 20, 16)).resize((8, 8), resample=3)
    assert np.array_equal(view[:8, :8], np.asarray(seen))
    outside = np.ones((16, 16), bool)
    outside[:8, :8] = False
    assert set(map(tuple, view[outside].tolist())) == {(128, 64, 0)}
    assert prepared.plan.prunable == 16


@pytest.mark.parametrize("pad", [None, (1, 2, 3)])
def test_at_ratio_1_the_corner_is_the_picture(pad: tuple[int, int, int] | None) -> None:
    layout, picture = replace(SINGLE, pad_to_square=pad), noise(40, 30)
    prepared, kept = in_corner(picture, layout, CONFIG, 1.0)
    assert kept.tolist() == list(range(16))
    assert np.array_equal(prepared.pixel_values, prepare(picture, layout, CONFIG).pixel_values)


def test_tokens_without_a_grid_have_no_corner() -> None:
    with pytest.raises(RunError, match=r"the 16 tokens of this model make no grid, .*: leave resize out"):
        in_corner(noise(8, 8), replace(SINGLE, grid=None), CONFIG, 0.5)


def test_a_stand_in_is_said_to_be_one() -> None:
    note = stand_in_note(SINGLE)
    assert note is not None
    assert note.startswith(
        "resize is a stand-in: this vision encoder takes pictures of one size only, so the"
    )
    assert [stand_in_note(layout) for layout in (NATIVE, ANYRES, SPLIT, ASPECT)] == [None] * 4
