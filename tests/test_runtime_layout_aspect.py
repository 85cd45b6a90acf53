"""Tiles on the canvas of the closest aspect ratio, against the processor of InternVL: text, ids, pixels."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from runtime.decode import decode, encode
from runtime.errors import BundleError, ImageError
from runtime.layouts.aspect import AspectLayout
from runtime.layouts.base import IMAGE_SLOT, ImageLayout, Unit
from tests.toy_internvl import internvl_processor

CONTEXT = "<IMG_CONTEXT>"
TEXT = f"<img>{IMAGE_SLOT}</img>"


@dataclass(frozen=True)
class Geometry:
    """One set of sizes, for transformers and for the layout."""

    tile: int
    side: int
    tiles: tuple[int, int]

    @property
    def layout(self) -> AspectLayout:
        return AspectLayout(tile=self.tile, grid=(self.side, self.side), tiles=self.tiles, text=TEXT)


GEOMETRIES = {
    "toy": Geometry(32, 4, (1, 6)),
    "one token per tile": Geometry(16, 1, (1, 12)),
    "never whole": Geometry(32, 4, (2, 5)),
    "one number of tiles": Geometry(24, 3, (7, 7)),
    "not cut": Geometry(32, 4, (1, 1)),
}
PUBLISHED = Geometry(448, 16, (1, 12))
# (height, width): square, wide, tall, smaller than a tile, exact, uneven, slivers of one pixel, and pairs
# that two canvases fit equally well, small and large enough for the larger one.
SIZES = [
    (32, 32),
    (33, 31),
    (64, 64),
    (65, 64),
    (96, 64),
    (20, 30),
    (100, 640),
    (427, 640),
    (640, 427),
    (1, 1),
    (1, 900),
    (900, 1),
    (7, 900),
    (95, 97),
    (2, 3),
    (513, 512),
    (45, 45),
    (46, 46),
    (22, 44),
    (32, 64),
]
sizes = st.integers(1, 3000) | st.integers(1, 70)


@cache
def processor(name: str) -> Any:
    """Real processor whose pixel values are the uint8 levels."""
    geometry = PUBLISHED if name == "published" else GEOMETRIES[name]
    return internvl_processor(
        tokens=geometry.side**2,
        size={"height": geometry.tile, "width": geometry.tile},
        min_patches=geometry.tiles[0],
        max_patches=geometry.tiles[1],
        do_rescale=False,
        do_normalize=False,
    )


def noise(size: tuple[int, int]) -> Image.Image:
    rng = np.random.default_rng(size[0])
    return Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8))


def unrolled(layout: AspectLayout, size: tuple[int, int]) -> str:
    """The text of an image with the image token as often as its run says."""
    plan = layout.plan(*size)
    (run,) = plan.runs
    return plan.text.replace(IMAGE_SLOT, CONTEXT * run)


def check_against_transformers(name: str, size: tuple[int, int]) -> None:
    """Text, ids and pixels for one image of one size."""
    from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import get_optimal_tiled_canvas

    geometry, theirs = GEOMETRIES[name], processor(name)
    layout, image = geometry.layout, noise(size)
    inputs = theirs(text=f"a{CONTEXT}b", images=[image], return_tensors="np")
    wanted = theirs.tokenizer(f"a{unrolled(layout, size)}b")["input_ids"]
    assert inputs["input_ids"][0].tolist() == wanted

    views = layout.views(image, Image.Resampling.BICUBIC)
    assert all(view.dtype == np.uint8 for view in views)
    np.testing.assert_array_equal(np.stack(views).transpose(0, 3, 1, 2), inputs["pixel_values"])

    plan, units = layout.plan(*size), len(inputs["pixel_values"])
    columns, rows = get_optimal_tiled_canvas(size, (layout.tile, layout.tile), *layout.tiles)
    assert plan.mosaic == ((rows, columns) if units > 1 else None)
    assert plan.overview == (rows * columns if units > 1 else None)
    assert plan.units == (Unit(layout.unit_tokens, layout.grid),) * units
    assert plan.runs == plan.spans == (units * layout.unit_tokens,)
    assert plan.sequence.dtype == plan.offsets.dtype == np.int64
    assert plan.sequence.tolist() == list(range(plan.placeholders))
    assert plan.offsets.tolist() == [list(range(plan.placeholders))]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", GEOMETRIES)
def test_image_is_that_of_internvl(name: str, size: tuple[int, int]) -> None:
    check_against_transformers(name, size)


@pytest.mark.parametrize("name", ["toy", "one token per tile", "never whole"])
@given(height=sizes, width=sizes)
@settings(max_examples=25, deadline=None)
@example(height=427, width=640)
def test_image_of_any_size_is_that_of_internvl(name: str, height: int, width: int) -> None:
    check_against_transformers(name, (height, width))


def test_a_larger_canvas_is_taken_once_the_picture_fills_half_of_it() -> None:
    layout = GEOMETRIES["toy"].layout  # squares fit 1 x 1 and 2 x 2 tiles, which have 64 x 64 pixels
    assert layout.plan(45, 45).mosaic is None
    assert layout.plan(46, 46).mosaic == (2, 2)


def test_picture_of_640_by_480_makes_13_units_at_the_published_sizes() -> None:
    # 4 : 3 is that of 4 x 3 tiles, and the picture fills less than half of them, but no other canvas fits it
    plan = PUBLISHED.layout.plan(480, 640)
    assert (plan.mosaic, plan.overview) == ((3, 4), 12)
    assert plan.placeholders == plan.prunable == 13 * 256
    ids = processor("published")(text=CONTEXT, images=[noise((480, 640))])["input_ids"][0]
    assert ids.count(processor("published").image_token_id) == 13 * 256


def test_images_of_one_prompt_keep_their_own_tiles() -> None:
    layout, theirs = GEOMETRIES["toy"].layout, processor("toy")
    shapes = [(40, 90), (96, 96), (5, 700)]
    inputs = theirs(
        text=f"a{CONTEXT}b{CONTEXT}{CONTEXT}c", images=[noise(s) for s in shapes], return_tensors="np"
    )
    first, second, third = (unrolled(layout, size) for size in shapes)
    wanted = theirs.tokenizer(f"a{first}b{second}{third}c")["input_ids"]
    assert inputs["input_ids"][0].tolist() == wanted
    assert len(inputs["pixel_values"]) == sum(len(layout.plan(*size).units) for size in shapes)


def test_views_with_another_filter() -> None:
    theirs = internvl_processor(resample=Image.Resampling.BILINEAR, do_rescale=False, do_normalize=False)
    wanted = theirs(text=CONTEXT, images=[noise((50, 70))], return_tensors="np")["pixel_values"]
    views = GEOMETRIES["toy"].layout.views(noise((50, 70)), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(np.stack(views).transpose(0, 3, 1, 2), wanted)


def test_layout_describes_the_encoder() -> None:
    layout = PUBLISHED.layout
    assert layout.kind == "aspect"
    assert layout.pixel_shape == ("units", 3, 448, 448)
    assert layout.unit_tokens == 256
    assert layout.unit_grid == (16, 16)
    assert layout.prefix_tokens == 0
    assert layout.position_axes == 1
    assert layout.has_grid
    assert not layout.masked
    assert not layout.has_newlines
    assert layout.extra_inputs == ()


@pytest.mark.parametrize("name", GEOMETRIES)
def test_layout_survives_its_json(name: str) -> None:
    layout = GEOMETRIES[name].layout
    data = json.loads(json.dumps(encode(layout)))
    assert data["kind"] == "aspect"
    assert decode(ImageLayout, data, "layout") == layout


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tile": 0}, r"layout\.tile is 0, expected a number from 1: rebuild"),
        ({"grid": (4, -1)}, r"layout\.grid is \[4, -1\], expected two numbers from 1: rebuild"),
        ({"tiles": (0, 6)}, r"layout\.tiles is \[0, 6\], expected two numbers from 1, the smaller first: r"),
        ({"tiles": (6, 5)}, r"layout\.tiles is \[6, 5\], expected two numbers from 1, the smaller first: r"),
        ({"text": "<img>"}, r"layout\.text is '<img>', expected {image} exactly once: rebuild"),
        ({"text": "{image}{image}"}, r"layout\.text is '{image}{image}', expected {image} exactly once"),
    ],
)
def test_a_layout_that_cannot_be_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(BundleError, match=message):
        replace(GEOMETRIES["toy"].layout, **change)


def test_an_image_without_pixels_is_refused() -> None:
    with pytest.raises(
        ImageError, match="an image has 0 x 5 pixels, expected at least 1 x 1: check the file"
    ):
        GEOMETRIES["toy"].layout.plan(5, 0)


def test_an_image_that_grows_beyond_memory_is_refused() -> None:
    # Too high to be made as wide as a tile first.
    with pytest.raises(ImageError, match=r"an image of 1 x 2097153 pixels would be resized to .* crop it"):
        GEOMETRIES["toy"].layout.plan((1 << 21) + 1, 1)
    huge = replace(GEOMETRIES["toy"].layout, tile=1 << 14)
    with pytest.raises(ImageError, match=r"an image of 5 x 5 pixels would be resized to 16384 x 16384: .*"):
        huge.plan(5, 5)
