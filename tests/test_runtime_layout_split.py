"""Tiles named in the prompt, against the processors of Idefics3 and SmolVLM: text, token ids, pixels."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from runtime.decode import decode, encode
from runtime.errors import BundleError, ImageError
from runtime.layouts.base import IMAGE_SLOT, ImageLayout, Unit
from runtime.layouts.split import SplitLayout
from tests.toy_smolvlm import smolvlm_processor, toy_idefics3_processor

PROCESSORS = {"smolvlm": smolvlm_processor, "idefics3": toy_idefics3_processor}
FAKE, GLOBAL = "<fake_token_around_image>", "<global-img>"


@dataclass(frozen=True)
class Geometry:
    """One set of sizes, for transformers and for the layout."""

    tile: int
    patch: int
    scale_factor: int
    resize: dict[str, int] = field(default_factory=dict)
    splitting: bool = True

    @property
    def layout(self) -> SplitLayout:
        side = self.tile // self.patch // self.scale_factor
        return SplitLayout(
            tile=self.tile,
            grid=(side, side),
            resize=self.resize,
            splitting=self.splitting,
            tile_text=f"{FAKE}<row_{{row}}_col_{{column}}>{IMAGE_SLOT}",
            row_end="\n",
            overview_text=f"\n{FAKE}{GLOBAL}{IMAGE_SLOT}{FAKE}",
            single_text=f"{FAKE}{GLOBAL}{IMAGE_SLOT}{FAKE}",
        )


GEOMETRIES = {
    "toy": Geometry(32, 4, 2, {"longest_edge": 96}),
    "one token per tile": Geometry(16, 4, 4, {"longest_edge": 96}),
    "edge that is no multiple": Geometry(32, 4, 4, {"longest_edge": 101}),
    "tile that is no multiple of the patch": Geometry(29, 3, 3, {"longest_edge": 87}),
    "edge of one tile": Geometry(32, 4, 2, {"longest_edge": 32}),
    "beyond the bound of 4096": Geometry(64, 32, 1, {"longest_edge": 5001}),
    "fixed size": Geometry(32, 4, 2, {"height": 70, "width": 50}),
    "not split": Geometry(32, 4, 2, {"longest_edge": 96}, splitting=False),
}
PUBLISHED = Geometry(512, 16, 4, {"longest_edge": 2048})
# (height, width): square, wide, tall, smaller than a tile, exact, uneven, slivers of one pixel.
SIZES = [
    (32, 32),
    (33, 31),
    (64, 64),
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
    (3, 2),
    (513, 512),
]
SLIVERS = [(1, 900), (900, 1), (7, 900), (900, 13), (3, 70)]
sizes = st.integers(1, 3000) | st.integers(1, 40)


@cache
def processor(kind: str, name: str, *, raw: bool = False) -> Any:
    """Real processor; `raw`: pixel values are the uint8 levels."""
    geometry = PUBLISHED if name == "published" else GEOMETRIES[name]
    return PROCESSORS[kind](
        scale_factor=geometry.scale_factor,
        patch=geometry.patch,
        size=geometry.resize,
        max_image_size={"longest_edge": geometry.tile},
        do_image_splitting=geometry.splitting,
        **({"do_rescale": False, "do_normalize": False} if raw else {}),
    )


def noise(size: tuple[int, int]) -> Image.Image:
    rng = np.random.default_rng(size[0])
    return Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8))


def unrolled(layout: SplitLayout, size: tuple[int, int]) -> str:
    """The text of an image with the image token as often as its runs say."""
    plan = layout.plan(*size)
    parts = plan.text.split(IMAGE_SLOT)
    assert len(parts) == len(plan.runs) + 1
    return "".join(part + "<image>" * run for part, run in zip(parts, (*plan.runs, 0), strict=True))


def check_against_transformers(kind: str, name: str, size: tuple[int, int]) -> None:
    """Text, ids and pixels for one image of one size."""
    layout, theirs = GEOMETRIES[name].layout, processor(kind, name, raw=True)
    image = noise(size)
    inputs = theirs(text="a<image>b", images=[image], return_tensors="np")
    text = f"a{unrolled(layout, size)}b"
    assert inputs["input_ids"][0].tolist() == theirs.tokenizer(text)["input_ids"]

    wanted = inputs["pixel_values"][0]
    views = layout.views(image, Image.Resampling.LANCZOS)
    assert all(view.dtype == np.uint8 for view in views)
    np.testing.assert_array_equal(np.stack(views).transpose(0, 3, 1, 2), wanted)
    # No tile is padded, so that no mask is needed.
    assert inputs["pixel_attention_mask"].shape == (1, *wanted.shape[:1], *wanted.shape[2:])
    assert inputs["pixel_attention_mask"].all()

    plan = layout.plan(*size)
    split = theirs.image_processor([image], return_row_col_info=True)
    rows, columns = split["rows"][0][0], split["cols"][0][0]
    assert plan.mosaic == ((rows, columns) if rows else None)
    assert plan.overview == (rows * columns if rows else None)
    assert plan.units == (Unit(layout.unit_tokens, layout.grid),) * len(wanted)
    assert plan.runs == plan.spans == (layout.unit_tokens,) * len(wanted)
    assert plan.sequence.dtype == plan.offsets.dtype == np.int64
    assert plan.sequence.tolist() == list(range(plan.placeholders))
    assert plan.offsets.tolist() == [[*range(layout.unit_tokens)] * len(wanted)]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", [name for name in GEOMETRIES if name != "beyond the bound of 4096"])
def test_image_is_that_of_smolvlm(name: str, size: tuple[int, int]) -> None:
    check_against_transformers("smolvlm", name, size)


@pytest.mark.parametrize("size", SLIVERS)  # anything else would be 4096 x 4096 pixels
def test_longest_edge_is_bounded_as_in_smolvlm(size: tuple[int, int]) -> None:
    check_against_transformers("smolvlm", "beyond the bound of 4096", size)


@pytest.mark.parametrize("size", SIZES[:8])
@pytest.mark.parametrize("name", ["toy", "edge that is no multiple", "fixed size", "not split"])
def test_image_is_that_of_idefics3(name: str, size: tuple[int, int]) -> None:
    check_against_transformers("idefics3", name, size)


@pytest.mark.parametrize("name", ["toy", "edge that is no multiple", "tile that is no multiple of the patch"])
@given(height=sizes, width=sizes)
@settings(max_examples=25, deadline=None)
@example(height=427, width=640)
def test_image_of_any_size_is_that_of_smolvlm(name: str, height: int, width: int) -> None:
    check_against_transformers("smolvlm", name, (height, width))


def test_picture_of_640_by_480_makes_13_units_at_the_published_sizes() -> None:
    # to 2048 x 1536, which is 4 x 3 tiles of 512, and the whole picture, 64 tokens each
    plan = PUBLISHED.layout.plan(480, 640)
    assert (plan.mosaic, plan.overview) == ((3, 4), 12)
    assert plan.placeholders == plan.prunable == 13 * 64
    ids = processor("idefics3", "published")(text="<image>", images=[noise((480, 640))])["input_ids"][0]
    assert ids.count(processor("idefics3", "published").image_token_id) == 13 * 64


def test_text_names_every_tile() -> None:
    plan = GEOMETRIES["toy"].layout.plan(40, 90)
    tiles = "".join(
        "".join(f"{FAKE}<row_{row}_col_{column}>{IMAGE_SLOT}" for column in (1, 2, 3)) + "\n"
        for row in (1, 2)
    )
    assert plan.text == f"{tiles}\n{FAKE}{GLOBAL}{IMAGE_SLOT}{FAKE}"
    # Braces that mean nothing stay.
    odd = replace(GEOMETRIES["toy"].layout, tile_text="{}{row}{row}{x}{image}", row_end="{row}")
    assert odd.plan(32, 96).text.startswith("{}11{x}{image}{}11{x}{image}{}11{x}{image}{row}")


def test_images_of_one_prompt_keep_their_own_tiles() -> None:
    layout, theirs = GEOMETRIES["toy"].layout, processor("smolvlm", "toy")
    shapes = [(40, 90), (96, 96), (5, 700)]
    inputs = theirs(text="a<image>b<image><image>c", images=[noise(s) for s in shapes], return_tensors="np")
    first, second, third = (unrolled(layout, size) for size in shapes)
    wanted = theirs.tokenizer(f"a{first}b{second}{third}c")["input_ids"]
    assert inputs["input_ids"][0].tolist() == wanted
    assert inputs["pixel_values"].shape[1] == sum(len(layout.plan(*size).units) for size in shapes)
    assert inputs["pixel_attention_mask"].all()


def test_views_with_another_filter() -> None:
    theirs = smolvlm_processor(resample=Image.Resampling.BILINEAR, do_rescale=False, do_normalize=False)
    wanted = theirs(text="<image>", images=[noise((50, 70))], return_tensors="np")["pixel_values"][0]
    views = GEOMETRIES["toy"].layout.views(noise((50, 70)), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(np.stack(views).transpose(0, 3, 1, 2), wanted)


def test_layout_describes_the_encoder() -> None:
    layout = PUBLISHED.layout
    assert layout.kind == "split"
    assert layout.pixel_shape == ("units", 3, 512, 512)
    assert layout.unit_tokens == 64
    assert layout.unit_grid == (8, 8)
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
    assert data["kind"] == "split"
    assert decode(ImageLayout, data, "layout") == layout


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tile": 0}, r"layout\.tile is 0, expected a number from 1: rebuild"),
        ({"grid": (4, -1)}, r"layout\.grid is \[4, -1\], expected two numbers from 1: rebuild"),
        (
            {"resize": {"shortest_edge": 9}},
            r"layout\.resize is {'shortest_edge': 9}, expected {\"longest_edge",
        ),
        ({"resize": {"longest_edge": 0}}, r"layout\.resize is {'longest_edge': 0}, expected {\"longest_edge"),
        ({"tile_text": "<row>"}, r"layout\.tile_text is '<row>', expected {image} exactly once: rebuild"),
        (
            {"single_text": "{image}{image}"},
            r"layout\.single_text is '{image}{image}', expected {image} exactly",
        ),
        ({"overview_text": ""}, r"layout\.overview_text is '', expected {image} exactly once"),
        ({"row_end": "{image}"}, r"layout\.row_end is '{image}', expected text without {image}: rebuild"),
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


@pytest.mark.parametrize(
    ("name", "size"),
    # Too high to be made narrow first; a height kept while the width grows.
    [("toy", (1 << 27, 1)), ("fixed size", (1 << 21, 1))],
)
def test_an_image_that_grows_beyond_memory_is_refused(name: str, size: tuple[int, int]) -> None:
    with pytest.raises(ImageError, match=rf"an image of 1 x {size[0]} pixels would be resized to .* crop it"):
        GEOMETRIES[name].layout.plan(*size)
