"""Preflight arithmetic against cases worked out by hand, and what it says when something does not fit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from runtime import contract
from runtime.bundle import load_bundle
from runtime.errors import EngineError
from runtime.manifest import FileInfo, Manifest
from runtime.tensorrt.memory import (
    BOARDS,
    OVERHEAD,
    BlockSizes,
    FreeMemory,
    MemoryNeed,
    ModelSizes,
    free_memory,
    memory_of,
    preflight,
    sizes_from_config,
    weight_files,
)
from runtime.tensorrt.plan import Limits, plan_engines

MIB, GIB = 1 << 20, 1 << 30
SMALL = Limits(max_images=2, max_prompt=40, max_new_tokens=10)
Bundles = Callable[[str], Path]
NEED = MemoryNeed(
    weights={"vision_encoder_fopru": GIB, "embed_tokens": GIB // 4, "decoder_model_portable": 4 * GIB},
    kv=GIB,
    io=GIB // 4,
    features=GIB // 4,
    activations={"vision_encoder_fopru": GIB // 4, "embed_tokens": 0, "decoder_model_portable": GIB // 2},
    overhead=GIB // 2,
    build={"vision_encoder_fopru": 3 * GIB, "embed_tokens": GIB, "decoder_model_portable": 9 * GIB},
    build_field=16 * GIB,
    largest=("the LM head", GIB // 2),
)
PLENTY = FreeMemory(64 * GIB, 60 * GIB, GIB)


@pytest.fixture(scope="module")
def manifest(family_bundle: Bundles) -> Manifest:
    return load_bundle(family_bundle("llava"), verify=False).manifest


def sized(manifest: Manifest, bytes_: int) -> Manifest:
    """Every file has so many bytes."""
    return replace(manifest, files={name: FileInfo(bytes_, "0" * 64) for name in manifest.files})


def test_every_part_by_hand(manifest: Manifest) -> None:
    plan = plan_engines(manifest, SMALL, 64 * MIB)  # 82 rows of cache, prompts of 72, 2 pictures at once
    sizes = ModelSizes(BlockSizes(32, 48, 4), BlockSizes(32, 48, 4))
    need = memory_of(plan, sized(manifest, 1000), sizes)
    # A graph and the data file that it shares.
    assert need.weights == dict.fromkeys((graph.graph for graph in plan.graphs), 2000)
    assert (
        need.kv == 2 * 1 * 2 * 8 * 256 * 4
    )  # a block of rows; key and value, a layer, 2 heads of 8, float32
    # Vision: 2 pictures of 17 rows; attention has 2 x 4 x 17 x 17 = 2312 values, the MLP 2 x 48 x 17 = 1632.
    vision = 2 * 4 * (5 * 32 * 17 + 2 * 4 * 17 * 17)
    # Prefill: 72 rows against 256 + 72; past and new together for 4 heads of 8; logits of 262 words.
    prefill = 4 * (5 * 32 * 72 + 2 * 4 * 72 * 328 + 2 * 328 * 4 * 8 + 262)
    assert need.activations == {
        contract.VISION_ENCODER_FOPRU: vision,
        contract.EMBED_TOKENS: 0,
        contract.DECODER_PORTABLE: prefill,
    }
    assert need.scratch == prefill
    pixels = 2 * 3 * 32 * 32 * 4
    outputs = 2 * (16 * 32 * 4 + 16 * 8 + 16 * 4)  # features, indices, scores
    embed = 72 * (8 + 32 * 4)
    decoder = 72 * 32 * 4 + 8 * 328 + 8 * 82 + 262 * 4  # rows, mask, positions, logits
    assert need.io == pixels + outputs + embed + decoder
    # What `Reuse` keeps of pictures by default; a `Generator` with NO_REUSE does without.
    assert need.features == 256 * MIB
    assert need.run_least == 3 * 2000 + need.kv + need.io + prefill + OVERHEAD
    assert need.run == need.run_least + 256 * MIB
    assert need.build[contract.DECODER_PORTABLE] == 2 * 2000 + prefill + 64 * MIB
    assert need.build_peak == 4000 + prefill + 64 * MIB + OVERHEAD
    assert need.build_pinned == 2000 + prefill + 64 * MIB + OVERHEAD
    assert need.largest == ("scratch memory of decoder_model_portable", prefill)


def test_halves_take_half(manifest: Manifest) -> None:
    graphs = {name: replace(info, precision="fp16") for name, info in manifest.graphs.items()}
    halved = replace(manifest, graphs=graphs, decoder=replace(manifest.decoder, cache_dtype="float16"))
    config = {
        "vision_config": {"hidden_size": 64, "intermediate_size": 100, "num_heads": 2, "patch_size": 4},
        "text_config": {"intermediate_size": 48, "num_attention_heads": 4, "tie_word_embeddings": False},
    }
    sizes = sizes_from_config(config, halved)
    # 32 x 32 px in patches of 4 x 4 are 64, four to a token.
    assert sizes == ModelSizes(BlockSizes(64, 100, 2, 2), BlockSizes(32, 48, 4, 2), 4, 1)
    plan = plan_engines(halved, SMALL, MIB)
    need = memory_of(plan, sized(halved, 1000), sizes)
    # The head, 262 words of 32 columns, is float32 in an engine: 2 bytes more than in its file.
    assert need.weights[contract.DECODER_PORTABLE] == 2000 + 2 * 262 * 32
    assert need.weights[contract.EMBED_TOKENS] == 2000
    assert need.kv == 2 * 2 * 8 * 256 * 2
    # Logits and probabilities of the attention stay float32: 2 x 2 heads x 65 x 65 of 4 bytes.
    assert need.activations[contract.VISION_ENCODER_FOPRU] == 2 * (2 * 5 * 64 * 65 + 4 * 4 * 65 * 65)


@pytest.mark.parametrize(
    ("precision", "tied", "more"),
    [
        ("fp32", False, 0.0),
        ("fp32", True, 4.0),  # its file is another graph's
        ("fp16", True, 4.0),
        ("bf16", False, 2.0),
        ("int4", False, 0.0),
        ("int4", True, 0.5),
    ],
)
def test_the_head_of_an_engine(manifest: Manifest, precision: str, tied: bool, more: float) -> None:
    graphs = {name: replace(info, precision=precision) for name, info in manifest.graphs.items()}
    made = sized(replace(manifest, graphs=graphs), 10_000)
    sizes = ModelSizes(BlockSizes(32, 48, 4), BlockSizes(32, 48, 4), tied=tied)
    need = memory_of(plan_engines(made, SMALL, MIB), made, sizes)
    assert need.weights[contract.DECODER_PORTABLE] == 20_000 + more * 262 * 32


@pytest.mark.parametrize(
    ("config", "tied"),
    [
        ({"tie_word_embeddings": False}, False),
        ({"tie_word_embeddings": False, "text_config": {"tie_word_embeddings": True}}, True),
        ({}, True),
    ],
)
def test_whether_the_head_is_tied(manifest: Manifest, config: dict[str, object], tied: bool) -> None:
    sizes = sizes_from_config(config, manifest)
    assert sizes.tied is tied
    assert ("tie_word_embeddings" in sizes.guessed) is (not config)


def test_less_is_kept_less_is_needed(manifest: Manifest) -> None:
    sizes = ModelSizes(BlockSizes(32, 48, 4), BlockSizes(32, 48, 4))
    need = [
        memory_of(
            plan_engines(manifest, replace(SMALL, max_images=30, max_ratio=ratio), MIB), manifest, sizes
        )
        for ratio in (1.0, 0.3)
    ]
    assert (
        need[1].kv == need[0].kv // 2
    )  # 30 x 5 + 50 rows are a block; 30 x 16 + 50, of which there are 512 positions, two
    assert need[1].scratch < need[0].scratch
    assert need[1].io < need[0].io


def test_what_a_configuration_does_not_say_is_guessed_and_named(manifest: Manifest) -> None:
    sizes = sizes_from_config({}, manifest)
    assert sizes.text == BlockSizes(32, 4 * 32, 32 // 8)
    assert sizes.guessed == (
        *("vision_config.hidden_size", "vision_config.intermediate_size"),
        *("vision_config.num_attention_heads", "text_config.intermediate_size"),
        *("text_config.num_attention_heads", "tie_word_embeddings"),
    )


def test_the_files_of_a_graph(manifest: Manifest) -> None:
    assert weight_files(manifest, contract.VISION_ENCODER_FOPRU) == (
        "onnx/vision_encoder_fopru.onnx",
        "onnx/vision_encoder.onnx_data",
    )
    info = replace(manifest.graphs[contract.DECODER_PORTABLE], file="onnx/decoder_model_portable_q4.onnx")
    files = dict.fromkeys(
        (info.file, "onnx/decoder_model_merged_q4.onnx_data", *manifest.files), FileInfo(1, "0" * 64)
    )
    other = replace(manifest, files=files, graphs=manifest.graphs | {contract.DECODER_PORTABLE: info})
    assert weight_files(other, contract.DECODER_PORTABLE) == (
        info.file,
        "onnx/decoder_model_merged_q4.onnx_data",
    )


def test_what_fits_says_nothing() -> None:
    found = preflight(NEED, PLENTY)
    assert found.verdict.ok
    assert found.verdict.warnings == ()
    assert (NEED.run_least, NEED.run) == (7.5 * GIB, 7.75 * GIB)  # 5.25 + 1 + .25 + .5 + .5, and .25
    assert (NEED.build_peak, NEED.build_pinned) == (9.5 * GIB, 5.5 * GIB)
    assert preflight(NEED, None).verdict.ok  # a device that is not here


def test_running_does_not_fit() -> None:
    (problem,) = preflight(NEED, replace(PLENTY, available=7 * GIB, swap=60 * GIB)).verdict.problems
    assert problem == (
        "running needs 7.50 GiB, but 7.00 GiB of 64.00 GiB are free: give a smaller --max-prompt or "
        "--max-images, a lower --max-ratio, or an int4 bundle"
    )


def test_kept_pictures_do_not_fit() -> None:
    tight = replace(PLENTY, available=round(7.6 * GIB), swap=60 * GIB)
    found = preflight(NEED, tight).verdict
    assert found.ok  # a program can keep less
    assert found.warnings == (
        "running needs 7.75 GiB once 0.25 GiB of visual tokens of earlier pictures are kept, but 7.60 GiB "
        "are free: make the Generator with Reuse(features=0), or give a smaller --max-prompt or "
        "--max-images, a lower --max-ratio, or an int4 bundle",
    )
    assert preflight(replace(NEED, features=0), tight).verdict.warnings == ()


def test_building_needs_swap() -> None:
    (problem,) = preflight(NEED, replace(PLENTY, available=8 * GIB, swap=GIB)).verdict.problems
    assert problem == (
        "building decoder_model_portable needs 9.50 GiB at least, but 8.00 GiB and 1.00 GiB of swap are free"
        ": add 0.50 GiB of swap, stop other programs and the desktop, or give a smaller --workspace"
    )
    found = preflight(NEED, replace(PLENTY, available=8 * GIB, swap=2 * GIB)).verdict
    assert found.ok
    assert found.warnings == (
        "builds of language models were seen to take 3 to 4 times the weights, here up to 16.00 GiB, and "
        "10.00 GiB are free, swap included: add swap",
    )


def test_swap_does_not_help_everything() -> None:
    problems = preflight(NEED, replace(PLENTY, available=5 * GIB, swap=60 * GIB)).verdict.problems
    assert problems[1] == (
        "building decoder_model_portable needs 5.50 GiB that cannot be swapped, but 5.00 GiB are free: stop "
        "other programs and the desktop, give a smaller --workspace, or an int4 bundle"
    )


def test_a_gpu_with_its_own_memory_builds_in_that_of_the_host() -> None:
    card = FreeMemory(24 * GIB, 20 * GIB, None, False, host=4 * GIB)
    (problem,) = preflight(NEED, card).verdict.problems
    assert "but 4.00 GiB and 0.0 MiB of swap are free" in problem


def test_one_piece() -> None:
    tight = replace(PLENTY, cma_free=256 * MIB)
    (warning,) = preflight(NEED, tight).verdict.warnings
    assert warning == (
        "the LM head takes 0.50 GiB in one piece, but 0.25 GiB of contiguous memory are free: boot "
        "with the kernel argument cma=600M, or give a smaller --max-prompt or --max-images, a lower "
        "--max-ratio, or an int4 bundle"
    )
    small = replace(tight, total=8 * GIB)  # where it ended a build
    assert preflight(NEED, small).verdict.problems == (warning,)


def test_free_memory_of_a_jetson(tmp_path: Path) -> None:
    (tmp_path / "proc").mkdir()
    meminfo = tmp_path / "proc/meminfo"
    meminfo.write_text(
        "MemTotal:        7802400 kB\nMemFree:          300000 kB\nMemAvailable:    6400000 kB\n"
        "SwapFree:        3901184 kB\nCmaTotal:         262144 kB\nCmaFree:          100000 kB\n"
    )
    (tmp_path / "proc/swaps").write_text(
        "Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n"
        "/dev/zram0                              partition\t650400\t\t0\t\t5\n"
        "/swapfile                               file\t\t8388604\t\t1024\t\t-2\n"
    )
    assert free_memory(tmp_path) == FreeMemory(
        7802400 * 1024, 6400000 * 1024, 100000 * 1024, swap=(8388604 - 1024) * 1024
    )
    meminfo.write_text("MemTotal: 16 kB\nMemAvailable: 8 kB\nCmaTotal: 0 kB\nCmaFree: 0 kB\n")
    (tmp_path / "proc/swaps").unlink()
    assert free_memory(tmp_path) == FreeMemory(16 * 1024, 8 * 1024, None)
    meminfo.write_text("MemTotal: 16 kB\n")
    with pytest.raises(EngineError, match="/proc/meminfo has no MemTotal and MemAvailable: add --force"):
        free_memory(tmp_path)
    with pytest.raises(EngineError, match="the free memory cannot be read"):
        free_memory(tmp_path / "nowhere")


def test_boards_have_less_than_their_name_says() -> None:
    for name, free in BOARDS.items():
        assert free.available < free.total < int(name.split("-")[-1].removesuffix("gb")) * GIB
