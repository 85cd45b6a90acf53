"""Images in their own size, against Qwen2.5-VL's processor, vision tower and positions."""

from __future__ import annotations

import json
from functools import cache
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLModel
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import (
    Qwen2VLImageProcessorPil,
    smart_resize,
)
from transformers.vision_utils import get_vision_position_ids, get_vision_window_index

from runtime.decode import decode, encode
from runtime.errors import BundleError, ImageError
from runtime.layouts import IMAGE_SLOT, ImageLayout, Unit
from runtime.layouts.native import TOKEN_POSITIONS, TOKEN_SLOTS, WINDOW_TOKENS, NativeLayout
from runtime.manifest import Preprocess
from runtime.preprocess import prepare

LAYOUTS = {
    "published": NativeLayout(14, 2, 2, 56 * 56, 12845056, 4),
    "processor's own": NativeLayout(14, 2, 2, 56 * 56, 28 * 28 * 1280, None),
    "toy": NativeLayout(4, 2, 2, 16 * 16, 96 * 96, 2),
    "odd": NativeLayout(5, 3, 1, 15, 100 * 100, 3),
    "one token": NativeLayout(8, 1, 2, 1, 64, 8),
}
# (height, width): exact fits, halves of a token, slivers, one pixel, and 12 megapixels.
SIZES = [
    (28, 28),
    (14, 14),
    (42, 70),
    (70, 42),
    (126, 14),
    (1288, 1288),
    (427, 640),
    (1, 1),
    (1, 200),
    (200, 1),
    (3, 599),
    (3000, 4000),
    (2, 3),
    (20, 20),
]
names = st.sampled_from(sorted(LAYOUTS))
sizes = st.tuples(st.integers(1, 900), st.integers(1, 900)).filter(lambda s: max(s) <= 200 * min(s))


@cache
def processor(name: str) -> Any:
    """The real one, whose pixel values are the uint8 levels."""
    layout = LAYOUTS[name]
    return Qwen2VLImageProcessorPil(
        patch_size=layout.patch_size,
        merge_size=layout.merge_size,
        temporal_patch_size=layout.temporal_patch_size,
        size={"shortest_edge": layout.min_pixels, "longest_edge": layout.max_pixels},
        do_rescale=False,
        do_normalize=False,
    )


def grid_thw(layout: NativeLayout, size: tuple[int, int]) -> torch.Tensor:
    token = layout.patch_size * layout.merge_size
    made = smart_resize(*size, token, layout.min_pixels, layout.max_pixels)
    return torch.tensor([[1, made[0] // layout.patch_size, made[1] // layout.patch_size]])


def picture(size: tuple[int, int], seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8))


# Sizes and pixels


@given(name=names, size=sizes)
@example("published", (3000, 4000))
@example("published", (1, 200))
@example("one token", (200, 1))
@example("toy", (4, 4))
@settings(deadline=None, max_examples=200)
def test_size_and_counts_are_those_of_the_processor(name: str, size: tuple[int, int]) -> None:
    layout = LAYOUTS[name]
    token = layout.patch_size * layout.merge_size
    assert layout.resized(*size) == smart_resize(*size, token, layout.min_pixels, layout.max_pixels)
    plan = layout.plan(*size)
    patches = processor(name).get_number_of_image_patches(*size)
    assert plan.placeholders == plan.prunable == patches // layout.merge_size**2
    _, rows, columns = grid_thw(layout, size)[0].tolist()
    assert plan.units == (Unit(plan.placeholders, (rows // layout.merge_size, columns // layout.merge_size)),)
    assert (plan.text, plan.runs) == (IMAGE_SLOT, (plan.placeholders,))
    assert plan.sequence.tolist() == list(range(plan.placeholders))


@pytest.mark.parametrize("name", sorted(LAYOUTS))
@pytest.mark.parametrize("size", [size for size in SIZES if max(size) < 1000])
def test_pixels_are_bit_equal_to_the_processor(name: str, size: tuple[int, int]) -> None:
    layout, image = LAYOUTS[name], picture(size)
    wanted = processor(name)(image, return_tensors="np")["pixel_values"]
    plain = Preprocess(3, 1.0, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    made = prepare(image, layout, plain)
    assert made.pixel_values.dtype == np.float32
    for got, stated in zip(made.pixel_values.shape, layout.pixel_shape, strict=True):
        assert isinstance(stated, str) or got == stated
    assert made.pixel_values.shape[1] == made.plan.placeholders
    np.testing.assert_array_equal(made.pixel_values.reshape(wanted.shape), wanted)


# What the tower gets


@given(name=names, size=sizes)
@example("published", (1288, 1288))
@example("published", (3000, 4000))
@example("toy", (16, 16))
@settings(deadline=None, max_examples=200)
def test_tower_inputs_are_those_of_transformers(name: str, size: tuple[int, int]) -> None:
    layout = LAYOUTS[name]
    grid, merge = grid_thw(layout, size), layout.merge_size
    plan = layout.plan(*size)
    assert [(spec.name, spec.dtype) for spec in layout.extra_inputs] == [
        (key, str(value.dtype)) for key, value in plan.inputs.items()
    ]
    # Patch (a, b) of token (y, x) is at (s y + a, s x + b).
    patches = plan.inputs[TOKEN_POSITIONS][:, None] * merge + np.indices((merge, merge)).reshape(2, -1).T
    wanted = get_vision_position_ids(grid, merge)
    np.testing.assert_array_equal(patches.reshape(-1, 2), wanted.numpy())
    if layout.window is None:
        assert list(plan.inputs) == [TOKEN_POSITIONS]
        return
    pixels = layout.window * merge * layout.patch_size
    order, ends = get_vision_window_index(grid, merge, pixels, layout.patch_size)
    windows, slots = plan.inputs[WINDOW_TOKENS], plan.inputs[TOKEN_SLOTS]
    assert windows.shape[1] == layout.window**2
    np.testing.assert_array_equal(windows[windows >= 0], order.numpy())
    np.testing.assert_array_equal((windows >= 0).sum(axis=1), ends.diff().numpy() // merge**2)
    np.testing.assert_array_equal(windows.reshape(-1)[slots], np.arange(plan.placeholders))


def test_windows_at_the_edge_have_empty_slots() -> None:
    plan = LAYOUTS["toy"].plan(24, 40)  # 3 x 5 tokens
    assert plan.inputs[WINDOW_TOKENS].tolist() == [
        [0, 1, 5, 6],
        [2, 3, 7, 8],
        [4, -1, 9, -1],
        [10, 11, -1, -1],
        [12, 13, -1, -1],
        [14, -1, -1, -1],
    ]
    assert plan.inputs[TOKEN_SLOTS].tolist() == [0, 1, 4, 5, 8, 2, 3, 6, 7, 10, 12, 13, 16, 17, 20]


# Positions in the prompt


@given(
    images=st.lists(sizes, min_size=1, max_size=3),
    texts=st.lists(st.integers(1, 9), min_size=4, max_size=4),
    name=names,
)
@settings(deadline=None, max_examples=60)
def test_positions_are_those_of_the_model(images: list[tuple[int, int]], texts: list[int], name: str) -> None:
    layout = LAYOUTS[name]
    kinds, columns, start = [0] * texts[0], [np.tile(np.arange(texts[0]), (3, 1))], texts[0]
    for size, text in zip(images, texts[1:], strict=False):
        plan = layout.plan(*size)
        kinds += [1] * plan.placeholders + [0] * text
        columns += [start + plan.offsets, start + plan.spans[0] + np.tile(np.arange(text), (3, 1))]
        start += plan.spans[0] + text
    vision = SimpleNamespace(spatial_merge_size=layout.merge_size, tokens_per_second=4)
    model = SimpleNamespace(config=SimpleNamespace(vision_config=vision))
    model.get_vision_position_ids = Qwen2_5_VLModel.get_vision_position_ids.__get__(model)
    wanted, deltas = Qwen2_5_VLModel.get_rope_index(
        model,
        torch.zeros(1, len(kinds), dtype=torch.int64),
        torch.tensor([kinds]),
        image_grid_thw=torch.cat([grid_thw(layout, size) for size in images]),
    )
    np.testing.assert_array_equal(np.concatenate(columns, axis=1), wanted[:, 0].numpy())
    # The first new token is at the greatest position plus one.
    assert start == len(kinds) + int(deltas) == int(wanted.max()) + 1


# Refusals, and the form in a bundle


@pytest.mark.parametrize("size", [(1, 201), (201, 1), (3, 601), (0, 5)])
def test_sliver_is_refused(size: tuple[int, int]) -> None:
    with pytest.raises(
        ImageError, match=f"has {size[1]} x {size[0]} pixels, but one side may be at most 200 times the other"
    ):
        LAYOUTS["published"].plan(*size)


def test_image_that_would_not_fit_in_memory() -> None:
    greedy = NativeLayout(14, 2, 2, 10**9, 10**9, 4)
    with pytest.raises(ImageError, match="would be resized to 31640 x 31640"):
        greedy.plan(10, 10)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"patch_size": 0}, "layout.patch_size is 0, expected a number from 1 on"),
        ({"merge_size": 0}, "layout.merge_size is 0, expected"),
        ({"temporal_patch_size": -1}, "layout.temporal_patch_size is -1, expected"),
        ({"min_pixels": 0}, "layout.min_pixels is 0, expected"),
        ({"window": 0}, "layout.window is 0, expected"),
        ({"max_pixels": 3135}, "layout.max_pixels is 3135, expected at least layout.min_pixels 3136"),
        ({"window": 1.5}, "layout.window is 1.5, expected an integer"),
    ],
)
def test_bundle_with_impossible_numbers(change: dict[str, Any], message: str) -> None:
    record = encode(LAYOUTS["published"]) | change
    with pytest.raises(BundleError, match=message):
        decode(ImageLayout, record, "layout")


@pytest.mark.parametrize("name", sorted(LAYOUTS))
def test_layout_survives_json(name: str) -> None:
    record = json.loads(json.dumps(encode(LAYOUTS[name])))
    assert record["kind"] == "native"
    assert decode(ImageLayout, record, "layout") == LAYOUTS[name]


def test_nothing_is_fixed_but_the_patch() -> None:
    layout = LAYOUTS["published"]
    assert layout.pixel_shape == (1, "tokens", 4, 1176)
    assert [spec.shape for spec in layout.extra_inputs] == [("tokens", 2), ("windows", 16), ("tokens",)]
    assert (layout.unit_tokens, layout.unit_grid, layout.has_grid) == (None, None, True)
    assert (layout.position_axes, layout.masked, layout.has_newlines) == (3, False, False)
