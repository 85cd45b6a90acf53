"""Builds with `--precision`: files, manifest, cost, and a runtime that answers from them."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import replace
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from calib.precision import parse_precision
from calib.precision.bundle import convert_bundle
from export.build import BuildOptions, build, main
from export.report import print_report
from runtime import Generator, contract
from runtime.bundle import Bundle, load_bundle
from runtime.check import check_bundle
from runtime.request import Request


@pytest.fixture(scope="module")
def built(
    toy_checkpoint: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Bundle]:
    made: dict[str, Bundle] = {}

    def make(precision: str) -> Bundle:
        if precision not in made:
            target = tmp_path_factory.mktemp("precision") / "bundle"
            command = ["--model", str(toy_checkpoint("clip-llama")), "--output", str(target)]
            with redirect_stdout(StringIO()) as out:
                assert main([*command, "--precision", precision, "--json"]) == 0
            assert json.loads(out.getvalue())["parity"]["ok"]
            made[precision] = load_bundle(target)
        return made[precision]

    return make


BUILDS = ["vision=fp16,decoder=int4", "vision=fp32,decoder=fp16"]


@pytest.mark.parametrize("precision", BUILDS)
def test_a_bundle_names_its_precisions_and_its_cost(built: Callable[[str], Bundle], precision: str) -> None:
    bundle, wanted = built(precision), parse_precision(precision)
    manifest = bundle.manifest
    for name, info in manifest.graphs.items():
        assert info.precision == wanted.of_graph(name).name
        assert info.file == contract.graph_file(name + wanted.of_graph(name).suffix)
    assert sorted(path.name for path in (bundle.path / "onnx").iterdir()) == sorted(
        Path(file).name for file in manifest.files if file.startswith("onnx/")
    )
    half = wanted.decoder.name == "fp16"
    assert manifest.decoder.cache_dtype == ("float16" if half else "float32")
    assert manifest.parity is not None
    loss = manifest.parity["loss"]
    assert loss["positions"] >= 500
    # Random weights of 32 columns: float16 moves nothing much, 4 bits move a lot, and nothing is hidden.
    assert loss["mean_cosine"] > (0.99999 if half else 0.8)
    assert manifest.parity["costs"]["logits"] > 0
    assert "--precision" in str(manifest.created_by["command"])


@pytest.mark.parametrize("precision", BUILDS)
def test_the_runtime_answers_and_checks(built: Callable[[str], Bundle], precision: str) -> None:
    bundle = built(precision)
    images = tuple(bundle.path.glob("golden/*.png"))
    result = Generator(bundle).generate(Request("How many?", images, max_new_tokens=4, ignore_eos=True))
    assert len(result.token_ids) == 4
    assert check_bundle(bundle).ok
    parity = bundle.manifest.parity
    assert parity is not None
    stricter = replace(bundle.manifest, parity={**parity, "costs": dict.fromkeys(parity["costs"], 1e-9)})
    # Further off than the build measured: in fp16, which devices add up differently, the floor decides.
    assert check_bundle(replace(bundle, manifest=stricter)).ok == ("decoder=fp16" in precision)


def test_weight_files_that_nobody_reads_are_gone(toy_bundle_dir: Path, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(toy_bundle_dir / "onnx", tmp_path / "onnx")
    graphs = tuple(load_bundle(toy_bundle_dir).manifest.graphs)
    made = convert_bundle(tmp_path, parse_precision("decoder=int8"), graphs)
    assert set(made) == {contract.EMBED_TOKENS, contract.DECODER, contract.DECODER_PORTABLE}
    names = {path.name for path in (tmp_path / "onnx").iterdir()}
    assert {name for name in names if "vision" in name} == {
        "vision_encoder.onnx",
        "vision_encoder.onnx_data",
        "vision_encoder_fopru.onnx",
    }
    assert all("_int8.onnx" in name for name in names if "vision" not in name)


def test_the_report_says_what_a_precision_costs(
    toy_checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    options = BuildOptions(
        str(toy_checkpoint("clip-llama")), tmp_path / "q8", precision=parse_precision("decoder=int8")
    )
    report = build(options)
    out = StringIO()
    print_report(report, Console(file=out, width=200))
    loss = report.parity["loss"]
    assert (
        f"precision costs   {loss['top1_agreement']:.1%} of {loss['positions']} tokens stay" in out.getvalue()
    )
    assert f"int8 costs {report.parity['costs']['logits']:.1e}" in out.getvalue()
