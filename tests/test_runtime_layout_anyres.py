"""Tiles on the best canvas, against LLaVA-NeXT's processor and model: counts, order, padding, pixels."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from functools import cache
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers import CLIPVisionConfig, LlavaNextConfig, LlavaNextModel
from transformers.models.llava_next.modeling_llava_next import image_size_to_num_patches

from runtime.decode import decode, encode
from runtime.errors import BundleError, ImageError
from runtime.layouts.anyres import AnyresLayout
from runtime.layouts.base import IMAGE_SLOT, NEWLINE, ImageLayout, Unit
from tests.toy_llava_next import PINPOINTS, PUBLISHED_PINPOINTS, toy_next_processor


@dataclass(frozen=True)
class Geometry:
    """One set of sizes, for transformers and for the layout."""

    tile: int
    patch: int
    pinpoints: tuple[tuple[int, int], ...]

    @property
    def layout(self) -> AnyresLayout:
        side = self.tile // self.patch
        return AnyresLayout((self.tile, self.tile), (side, side), self.pinpoints)


GEOMETRIES = {
    "published": Geometry(336, 14, PUBLISHED_PINPOINTS),
    "toy": Geometry(32, 8, PINPOINTS),
    "up to 3 x 3": Geometry(32, 8, tuple((32 * r, 32 * c) for r in (1, 2, 3) for c in (1, 2, 3))),
    "odd grid, one canvas": Geometry(30, 6, ((90, 90),)),
    "the smallest of all": Geometry(32, 16, ((32, 32),)),
}
# (height, width): square, wide, tall, exact fits, slivers of one pixel, and a photograph.
SIZES = [
    (32, 32),
    (33, 31),
    (64, 64),
    (672, 672),
    (1008, 336),
    (336, 1008),
    (100, 640),
    (640, 100),
    (427, 640),
    (640, 427),
    (1, 1),
    (1, 5000),
    (5000, 1),
    (7, 900),
    (900, 7),
    (2, 3),
    (3000, 4000),
    # For each set above one lying, one standing: the floats say a whole number of tokens less 1e-15
    (55, 176),
    (88, 55),
    (47, 188),
    (188, 47),
    (154, 231),
    (231, 154),
    (49, 98),
    (98, 49),
]
sizes = st.integers(1, 3000) | st.integers(1, 40)


@cache
def processor(name: str, *, raw: bool = False) -> Any:
    """Real processor; `raw`: pixel values are the uint8 levels."""
    sizes = GEOMETRIES[name]
    options = {"do_rescale": False, "do_normalize": False} if raw else {}
    return toy_next_processor(image_size=sizes.tile, patch=sizes.patch, pinpoints=sizes.pinpoints, **options)


def packed(geometry: Geometry, units: int, size: tuple[int, int]) -> list[int]:
    """What the model's own code makes of features whose value is the number of their row; newlines are -1."""
    tower = CLIPVisionConfig(image_size=geometry.tile, patch_size=geometry.patch)
    config = LlavaNextConfig(vision_config=tower, image_grid_pinpoints=[list(p) for p in geometry.pinpoints])
    tokens = (geometry.tile // geometry.patch) ** 2
    rows = torch.arange(units * tokens, dtype=torch.float64).reshape(units, tokens, 1)
    features, lengths = LlavaNextModel.pack_image_features(
        SimpleNamespace(config=config),
        [rows],
        torch.tensor([size]),
        vision_feature_select_strategy="default",
        image_newline=torch.tensor([-1.0], dtype=torch.float64),
    )
    assert lengths.tolist() == [len(features[0])]
    return [int(value) for value in features[0][:, 0]]


def check_against_transformers(name: str, size: tuple[int, int]) -> None:
    geometry = GEOMETRIES[name]
    layout = geometry.layout
    plan = layout.plan(*size)
    pinpoints = [list(canvas) for canvas in geometry.pinpoints]
    assert len(plan.units) == image_size_to_num_patches(size, pinpoints, geometry.tile)
    assert plan.mosaic is not None
    assert len(plan.units) == 1 + plan.mosaic[0] * plan.mosaic[1]

    wanted = packed(geometry, len(plan.units), size)
    assert plan.sequence.dtype == np.int64
    assert plan.sequence.tolist() == wanted
    assert processor(name)._get_num_multimodal_tokens([size]).num_image_tokens == [len(wanted)]
    assert plan.runs == plan.spans == (len(wanted),)
    assert plan.offsets.tolist() == [list(range(len(wanted)))]

    # A token is valid exactly where it reaches the language model, and the overview as a whole.
    survivors = sorted({row for row in wanted if row >= layout.unit_tokens})
    tokens = layout.unit_tokens
    valid = [k * tokens + unit.valid_indices for k, unit in enumerate(plan.units)]
    assert np.concatenate(valid).tolist() == [*range(tokens), *survivors]
    assert plan.prunable == tokens + len(survivors)

    # Lines: none for the overview; then each newline ends one, and the next token begins the next.
    lines, line = [-1] * tokens, 0
    for row in wanted[tokens:]:
        lines.append(line)
        line += row == NEWLINE
    assert plan.lines is not None
    assert plan.lines.tolist() == lines


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", GEOMETRIES)
def test_tokens_are_those_of_transformers(name: str, size: tuple[int, int]) -> None:
    check_against_transformers(name, size)


@pytest.mark.parametrize("name", GEOMETRIES)
@given(height=sizes, width=sizes)
@settings(max_examples=40, deadline=None)
@example(height=427, width=640)
def test_tokens_are_those_of_transformers_for_any_size(name: str, height: int, width: int) -> None:
    check_against_transformers(name, (height, width))


def test_a_square_of_672_pixels_makes_2928_tokens() -> None:
    # 576 of the overview, 48 lines of 48, 48 newlines: the published count
    plan = GEOMETRIES["published"].layout.plan(672, 672)
    assert plan.placeholders == 2928
    assert plan.prunable == 2880
    assert [unit.prunable for unit in plan.units] == [576] * 5
    assert (plan.sequence == NEWLINE).sum() == 48
    assert plan.mosaic == (2, 2)
    assert plan.overview == 0
    assert plan.text == IMAGE_SLOT
    assert not plan.inputs


def test_padding_belongs_to_the_tiles_that_hold_it() -> None:
    # on 64 x 64 pixels, 8 x 8 tokens, it takes 6 columns: one of padding on each side
    plan = GEOMETRIES["toy"].layout.plan(90, 70)
    assert plan.mosaic == (2, 2)
    assert plan.units[0] == Unit(16, (4, 4))
    left, right = Unit(16, (4, 4), (0, 4, 1, 4)), Unit(16, (4, 4), (0, 4, 0, 3))
    assert plan.units[1:] == (left, right, left, right)
    assert plan.units[1].valid_grid == (4, 3)
    assert plan.sequence[16:23].tolist() == [17, 18, 19, 32, 33, 34, NEWLINE]


def test_a_tile_may_be_all_padding() -> None:
    # a line of pixels in the middle of a canvas of 3 x 3 tiles
    plan = GEOMETRIES["odd grid, one canvas"].layout.plan(10, 400)
    assert [unit.prunable for unit in plan.units] == [25, 0, 0, 0, 5, 5, 5, 0, 0, 0]
    assert plan.units[1].valid_indices.tolist() == []
    assert plan.placeholders == 25 + 16


def test_a_sliver_may_leave_the_overview_alone_or_newlines_alone() -> None:
    layout = GEOMETRIES["toy"].layout
    lying, standing = layout.plan(1, 5000), layout.plan(5000, 1)
    assert lying.placeholders == lying.prunable == 16
    assert standing.prunable == 16
    assert standing.sequence[16:].tolist() == [NEWLINE] * 4  # a canvas of 32 x 64: four lines without a token
    assert standing.lines is not None
    assert standing.lines[16:].tolist() == [0, 1, 2, 3]


def test_prompt_has_one_placeholder_per_token() -> None:
    layout = GEOMETRIES["toy"].layout
    images = [Image.new("RGB", size) for size in ((40, 90), (64, 64), (5, 700))]
    inputs = processor("toy")(text="a<image>b<image><image>c", images=images, return_tensors="pt")
    ids = inputs["input_ids"][0].tolist()
    token = processor("toy").image_token_id
    plans = [layout.plan(image.height, image.width) for image in images]
    assert ids.count(token) == sum(plan.placeholders for plan in plans)
    first = ids.index(token)
    assert ids[first : first + plans[0].placeholders + 1].count(token) == plans[0].placeholders


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", GEOMETRIES)
def test_views_are_the_processors_pixels(name: str, size: tuple[int, int]) -> None:
    pixels = np.random.default_rng(size[0]).integers(0, 256, (*size, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    wanted = processor(name, raw=True)(text="<image>", images=image, return_tensors="np")["pixel_values"][0]
    layout = GEOMETRIES[name].layout
    views = layout.views(image, Image.Resampling.BICUBIC)
    assert len(views) == len(layout.plan(*size).units)
    assert all(view.dtype == np.uint8 and view.shape == (*layout.tile, 3) for view in views)
    np.testing.assert_array_equal(np.stack(views).transpose(0, 3, 1, 2), wanted)


def test_views_with_another_filter_and_canvases_of_one_tile() -> None:
    image = Image.fromarray(np.random.default_rng(3).integers(0, 256, (50, 70, 3), dtype=np.uint8))
    theirs = toy_next_processor(
        resample=Image.Resampling.BILINEAR, do_rescale=False, do_normalize=False, pinpoints=((32, 32),)
    )
    wanted = theirs(text="<image>", images=image, return_tensors="np")["pixel_values"][0]
    layout = replace(GEOMETRIES["toy"].layout, pinpoints=((32, 32),))
    views = layout.views(image, Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(np.stack(views).transpose(0, 3, 1, 2), wanted)


def test_layout_describes_the_encoder() -> None:
    layout = GEOMETRIES["published"].layout
    assert layout.kind == "anyres"
    assert layout.pixel_shape == ("units", 3, 336, 336)
    assert layout.unit_tokens == 576
    assert layout.unit_grid == (24, 24)
    assert layout.prefix_tokens == 0
    assert layout.position_axes == 1
    assert layout.masked
    assert layout.has_newlines
    assert layout.has_grid
    assert layout.extra_inputs == ()


@pytest.mark.parametrize("name", GEOMETRIES)
def test_layout_survives_its_json(name: str) -> None:
    layout = GEOMETRIES[name].layout
    data = json.loads(json.dumps(encode(layout)))
    assert data["kind"] == "anyres"
    assert decode(ImageLayout, data, "layout") == layout


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tile": (0, 32)}, r"layout\.tile is \[0, 32\], expected two numbers from 1: rebuild"),
        ({"grid": (4, -1)}, r"layout\.grid is \[4, -1\], expected two numbers from 1: rebuild"),
        ({"pinpoints": ()}, r"layout\.pinpoints is empty, expected at least one \[height, width\]: rebuild"),
        (
            {"pinpoints": ((32, 48),)},
            r"layout\.pinpoints has \[32, 48\], expected multiples of the tile \[32, 32\]",
        ),
        ({"pinpoints": ((0, 32),)}, r"layout\.pinpoints has \[0, 32\], expected multiples"),
    ],
)
def test_a_layout_that_cannot_be_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(BundleError, match=message):
        replace(GEOMETRIES["toy"].layout, **change)


def test_an_image_without_pixels_is_refused() -> None:
    with pytest.raises(
        ImageError, match="an image has 5 x 0 pixels, expected at least 1 x 1: check the file"
    ):
        GEOMETRIES["toy"].layout.plan(0, 5)


@pytest.mark.parametrize("way", ["plan", "views"])
def test_a_sliver_that_would_fill_the_memory_is_refused(way: str) -> None:
    layout, height = GEOMETRIES["published"].layout, 200_000  # by way of 336 x 200,000 pixels
    message = "an image of 1 x 200000 pixels would be resized to 336 x 200000: that does not fit in memory"
    with pytest.raises(ImageError, match=message):
        _ = layout.plan(height, 1) if way == "plan" else layout.views(Image.new("RGB", (1, height)), 3)
    assert layout.plan(1, height).placeholders == 576  # lying down it costs nothing
