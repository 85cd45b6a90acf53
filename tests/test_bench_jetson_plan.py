"""The figure of memory on Jetson boards: its parameter counts against transformers, its numbers by hand."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from bench.configurations import configuration, hf_config
from bench.jetson_plan import MODEL, WORKSPACE, _answer, llava_manifest, main, parameters, plan_boards
from bench.processors import special_token_ids
from runtime import contract
from runtime.tensorrt.memory import FreeMemory, memory_of, preflight, sizes_from_config
from runtime.tensorrt.plan import Limits, plan_engines


def test_parameters_are_those_of_transformers() -> None:
    torch = pytest.importorskip("torch")
    from transformers import LlavaForConditionalGeneration

    with torch.device("meta"):
        model = LlavaForConditionalGeneration(hf_config(configuration(MODEL), special_token_ids()))

    def count(module: object) -> int:
        return sum(each.numel() for each in module.parameters())  # type: ignore[attr-defined]

    tower = model.model.vision_tower
    # The graph leaves out the last layer and the norm behind it.
    unused = [part for name, part in tower.named_modules() if name.endswith(("layers.23", "post_layernorm"))]
    assert len(unused) == 2
    vision = count(tower) - sum(map(count, unused)) + count(model.model.multi_modal_projector)
    assert parameters("vision")[0] == vision
    language = model.model.language_model
    assert parameters("embed")[0] == count(language.embed_tokens)
    assert parameters("decoder")[0] == count(language) - count(language.embed_tokens) + count(model.lm_head)
    norms = [part for name, part in language.named_modules() if name.endswith("norm")]
    assert parameters("decoder")[0] - parameters("decoder")[1] == sum(map(count, norms))


def test_stored_bytes_of_a_precision() -> None:
    data = contract.data_file(contract.DECODER_PORTABLE)
    total, matrices = parameters("decoder")
    assert llava_manifest("fp16").files[data].bytes == 2 * total
    assert llava_manifest("int4").files[data].bytes == matrices * 9 // 16 + 2 * (total - matrices)
    assert llava_manifest("int4").graphs[contract.VISION_ENCODER_FOPRU].precision == "fp16"


def test_the_numbers_by_hand() -> None:
    figures = plan_boards().figures
    full, kept = figures["fp16, 4 images, ratio 1"], figures["fp16, 4 images, ratio 0.3"]
    # 4 x 576 + 512 + 256 rows; .3 of 576 are 173; 512 KiB of keys and values for a row.
    assert (full["capacity"], kept["capacity"]) == (3072, 4 * 173 + 768)
    assert full["memory"]["kv"] == 3072 * 512 * 1024
    assert kept["memory"]["kv"] == 1536 * 512 * 1024  # in whole blocks
    # A block of the encoder: 4 pictures of 577 rows, 16 heads, logits and probabilities in float32.
    vision = 4 * (2 * 5 * 1024 * 577 + 2 * 16 * 577 * 577 * 4)
    assert full["memory"]["activations"][contract.VISION_ENCODER_FOPRU] == vision
    # Of the decoder: 512 rows against 3072 + 512.
    rows, total = 512, 3584
    decoder = 2 * 5 * 4096 * rows + 2 * 32 * rows * total * 4 + 2 * 2 * total * 4096 + 32064 * 4
    assert full["memory"]["activations"][contract.DECODER_PORTABLE] == decoder


def test_every_part_has_a_column() -> None:
    # Two decimals each: weights, KV cache, I/O, scratch, kept pictures and CUDA are all there is to run.
    table = plan_boards().tables[0]
    first, last = table.columns.index("weights"), table.columns.index("running")
    for row in table.rows:
        parts = [float(cell) for cell in row[first:last]]
        assert sum(parts) == pytest.approx(float(row[last]), abs=0.005 * (len(parts) + 1))
        assert row[table.columns.index("kept pictures")] == "0.25"


def test_what_fits() -> None:
    rows = {row[0]: row[1:] for row in plan_boards().tables[1].rows}
    assert {row[2] for row in rows.values()} == {"fits"}  # 64 GB hold every one of them
    assert {row[0] for name, row in rows.items() if name.startswith("fp16")} == {"no"}  # 13 GiB on 8 GB
    assert rows["int4, 4 images, ratio 1"][0] == "no"
    assert rows["int4, 4 images, ratio 0.3"][0].startswith("needs swap to build")


def test_what_fits_without_kept_pictures() -> None:
    manifest = llava_manifest("int4")
    plan = plan_engines(manifest, Limits(max_images=1), WORKSPACE)
    need = memory_of(plan, manifest, sizes_from_config({}, manifest))
    free = FreeMemory(64 << 30, need.run - 1, swap=64 << 30)
    assert _answer(need, preflight(need, free).verdict) == "with Reuse(features=0)"
    more = replace(free, available=need.run)
    assert _answer(need, preflight(need, more).verdict) == "fits"
    assert _answer(need, preflight(need, replace(free, available=need.run_least - 1)).verdict) == "no"


def test_the_command_writes_both_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--results", str(tmp_path)]) == 0
    assert "No board was used" in capsys.readouterr().out
    assert json.loads((tmp_path / "jetson-plan.json").read_text())["name"] == "jetson-plan"
    page = (tmp_path / "jetson-plan.md").read_text()
    assert "| int4, 1 image, ratio 0.3 |" in page
