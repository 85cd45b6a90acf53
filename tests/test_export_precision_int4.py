"""Weights in 4 bits for TensorRT: what the build writes, what its twin computes, and what takes it."""

from __future__ import annotations

import importlib.util
import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest

from bench.target_graphs import decoder_profiles
from calib.precision import Precision, Precisions, emulate, parse_precision
from calib.precision.emulate import TWIN_NOTE, emulate_int4, runnable_copy
from calib.precision.unpacked import fits_unpacked, int4_nodes
from export.build import BuildOptions, build
from export.errors import OptionError
from export.options import precision_for
from export.report import BuildReport
from export.targets import check_target
from fopru_graph.lint import TARGETS
from fopru_graph.lint.rtx import build_check
from runtime import contract, load_bundle
from runtime.check import check_bundle
from runtime.generator import Generator
from runtime.request import Request
from tests.conftest import Maker
from tests.tensorrt_double import Device, installed, write_engines

TENSORRT = tuple(name for name, target in TARGETS.items() if target.family != "ort")
HALF, INT4 = Precision("fp16"), Precision("int4")
needs_rtx = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None,
    reason="TensorRT for RTX is not installed: pip install tensorrt-rtx",
)


@dataclass(frozen=True)
class Made:
    report: BuildReport
    exact: Path

    @property
    def root(self) -> Path:
        return self.report.bundle

    @property
    def decoder(self) -> Path:
        return load_bundle(self.root).graph(contract.DECODER_PORTABLE)


@pytest.fixture(scope="module")
def made(toy_checkpoint: Maker, toy_bundle_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Made:
    """The toy CLIP + Llama with its decoder in int4 for JetPack 6, and the same in float32."""
    options = BuildOptions(
        str(toy_checkpoint("clip-llama")),
        tmp_path_factory.mktemp("int4") / "toy",
        target="jetpack6",
        precision=precision_for("jetpack6", "decoder=int4"),
    )
    return Made(build(options), toy_bundle_dir)


def nodes(path: Path) -> Counter[str]:
    return Counter(node.op_type for node in ir.load(path).graph)


def products(path: Path) -> dict[str, np.ndarray]:
    """Constant matrices of products by the name of the node; dequantised in plain numpy."""
    found = {}
    for node in ir.load(path).graph:
        weight = node.inputs[1] if node.op_type == "MatMul" else None
        source = weight.producer() if weight is not None else None
        if source is not None and source.op_type.endswith("DequantizeLinear"):
            values, scales = (value.const_value.numpy().astype(np.float32) for value in source.inputs[:2])
            block = source.attributes.get_int("block_size", 0)
            assert source.attributes.get_int("axis", 9) == 0
            found[node.name] = values * np.repeat(scales, block, axis=0)
        elif weight is not None and weight.const_value is not None and len(weight.shape) == 2:
            found[node.name] = weight.const_value.numpy().astype(np.float32)
    return found


def feeds(session: Any, rows: int = 5) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    made: dict[str, np.ndarray] = {}
    for tensor in session.get_inputs():
        shape = [1 if dim == "batch" else rows if isinstance(dim, str) else dim for dim in tensor.shape]
        if tensor.name.startswith("past"):
            made[tensor.name] = np.zeros((1, 0, *shape[2:]), np.float16)
        elif tensor.name == contract.INPUTS_EMBEDS:
            made[tensor.name] = rng.standard_normal(shape).astype(np.float32)
        elif tensor.name == contract.NUM_LOGITS_TO_KEEP:
            made[tensor.name] = np.full(shape, rows, np.int64)
        else:
            fill = np.ones if tensor.name == contract.ATTENTION_MASK else np.zeros
            made[tensor.name] = fill(shape, np.int64)
    return made


def logits(path: Path, level: Any) -> np.ndarray:
    options = ort.SessionOptions()
    options.log_severity_level, options.graph_optimization_level = 3, level
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    made: np.ndarray = session.run([contract.LOGITS], feeds(session))[0]
    return made


def test_the_decoder_is_int4_and_all_else_float16(made: Made) -> None:
    assert made.report.failures == ()
    manifest = load_bundle(made.root).manifest
    assert {name: info.precision for name, info in manifest.graphs.items()} == {
        contract.VISION_ENCODER: "fp16",
        contract.VISION_ENCODER_FOPRU: "fp16",
        contract.EMBED_TOKENS: "fp16",
        contract.DECODER_PORTABLE: "int4",
    }
    assert manifest.decoder.cache_dtype == "float16"
    found = nodes(made.decoder)
    assert (
        found["TRT_INT4DequantizeLinear"] == 13
    )  # 7 in each of two layers and the head, less two that are left
    assert not found.keys() & {"MatMulNBits", "DequantizeLinear"}


def test_the_weights_are_those_of_float32_rounded_to_15_steps(made: Made) -> None:
    exact = products(load_bundle(made.exact).graph(contract.DECODER_PORTABLE))
    got = products(made.decoder)
    assert got.keys() == exact.keys()
    rounded = 0
    for name, weight in exact.items():
        if len(weight) % 32:
            # bits of float16 alone
            np.testing.assert_allclose(got[name], weight, rtol=2.0**-11, atol=2.0**-25)
            continue
        blocks = np.abs(weight.reshape(-1, 32, weight.shape[1])).max(axis=1, keepdims=True)
        step = np.broadcast_to(blocks / 7, (len(blocks), 32, weight.shape[1])).reshape(weight.shape)
        # half a step, and the scale is rounded up to float16
        assert (np.abs(got[name] - weight) <= 0.5 * step * (1 + 2.0**-9) + 1e-7).all()
        assert np.abs(got[name] - weight).max() > 0.2 * step.max()
        rounded += 1
    assert rounded == 13


def test_every_tensorrt_takes_it(made: Made) -> None:
    verdicts = {verdict.target: verdict for verdict in made.report.targets}
    for name in TENSORRT:
        assert (verdicts[name].errors, verdicts[name].warnings) == (0, 0), verdicts[name].findings


def test_what_it_costs_is_measured_on_the_twin_and_said(made: Made) -> None:
    assert TWIN_NOTE in made.report.notes
    assert any("stay float16, their rows are not a multiple of 32" in note for note in made.report.notes)
    vision, decoder = made.report.parity["components"][0], made.report.parity["components"][-1]
    assert vision["cosine"] > 0.99999
    # Random weights of 32 columns in 4 bits; MatMulNBits has as much.
    assert 0.85 < decoder["cosine"] < 0.99
    assert made.report.parity["loss"]["positions"] >= 500


def test_the_twin_is_not_fused(made: Made, tmp_path: Path) -> None:
    """A fused product would round activations to 8 bits: 0.25 of 4.5 here."""
    model = ir.load(made.decoder)
    assert emulate_int4(model) == 13
    twin, plain = made.decoder.with_name("twin.onnx"), made.decoder.with_name("plain.onnx")
    try:
        ir.save(model, twin)
        written = ir.load(made.decoder)
        for node in written.graph:
            if node.domain == "trt":
                node.domain, node.op_type = "", "DequantizeLinear"
        written.opset_imports[""] = 21
        ir.save(written, plain)
        levels = ort.GraphOptimizationLevel
        wanted = logits(plain, levels.ORT_DISABLE_ALL)
        np.testing.assert_array_equal(logits(twin, levels.ORT_ENABLE_ALL), wanted)
        # Why the twin is needed.
        assert np.abs(logits(plain, levels.ORT_ENABLE_ALL) - wanted).max() > 1e-2 * np.abs(wanted).max()
    finally:
        twin.unlink(missing_ok=True)
        plain.unlink(missing_ok=True)


def test_weights_that_are_written_out_give_the_same_numbers(
    made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    levels, found = ort.GraphOptimizationLevel, {}
    for memory, name in ((lambda _: True, "unpacked"), (lambda _: False, "dequantised")):
        monkeypatch.setattr(emulate, "fits_unpacked", memory)
        with runnable_copy(made.root, ("fp16", "fp16", "int4")) as twin:
            graph = load_bundle(twin, verify=False).graph(contract.DECODER_PORTABLE)
            assert nodes(graph)["DequantizeLinear"] == (0 if name == "unpacked" else 13)
            found[name] = logits(graph, levels.ORT_ENABLE_ALL)
    # Products with packed and with plain weights may add up in another order, then round to float16.
    np.testing.assert_allclose(found["unpacked"], found["dequantised"], rtol=2**-10, atol=2**-10)


def test_large_decoders_are_not_written_out(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    model = ir.load(made.decoder)
    elements = sum(node.inputs[0].const_value.size for node in int4_nodes(model))
    for pages, fits in ((16 * elements, True), (16 * elements - 1, False)):
        monkeypatch.setattr(os, "sysconf", {"SC_PAGE_SIZE": 1, "SC_PHYS_PAGES": pages}.__getitem__)
        assert fits_unpacked(model) == fits


def test_the_copy_passes_its_own_check_and_tensorrt_answers_as_it(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engines = write_engines(made.root, tmp_path)
    request = Request("how many?", tuple(made.root.glob("golden/*.png")), max_new_tokens=12, ignore_eos=True)
    with runnable_copy(made.root, ("fp16", "fp16", "int4")) as twin:
        assert check_bundle(load_bundle(twin)).ok
        expected = Generator(load_bundle(twin), threads=1).generate(request)
        with installed(Device(), engines, monkeypatch):
            found = Generator(load_bundle(made.root), "tensorrt").generate(request)
    assert found.token_ids == expected.token_ids


def test_with_opset_21_or_later_it_is_the_standard_operator(toy_checkpoint: Maker, tmp_path: Path) -> None:
    precision = precision_for("tensorrt11", "vision=fp32,decoder=int4")
    assert precision == Precisions(Precision("fp32"), HALF, INT4)
    options = BuildOptions(
        str(toy_checkpoint("clip-llama")),
        tmp_path / "b",
        target="tensorrt11",
        opset=23,
        precision=precision,
    )
    report = build(options)
    assert report.failures == ()
    found = nodes(load_bundle(report.bundle).graph(contract.DECODER_PORTABLE))
    assert (found["DequantizeLinear"], found["TRT_INT4DequantizeLinear"]) == (13, 0)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("decoder=int4", Precisions(HALF, HALF, INT4)),
        ("decoder=int4:block=128", Precisions(HALF, HALF, Precision("int4", block=128))),
        ("decoder=bf16", Precisions(HALF, Precision("bf16"), Precision("bf16"))),
        ("vision=fp32", Precisions(Precision("fp32"), HALF, HALF)),
        ("fp32,decoder=int4", Precisions(Precision("fp32"), Precision("fp32"), INT4)),
        ("embed=fp32,decoder=int4", Precisions(HALF, Precision("fp32"), INT4)),
    ],
)
def test_parts_left_out_are_float16_for_tensorrt(text: str, expected: Precisions) -> None:
    assert precision_for("jetpack6", text) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("int4", r"precision of vision is int4, but target jetpack6 .* has fp32, fp16, bf16: give one"),
        ("decoder=int8", r"precision of decoder is int8, but target jetpack6 .* has fp32, fp16, bf16, int4"),
        (
            "decoder=int4:asymmetric",
            r"decoder is int4:asymmetric, but TensorRT \(jetpack6\) has neither zero points nor an accuracy "
            "for weights in 4 bits: give int4$",
        ),
        ("decoder=int4:block=128,accuracy=0", "weights in 4 bits: give int4:block=128$"),
    ],
)
def test_refusals(text: str, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        check_target("jetpack6", 20, precision_for("jetpack6", text))


def test_onnxruntime_keeps_its_own_form() -> None:
    assert precision_for("ort", "decoder=int4") == precision_for(None, "decoder=int4")
    assert parse_precision("decoder=int4").embed == INT4


@needs_rtx
def test_tensorrt_for_rtx_builds_the_decoder(made: Made) -> None:
    bundle = load_bundle(made.root)
    report = build_check(made.decoder, decoder_profiles(bundle), capabilities=("SM86", "SM120"))
    assert report.ok, report.findings
    assert [engine.capability for engine in report.engines] == ["SM86", "SM120"]
