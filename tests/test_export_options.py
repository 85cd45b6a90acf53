"""Options are refused before anything heavy happens, each with one sentence."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from export.errors import OptionError
from export.families import EncoderInfo
from export.options import NEWLINE_POLICIES, POSITION_POLICIES, ROW_SCOPES, BuildOptions
from export.plan import kept_of
from runtime import manifest
from runtime.layouts.anyres import AnyresLayout
from runtime.layouts.single import SingleLayout

SQUARE = {"height": 32, "width": 32}
SINGLE = SingleLayout((4, 4), 16, SQUARE, None, None)
NO_GRID = SingleLayout(None, 15, SQUARE, None, None)
TILES = AnyresLayout((32, 32), (4, 4), ((32, 64), (64, 32), (64, 64)))
CLIP, SIGLIP = EncoderInfo(2, 1), EncoderInfo(3, 0)
WINDOWS = EncoderInfo(32, 0, layer=31, score_layers=(7, 15, 23, 31))


def test_policies_are_those_of_the_manifest() -> None:
    assert POSITION_POLICIES == manifest.POSITION_POLICIES
    assert ROW_SCOPES == manifest.ROW_SCOPES
    assert NEWLINE_POLICIES == manifest.NEWLINE_POLICIES


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ratio": 0.0}, r"ratio is 0\.0, but it is the fraction of tokens kept: give a number in \(0, 1\]"),
        ({"ratio": 1.5}, r"ratio is 1\.5"),
        ({"ratio": -0.1}, r"ratio is -0\.1"),
        ({"ratio": math.nan}, r"ratio is nan"),
        ({"tokens": 0}, r"tokens is 0, but at least 1 token per image must be kept"),
        ({"ratio": 0.3, "tokens": 3}, r"got both ratio 0\.3 and tokens 3: give one of the two"),
        ({"strategy": "col"}, r"strategy is 'col', expected one of rank, row"),
        ({"aggregation": "max"}, r"aggregation is 'max', expected one of col_mean, col_mean_patch, cls"),
        ({"opset": 19}, r"opset is 19, expected one of 20, 23"),
        ({"position_ids": "new"}, r"position_ids is 'new', expected one of renumber, original$"),
        ({"row_scope": "all"}, r"row_scope is 'all', expected one of tile, stitched"),
        ({"newline": "some"}, r"newline is 'some', expected one of keep_all, keep_nonempty, drop$"),
        ({"row_scope": "stitched"}, r"row_scope is 'stitched', which is about rows, but strategy is 'rank'"),
        ({"layer": -1}, r"layer is -1, but layers are counted from 0"),
        ({"images": (Path("no-such.png"),)}, r"image no-such\.png is not a file"),
    ],
)
def test_refused_at_once(options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        BuildOptions(model="m", **options)


@pytest.mark.parametrize(
    ("encoder", "layout", "options", "message"),
    [
        (CLIP, SINGLE, {"layer": 2}, r"layer is 2, but only layers 0\.\.1 reach the features of this model"),
        (
            WINDOWS,
            SINGLE,
            {"layer": 30},
            r"layer is 30, but attention there stays inside windows.*: give one of 7, 15, 23, 31, or leave",
        ),
        (
            SIGLIP,
            SINGLE,
            {"aggregation": "cls"},
            r"'cls', but this tower has no CLS token: use col_mean or col_mean_patch",
        ),
        (SIGLIP, NO_GRID, {"strategy": "row"}, r"'row', but the 15 tokens of this model make no full grid"),
        (
            CLIP,
            SINGLE,
            {"strategy": "row", "row_scope": "stitched"},
            r"'stitched', but this model does not cut images into tiles: leave --row-scope out",
        ),
        (CLIP, SINGLE, {"newline": "drop"}, r"newline is 'drop', but this model has no newline vectors"),
        (
            CLIP,
            SimpleNamespace(position_axes=3),
            {"position_ids": "renumber"},
            r"'renumber', but this model's positions are time, height and width.*: use original",
        ),
    ],
)
def test_refused_for_a_model(
    encoder: EncoderInfo, layout: Any, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(OptionError, match=message):
        BuildOptions(model="m", **options).check(encoder, layout)


def test_tiles_and_newlines_have_their_policies() -> None:
    options = BuildOptions(model="m", strategy="row", row_scope="stitched", newline="drop")
    options.check(CLIP, TILES)
    assert options.newline_policy == "drop"
    assert BuildOptions(model="m").newline_policy == "keep_all"
    BuildOptions(model="m", layer=15).check(WINDOWS, SINGLE)


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ({}, 5),  # floor(16 * 0.3 + 0.5)
        ({"ratio": 1.0}, 16),
        ({"tokens": 7}, 7),
        ({"strategy": "row"}, 4),  # floor(4 * 0.3 + 0.5) = 1 row
        ({"strategy": "row", "ratio": 0.5}, 8),
        ({"strategy": "row", "tokens": 15}, 12),
    ],
)
def test_tokens_kept(options: dict[str, Any], kept: int) -> None:
    assert kept_of(SINGLE.plan(50, 70), BuildOptions(model="m", **options)) == kept


def test_tokens_kept_of_tiles() -> None:
    plan = TILES.plan(64, 64)  # an overview and 2 x 2 tiles, 16 tokens each
    assert kept_of(plan, BuildOptions(model="m")) == 5 * 5
    assert kept_of(plan, BuildOptions(model="m", tokens=27)) == 27
    stitched = BuildOptions(model="m", strategy="row", row_scope="stitched")
    # 1 of 4 rows of the overview, 2 of the 8 rows of 8 of the tiles together
    assert kept_of(plan, stitched) == 4 + 2 * 8


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tokens": 17}, r"tokens is 17, but an image has 16: give 1\.\.16"),
        ({"strategy": "row", "tokens": 3}, r'"row" keeps whole rows of 4: give 4\.\.16'),
    ],
)
def test_budgets_refused_for_an_image(options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        kept_of(SINGLE.plan(50, 70), BuildOptions(model="m", **options))
