"""Bundles quantised for TensorRT: what is in them, what the lint says, and what TensorRT for RTX builds."""

from __future__ import annotations

import importlib.util
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from calib.errors import RunError
from calib.quantize import targets
from calib.quantize.__main__ import main
from calib.quantize.targets import lint_graphs
from fopru_graph.lint import lint_file
from fopru_graph.lint.rtx import build_check
from runtime import contract, load_bundle
from runtime.check import main as check
from tests.measuring import noise

needs_rtx = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None,
    reason="TensorRT for RTX is not installed: pip install tensorrt-rtx",
)
VISION = (contract.VISION_ENCODER, contract.VISION_ENCODER_FOPRU)


@dataclass(frozen=True)
class Made:
    root: Path
    report: dict[str, Any]

    def graph(self, name: str) -> Path:
        return load_bundle(self.root).graph(name)


def made(bundle: Path, folder: Path, target: str, precision: str) -> Made:
    data = folder / "photos"
    data.mkdir()
    for number in range(3):
        noise(60 + number, 80, seed=number).save(data / f"{number}.png")
    words = ["--precision", precision, "--data", str(data), "--output", str(folder / "o"), "--threads", "1"]
    words += ["--work", str(folder / "w"), "--keep-float", "none", "--min-cosine", "0.9"]
    assert main([str(bundle), *words, "--max-new-tokens", "2", "--target", target]) == 0
    return Made(folder / "o", json.loads((folder / "w" / "precision" / "quantize.json").read_text()))


@pytest.fixture(scope="module")
def orin(toy_bundle_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("orin")
    return made(toy_bundle_dir, folder, "jetpack6", "vision=int8,decoder=int4")


@pytest.fixture(scope="module")
def ada(toy_bundle_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Made:
    return made(toy_bundle_dir, tmp_path_factory.mktemp("ada"), "tensorrt-rtx", "vision=fp8")


def test_graphs_and_precisions(orin: Made) -> None:
    manifest = load_bundle(orin.root).manifest
    assert {name: info.precision for name, info in manifest.graphs.items()} == {
        "vision_encoder": "w8a8",
        "vision_encoder_fopru": "w8a8",
        "embed_tokens": "fp16",
        "decoder_model_portable": "int4",
    }
    assert manifest.decoder.cache_dtype == "float16"
    caches = [
        spec for spec in manifest.graphs["decoder_model_portable"].inputs if spec.name.startswith("past_")
    ]
    assert {spec.dtype for spec in caches} == {"float16"}
    assert orin.report["failures"] == []
    assert [component["ok"] for component in orin.report["parity"]["components"]]


def test_the_lint_of_the_target_has_no_error(orin: Made) -> None:
    for name, info in load_bundle(orin.root).manifest.graphs.items():
        assert lint_file(orin.root / info.file, "jetpack6").of("error") == (), name
    assert set(orin.report["lint"]) == set(load_bundle(orin.root).manifest.graphs)


@pytest.mark.parametrize("name", VISION)
def test_activations_are_signed_and_what_is_around_products_is_float16(orin: Made, name: str) -> None:
    graph = ir.load(orin.graph(name)).graph
    pairs = [node for node in graph if node.op_type == "QuantizeLinear"]
    assert len(pairs) > 8
    for node in pairs:
        zero = node.inputs[2]
        assert zero is not None
        assert zero.const_value is not None
        np.testing.assert_array_equal(zero.const_value.numpy(), np.int8(0))
    products = [node for node in graph if node.op_type == "MatMul"]
    assert {node.inputs[0].dtype for node in products if node.inputs[0] is not None} >= {ir.DataType.FLOAT16}
    careful = [node for node in graph if node.metadata_props.get("fopru.pass") in ("score", "select")]
    assert bool(careful) == (name == contract.VISION_ENCODER_FOPRU)
    assert not any(node.op_type.endswith("izeLinear") for node in careful)


def test_scores_stay_float32(orin: Made) -> None:
    graph = ir.load(orin.graph(contract.VISION_ENCODER_FOPRU)).graph
    scores = next(value for value in graph.outputs if value.name == contract.TOKEN_SCORES)
    assert scores.dtype == ir.DataType.FLOAT
    ranked = [node.inputs[0].dtype for node in graph if node.op_type == "TopK" and node.inputs[0] is not None]
    assert ir.DataType.FLOAT in ranked
    assert ir.DataType.FLOAT16 not in ranked


def test_fp8_runs_on_onnx_runtime_too(ada: Made) -> None:
    manifest = load_bundle(ada.root).manifest
    assert {info.precision for info in manifest.graphs.values()} == {"fp8", "fp16"}
    assert check([str(ada.root)]) == 0
    assert ada.report["notes"] == ["fp8 needs SM89 or newer: not for SM75, SM80, SM86"]
    # E4M3 has 4 bits of significand, integers have 7.
    assert 0.97 < ada.report["vision"]["fidelity"]["cosine"] < 0.99999


def test_a_graph_that_the_target_refuses(orin: Made, tmp_path: Path) -> None:
    graph = orin.graph(contract.VISION_ENCODER_FOPRU)
    model = ir.load(graph)
    model.opset_imports[""] = 21
    shutil.copytree(graph.parent, tmp_path / "onnx")
    ir.save(model, tmp_path / "onnx" / "newer.onnx")
    with pytest.raises(
        RunError, match=r"target jetpack6 does not take v \(.*\): .*, or choose another --target$"
    ):
        lint_graphs("jetpack6", {"v": tmp_path / "onnx" / "newer.onnx"})
    assert targets.lint_graphs("tensorrt-rtx", {"v": graph}).keys() == {"v"}


@needs_rtx
@pytest.mark.parametrize("name", VISION)
def test_tensorrt_for_rtx_builds_int8_for_sm86(orin: Made, name: str) -> None:
    report = build_check(orin.graph(name), capabilities=("SM86",))
    assert [engine.capability for engine in report.engines] == ["SM86"]
    assert [finding for finding in report.findings if finding.severity == "error"] == []


@needs_rtx
def test_tensorrt_for_rtx_builds_fp8_for_sm89_alone(ada: Made) -> None:
    report = build_check(ada.graph(contract.VISION_ENCODER_FOPRU), capabilities=("SM86", "SM89"))
    assert [engine.capability for engine in report.engines] == ["SM89"]
    refused = [finding.message for finding in report.findings if finding.severity == "error"]
    assert len(refused) == 1
    assert "fp8" in refused[0]
