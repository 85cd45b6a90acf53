"""Layouts in C++ and in Python: the same plans, the same pixel values, the same words of refusal."""

from __future__ import annotations

import hashlib
import random
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from runtime.layouts import LAYOUTS, ImageLayout, ImagePlan, Unit
from runtime.manifest import Preprocess
from runtime.preprocess import load_image, prepare
from tests.cpp_build import cpp_tool
from tests.cpp_layouts import (
    PUBLISHED,
    Record,
    answers,
    or_error,
    python_layout,
    random_layout,
    random_size,
)

IMAGES = sorted((Path(__file__).parent.parent / "demo" / "images").glob("*.png"))
HALF = Preprocess(3, 1 / 255, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
CLIP = Preprocess(
    3, 0.00392156862745098, (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
)


@pytest.fixture(scope="module")
def probe() -> Path:
    return cpp_tool("probe_layout")


def hashed(values: npt.NDArray[np.int64]) -> list[Any]:
    assert values.dtype == np.int64
    return [values.size, hashlib.sha256(np.ascontiguousarray(values).tobytes()).hexdigest()]


def listed(values: Any) -> Any:
    return None if values is None else list(values)


def unit_facts(unit: Unit) -> list[Any]:
    shape = [unit.tokens, listed(unit.grid), listed(unit.valid), listed(unit.valid_grid), unit.prunable]
    return [*shape, hashed(unit.valid_indices)]


def plan_facts(plan: ImagePlan) -> Record:
    known: dict[Unit, list[Any]] = {unit: unit_facts(unit) for unit in set(plan.units)}
    return {
        "units": [known[unit] for unit in plan.units],
        "text": plan.text,
        "runs": list(plan.runs),
        "sequence": hashed(plan.sequence),
        "axes": plan.offsets.shape[0],
        "offsets": hashed(plan.offsets),
        "spans": list(plan.spans),
        "lines": None if plan.lines is None else hashed(plan.lines),
        "inputs": {
            name: [list(values.shape), hashed(values)] for name, values in sorted(plan.inputs.items())
        },
        "overview": plan.overview,
        "mosaic": listed(plan.mosaic),
        "placeholders": plan.placeholders,
        "prunable": plan.prunable,
    }


def layout_facts(layout: ImageLayout) -> Record:
    def sizes(shape: tuple[int | str, ...]) -> list[int]:
        # What no graph can have is the largest number there is in C++.
        return [min(size, 2**63 - 1) if isinstance(size, int) else -1 for size in shape]

    return {
        "kind": layout.kind,
        "prefix": layout.prefix_tokens,
        "axes": layout.position_axes,
        "masked": layout.masked,
        "newlines": layout.has_newlines,
        "has_grid": layout.has_grid,
        "unit_tokens": layout.unit_tokens,
        "image_tokens": layout.image_tokens,
        "unit_grid": listed(layout.unit_grid),
        "pixel_shape": sizes(layout.pixel_shape),
        "extra_inputs": [[spec.name, spec.dtype, sizes(spec.shape)] for spec in layout.extra_inputs],
    }


def compare_plans(probe: Path, cases: list[tuple[Record, list[tuple[int, int]]]]) -> int:
    """Number of images that both runtimes plan."""
    found = answers(probe, [{"layout": record, "sizes": sizes} for record, sizes in cases])
    planned = 0
    for (record, sizes), got in zip(cases, found, strict=True):
        layout = python_layout(record)
        assert got["facts"] == layout_facts(layout), record
        for size, plan in zip(sizes, got["plans"], strict=True):
            wanted = or_error(lambda h, w: plan_facts(layout.plan(h, w)), *size)  # noqa: B023
            assert plan == wanted, (record, size)
            planned += "error" not in plan
    return planned


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_layouts_plan_every_size_alike(probe: Path, name: str) -> None:
    draw = random.Random(f"published {name}")
    assert compare_plans(probe, [(PUBLISHED[name], [random_size(draw) for _ in range(300)])]) > 180


@pytest.mark.parametrize("kind", LAYOUTS)
def test_random_layouts_plan_every_size_alike(probe: Path, kind: str) -> None:
    draw = random.Random(f"random {kind}")
    cases = [(random_layout(kind, draw), [random_size(draw) for _ in range(40)]) for _ in range(100)]
    assert compare_plans(probe, cases) > 2000


def test_extreme_parameters_plan_alike(probe: Path) -> None:
    """Where doubles no longer hold every integer, quotients are still those of Python's integers."""
    draw = random.Random(5)
    most = 2**31 - 1
    sizes = [(draw.randint(1, most), draw.randint(1, most)) for _ in range(60)]
    sizes += [(draw.randint(1, 3), draw.randint(most // 2, most)) for _ in range(40)]
    sizes += [(most, most), (most, most - 1), (most - 1, most), (1, most), (most, 1), (46341, 46341)]
    square = {"height": 8, "width": 8}
    single = {"kind": "single", "grid": None, "tokens": 5, "crop": square, "pad_to_square": None}
    split = {**PUBLISHED["smolvlm"], "resize": {"longest_edge": most}}
    records: list[Record] = [
        {**single, "resize": {"shortest_edge": edge}, "prefix_tokens": 0} for edge in (1, most, 10**9 + 7)
    ]
    records += [split, {**split, "tile": most}, {**split, "splitting": False}]
    records += [{**PUBLISHED["internvl"], "tile": most}, {**PUBLISHED["internvl"], "tile": 1}]
    native = {**PUBLISHED["qwen2.5-vl"], "window": None}
    records += [{**native, "max_pixels": most}, {**native, "patch_size": most}]
    records += [{**native, "patch_size": most, "merge_size": most}, {**native, "min_pixels": 12845056}]
    records += [
        {**PUBLISHED["llava-next"], "tile": [1, 1], "grid": [1, 1], "pinpoints": [[60, 60], [1, 8192]]}
    ]
    assert compare_plans(probe, [(record, sizes) for record in records]) > 250


WRONG: dict[str, list[tuple[str, Any]]] = {
    "llava-1.5": [
        ("grid", [24, 23]),
        ("grid", [0, 24]),
        ("grid", [24]),
        ("grid", [1.0, 24]),
        ("tokens", 0),
        ("tokens", True),
        ("tokens", None),
        ("tokens", "é\n'\"\\" * 30),
        ("resize", {"shortest_edge": 0}),
        ("resize", {"longest_edge": 5}),
        ("resize", {}),
        ("resize", {"height": 3}),
        ("resize", {"width": 3, "height": -1}),
        ("resize", {"height": 2, "width": None}),
        ("resize", [1, 2]),
        ("crop", {"height": 336}),
        ("crop", {"height": 336, "width": 0}),
        ("crop", None),
        ("pad_to_square", [0, 0, 256]),
        ("pad_to_square", [0, 0]),
        ("pad_to_square", [0, -1, 0]),
        ("prefix_tokens", -1),
        ("prefix_tokens", None),
        ("tile", 3),
        ("kind", "siNgle"),
        ("kind", None),
        ("kind", ["single", 1.5, {"a": None}]),
    ],
    "llava-next": [
        ("tile", [0, 336]),
        ("tile", 336),
        ("grid", [24, -1]),
        ("pinpoints", []),
        ("pinpoints", [[336, 337]]),
        ("pinpoints", [[336, 336], [0, 336]]),
        ("pinpoints", [[336, 336], [336]]),
        ("pinpoints", [[336 * 1000, 336 * 1000]]),
        ("pinpoints", {"height": 1}),
        ("prefix_tokens", 0),
    ],
    "smolvlm": [
        ("tile", 0),
        ("tile", 512.0),
        ("grid", [8, 0]),
        ("resize", {"shortest_edge": 5}),
        ("resize", {"longest_edge": 0}),
        ("splitting", 1),
        ("splitting", None),
        ("tile_text", "no slot"),
        ("tile_text", "{image} and {image}"),
        ("overview_text", "don't"),
        ("single_text", 'don\'t "say"\t\x00\x7f\u200b\U0001f600'),
        ("row_end", "{image}"),
        ("row_end", 3),
    ],
    "internvl": [
        ("tile", -5),
        ("grid", [0, 0]),
        ("tiles", [0, 3]),
        ("tiles", [4, 3]),
        ("tiles", [1, 2, 3]),
        ("text", "nothing"),
        ("text", "{image}{image}"),
        ("text", 1e300),
    ],
    "qwen2.5-vl": [
        ("patch_size", 0),
        ("merge_size", -1),
        ("temporal_patch_size", 0),
        ("min_pixels", 0),
        ("window", 0),
        ("window", 2.5),
        ("max_pixels", 5),
        ("frames", 2),
    ],
}


def test_what_one_runtime_refuses_the_other_refuses_in_the_same_words(probe: Path) -> None:
    records = [{**PUBLISHED[name], key: value} for name, wrong in WRONG.items() for key, value in wrong]
    records += [
        {key: value for key, value in record.items() if key != left}
        for record in PUBLISHED.values()
        for left in record
        if left != "prefix_tokens"
    ]
    two_wrong = {**PUBLISHED["internvl"], "tile": "x"}
    two_wrong["grid"] = [*two_wrong.pop("grid"), 1]  # now after the text
    records.append(two_wrong)
    for got, record in zip(
        answers(probe, [{"layout": record, "sizes": []} for record in records]), records, strict=True
    ):
        wanted = or_error(python_layout, record)
        assert isinstance(wanted, dict), record
        assert got == wanted, record


def test_numbers_beyond_what_the_device_takes_are_refused(probe: Path) -> None:
    """Python takes these, and is stopped by its memory."""
    records = [
        (
            {**PUBLISHED["internvl"], "tile": 2**31},
            "layout.tile is 2147483648, expected an integer of 32 bits",
        ),
        ({**PUBLISHED["internvl"], "tiles": [1, 5000]}, "[1, 5000], expected 4096 at most"),
        ({**PUBLISHED["llava-next"], "grid": [1, 2**40]}, "expected an integer of 32 bits"),
    ]
    for got, (_, message) in zip(
        answers(probe, [{"layout": record, "sizes": []} for record, _ in records]), records, strict=True
    ):
        assert got["error"] == "BundleError"
        assert message in got["message"]
    plans = [
        ({**PUBLISHED["llava-next"], "grid": [3000, 3000]}, (10, 10), "in 3 parts of 9000000 tokens"),
        (
            {**PUBLISHED["llava-1.5"], "crop": {"height": 1 << 20, "width": 1 << 20}},
            (9, 9),
            "1048576 x 1048576",
        ),
        (
            {**PUBLISHED["qwen2.5-vl"], "patch_size": 1, "merge_size": 1, "max_pixels": 2**31 - 1},
            (8000, 8000),
            "64000000 tokens",
        ),
        ({**PUBLISHED["qwen2.5-vl"], "window": 40000}, (100, 100), "1600000000 tokens"),
        ({**PUBLISHED["smolvlm"], "tile": 1, "grid": [1, 1]}, (1000, 1000), "4194305 parts"),
    ]
    found = answers(probe, [{"layout": record, "sizes": [size]} for record, size, _ in plans])
    for got, (_, _, message) in zip(found, plans, strict=True):
        assert got["plans"][0]["error"] == "ImageError"
        assert message in got["plans"][0]["message"]


def compare_pixels(
    probe: Path, folder: Path, cases: list[tuple[Record, Preprocess, Image.Image]]
) -> tuple[int, int]:
    """Numbers of images prepared, and refused, by both runtimes."""
    lines = []
    for number, (record, config, image) in enumerate(cases):
        picture = folder / f"picture{number}"
        picture.write_bytes(np.asarray(image).tobytes())
        lines.append(
            {
                "layout": record,
                "preprocess": vars(config),
                "picture": str(picture),
                "pixels": str(folder / f"pixels{number}"),
                "height": image.height,
                "width": image.width,
            }
        )
    made = 0
    for line, got, (record, config, image) in zip(lines, answers(probe, lines), cases, strict=True):
        wanted = or_error(lambda: prepare(image, python_layout(record), config).pixel_values)  # noqa: B023
        if isinstance(wanted, dict):
            assert got == wanted, record
            continue
        assert got["shape"] == list(wanted.shape), record
        values = np.fromfile(str(line["pixels"]), np.float32)
        # The same bits: one grey level or rounding off would be a difference.
        np.testing.assert_array_equal(values.view(np.int32), wanted.reshape(-1).view(np.int32), str(record))
        made += 1
    return made, len(cases) - made


@pytest.mark.parametrize("name", PUBLISHED)
def test_pixel_values_of_photographs_are_bit_equal(probe: Path, tmp_path: Path, name: str) -> None:
    cases = [(PUBLISHED[name], CLIP, load_image(path)) for path in IMAGES[1:]]
    small = {**PUBLISHED[name]}
    if name == "qwen2.5-vl":
        small["max_pixels"] = 200000
    cases.append((small, HALF, load_image(IMAGES[0])))
    assert compare_pixels(probe, tmp_path, cases) == (len(cases), 0)


@pytest.mark.parametrize("kind", LAYOUTS)
def test_pixel_values_of_random_pictures_are_bit_equal(probe: Path, tmp_path: Path, kind: str) -> None:
    draw = random.Random(f"pixels {kind}")
    noise = np.random.default_rng(7)
    cases = []
    for _ in range(80):
        size = draw.choice([(1, 1), (1, draw.randint(1, 250)), (draw.randint(1, 250), 2), None, None, None])
        height, width = size or (draw.randint(1, 120), draw.randint(1, 120))
        picture = Image.fromarray(noise.integers(0, 256, (height, width, 3), np.uint8))
        numbers = [draw.uniform(0.01, 1.0) for _ in range(7)]
        config = Preprocess(
            draw.randint(0, 5),
            numbers[6] / 100,
            (numbers[0], numbers[1], numbers[2]),
            (numbers[3], numbers[4], numbers[5]),
        )
        cases.append((random_layout(kind, draw), config, picture))
    made, refused = compare_pixels(probe, tmp_path, cases)
    assert made > 50
    assert made + refused == len(cases)
