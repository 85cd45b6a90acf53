"""Options are refused before anything heavy happens, each with one sentence."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from export.errors import OptionError
from export.families import VisionLayout
from export.options import BuildOptions, kept_tokens

CLIP = VisionLayout((32, 32), (4, 4), 16, 0, 1, (2,), 1)
SIGLIP = VisionLayout((32, 32), (4, 4), 16, 0, 0, (3,), 0)
NO_GRID = VisionLayout((32, 32), None, 15, 0, 0, (3,), 1)


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
        ({"layer": -1}, r"layer is -1, but layers are counted from 0"),
        ({"images": (Path("no-such.png"),)}, r"image no-such\.png is not a file"),
    ],
)
def test_refused_at_once(options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        BuildOptions(model="m", **options)


@pytest.mark.parametrize(
    ("layout", "options", "message"),
    [
        (CLIP, {"layer": 2}, r"layer is 2, but only layers 0\.\.1 reach the features of this model"),
        (CLIP, {"tokens": 17}, r"tokens is 17, but an image has 16: give 1\.\.16"),
        (
            SIGLIP,
            {"aggregation": "cls"},
            r"'cls', but this tower has no CLS token: use col_mean or col_mean_patch",
        ),
        (NO_GRID, {"strategy": "row"}, r"'row', but the 15 tokens of this model make no full grid"),
        (CLIP, {"strategy": "row", "tokens": 3}, r"'row' keeps whole rows of 4: give 4\.\.16"),
    ],
)
def test_refused_for_a_model(layout: VisionLayout, options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        BuildOptions(model="m", **options).check(layout)


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
    chosen = BuildOptions(model="m", **options)
    assert kept_tokens(CLIP, chosen.strategy, chosen.keep_ratio, chosen.tokens) == kept


def test_layers_are_those_that_reach_the_features() -> None:
    assert replace(CLIP, states=(1, 3, 2)).layers == 3
