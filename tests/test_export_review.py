"""Wrong answers that a second reader found."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from export.build import BuildOptions, build
from export.checkpoint import open_checkpoint
from export.errors import CheckpointError, OptionError
from export.families import EncoderInfo
from export.families.internvl import InternVLReference
from export.families.llava_next import LlavaNextReference
from export.families.smolvlm import SplitReference
from export.info import count_costs, main
from export.parity import ParityOptions, compare_with_torch
from export.plan import plan_build
from runtime.bundle import load_bundle
from runtime.generator import Generator
from runtime.layouts.aspect import AspectLayout
from runtime.request import Request
from tests.test_fopru_graph_merging import pruned, stated
from tests.toy_internvl import internvl_processor, toy_internvl_model, write_toy_internvl
from tests.toy_llava_next import toy_next_model, toy_next_processor, write_toy_llava_next
from tests.toy_mergers import Toy, feeds
from tests.toy_qwen2_5_vl import write_toy_qwen2_5_vl
from tests.toy_smolvlm import toy_idefics3_processor, toy_split_model, write_toy_idefics3

BIG, SMALL = (64, 64), (30, 60)  # (height, width): 80 tokens and 8 newlines, 48 tokens and 4 newlines


def test_a_grid_of_half_the_tokens_is_no_second_image() -> None:
    toy = Toy("packed", 2, (3, 4), blocks="wf")
    session, _ = pruned(toy, stated(toy, strategy="row", grid="input"))
    given = {**feeds(toy), "num_keep": np.array([4])}
    assert session(given, 4, grid=np.array([3, 4]))["kept_indices"].shape == (1, 4)
    with pytest.raises(Exception, match=r"node_grid_scores"):
        session(given, 4, grid=np.array([3, 2]))


def pictures(folder: Path, sizes: Sequence[tuple[int, int]]) -> tuple[Path, ...]:
    rng = np.random.default_rng(3)
    files = tuple(folder / f"{height}x{width}.png" for height, width in sizes)
    for file, size in zip(files, sizes, strict=True):
        Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).save(file)
    return files


def rewritten(folder: Path, file: str, *keys: str, **values: object) -> Path:
    """A checkpoint with other values in the record at `keys` of a JSON file."""
    path = folder / file
    data = json.loads(path.read_text())
    record = data
    for key in keys:
        record = record[key]
    record.update(values)
    path.write_text(json.dumps(data))
    return folder


@pytest.fixture(scope="module")
def budget(torch_threads: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, tuple[Path, ...]]:
    """A bundle that keeps 60 tokens of an image by default and drops newlines; a big and a small picture."""
    folder = tmp_path_factory.mktemp("budget")
    images = pictures(folder, (BIG, SMALL))
    checkpoint = write_toy_llava_next(folder / "checkpoint")
    options = BuildOptions(str(checkpoint), folder / "bundle", tokens=60, newline="drop", images=images[:1])
    return build(options).bundle, images


# Real checkpoints


def test_dynamic_rotary_scaling_as_in_published_internvl3(tmp_path: Path, torch_threads: None) -> None:
    # All InternVL3-*-hf with Qwen2 have it: below max_position_embeddings it is the plain kind.
    checkpoint = rewritten(
        write_toy_internvl(tmp_path / "m"),
        "config.json",
        "text_config",
        rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e6},
        max_position_embeddings=400,
    )
    report = build(BuildOptions(str(checkpoint), tmp_path / "b", ratio=1.0, prompt="q" * 235))
    assert report.parity["ok"]


def _next() -> tuple[Any, Any, Any]:
    model, processor = toy_next_model(), toy_next_processor()
    return model.model.vision_tower, processor, LlavaNextReference(model)


def _split() -> tuple[Any, Any, Any]:
    model, processor = toy_split_model("idefics3"), toy_idefics3_processor()
    return model.model.vision_model, processor, SplitReference(model, processor)


def _internvl() -> tuple[Any, Any, Any]:
    model = toy_internvl_model()
    return model.model.vision_tower, internvl_processor(), InternVLReference(model)


@pytest.mark.parametrize("make", [_next, _split, _internvl])
def test_reference_never_holds_the_attention_of_all_units(
    make: Callable[[], tuple[Any, Any, Any]], torch_threads: None
) -> None:
    # transformers keeps every layer's: 10 GiB for the 17 tiles of SmolVLM, 24 GiB for 13 of InternVL3.
    tower, processor, reference = make()
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (96, 96, 3), dtype=np.uint8))
    inputs = processor(text=processor.image_token, images=[picture], return_tensors="pt")
    seen: list[int] = []
    tower.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(len((*args, *kwargs.values())[0])), with_kwargs=True
    )
    with torch.no_grad():
        scores = reference.unit_scores(inputs, 0, "col_mean")
    assert len(scores) > 1
    assert max(seen) == 1


# Counts


def test_info_of_a_bundle_keeps_what_a_small_image_has(
    budget: tuple[Path, tuple[Path, ...]], capsys: pytest.CaptureFixture[str]
) -> None:
    bundle, (_, small) = budget
    result = Generator(load_bundle(bundle)).generate(Request("Hm?", (small,), max_new_tokens=1))
    assert main([str(bundle), "--image-size", "60x30", "--json"]) == 0
    (image,) = json.loads(capsys.readouterr().out)["images"]
    assert (image["placeholders_kept"],) == result.visual_tokens_after == (52,)


def test_info_of_a_bundle_without_a_default_prunes_nothing(
    budget: tuple[Path, tuple[Path, ...]], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    manifest = json.loads((budget[0] / "bundle.json").read_text())
    manifest["pruning"].update(default_ratio=None, default_tokens=None)
    folder = tmp_path / "bundle"
    folder.mkdir()
    for entry in budget[0].iterdir():
        (folder / entry.name).symlink_to(entry)
    (folder / "bundle.json").unlink()
    (folder / "bundle.json").write_text(json.dumps(manifest))
    assert main([str(folder), "--image-size", "64x64", "--json"]) == 0
    (image,) = json.loads(capsys.readouterr().out)["images"]
    assert (image["prunable"], image["prunable_kept"], image["placeholders_kept"]) == (80, 80, 88)


def test_parity_with_a_default_that_one_of_two_images_has_not(
    budget: tuple[Path, tuple[Path, ...]],
) -> None:
    bundle, images = budget
    result = Generator(load_bundle(bundle)).generate(Request("Hm?", images, max_new_tokens=1))
    assert result.visual_tokens_after == (60, 52)
    assert compare_with_torch(load_bundle(bundle), ParityOptions(images=images, prompt="Hm?")).ok


def test_build_reports_newlines_image_by_image(tmp_path: Path, torch_threads: None) -> None:
    images = pictures(tmp_path, (BIG, SMALL))
    checkpoint = write_toy_llava_next(tmp_path / "m")
    options = BuildOptions(str(checkpoint), tmp_path / "b", tokens=48, newline="drop", images=images)
    report = build(options)
    result = Generator(load_bundle(report.bundle)).generate(Request("Hm?", images, max_new_tokens=1))
    assert report.kept == result.visual_tokens_after == (48, 52)


def test_kept_positions_are_counted_before_anything_is_exported(tmp_path: Path) -> None:
    checkpoint = rewritten(
        write_toy_llava_next(tmp_path / "m"), "config.json", "text_config", max_position_embeddings=130
    )
    options = BuildOptions(str(checkpoint), position_ids="original")
    with pytest.raises(OptionError, match="more than the 130 positions"):
        plan_build(options, open_checkpoint(str(checkpoint)))


def test_positions_of_m_rope_are_fewer_than_tokens(tmp_path: Path) -> None:
    # 144 tokens of 12 x 12 take 12 positions: the finished bundle answers
    checkpoint = rewritten(
        write_toy_qwen2_5_vl(tmp_path / "m"), "config.json", "text_config", max_position_embeddings=200
    )
    plan = plan_build(BuildOptions(str(checkpoint), ratio=1.0), open_checkpoint(str(checkpoint)))
    assert plan.placeholders == (144,)


# Refusals


@pytest.mark.parametrize(("tile", "most"), [(448, 2), (448, 3), (896, 4)])
def test_a_model_of_few_or_large_tiles_has_stitched_rows(tile: int, most: int) -> None:
    layout = AspectLayout(tile=tile, grid=(4, 4), tiles=(1, most), text="{image}")
    assert layout.plan(300, 600).mosaic == (1, 2)
    BuildOptions("m", strategy="row", row_scope="stitched").check(EncoderInfo(2, 1), layout)


@pytest.mark.parametrize(
    ("write", "where", "values", "message"),
    [
        (write_toy_idefics3, ("config.json",), {"scale_factor": 0}, "scale_factor 0"),
        (write_toy_idefics3, ("config.json", "vision_config"), {"patch_size": 0}, "patches of 0 pixels"),
        (write_toy_internvl, ("config.json", "vision_config"), {"patch_size": [0, 0]}, "patches of 0 pixels"),
        (
            write_toy_internvl,
            ("processor_config.json", "image_processor"),
            {"max_patches": None},
            "max_patches",
        ),
        (
            write_toy_llava_next,
            ("processor_config.json", "image_processor"),
            {"size": {"shortest_edge": "x"}},
            "size",
        ),
    ],
)
def test_damaged_numbers_are_named(
    write: Callable[[Path], Path],
    where: tuple[str, ...],
    values: dict[str, Any],
    message: str,
    tmp_path: Path,
) -> None:
    folder = rewritten(write(tmp_path / "m"), *where, **values)
    with pytest.raises(CheckpointError, match=message):
        count_costs(BuildOptions(str(folder)), [(64, 64)])
