"""bfloat16 graphs: which nodes are, what they compute, and the twin that ONNX Runtime's CPU can run."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest

from calib.bundle_writer import is_gone
from calib.errors import OptionError
from calib.precision import Precision
from calib.precision.convert import convert_graph
from calib.precision.emulate import emulate_bfloat16, runnable_copy
from calib.precision.weight_file import WeightFile
from fopru_graph.lint import TARGETS, lint_file
from fopru_graph.lint.profiles import Profile
from fopru_graph.lint.rtx import build_check
from tests.test_calib_precision_half import decoder, dtypes, outputs, request

BRAIN, FULL = ir.DataType.BFLOAT16, ir.DataType.FLOAT
needs_rtx = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None,
    reason="TensorRT for RTX is not installed: pip install tensorrt-rtx",
)


def with_weight(text: str, array: np.ndarray) -> ir.Model:
    """ONNX's text form has no room for a weight of any size: `w` is added."""
    model = ir.from_proto(onnx.parser.parse_model(text))
    value = next(v for node in model.graph for v in node.inputs if v is not None and v.name == "w")
    value.const_value, value.shape = ir.tensor(array, name="w"), ir.Shape(array.shape)
    value.type = ir.TensorType(ir.DataType.FLOAT)
    model.graph.register_initializer(value)
    return model


def narrowed(source: Path) -> Path:
    target = source.with_name(source.stem + "_bf16.onnx")
    with WeightFile(target.with_name(target.name + "_data")) as file:
        convert_graph(source, target, Precision("bf16"), file)
    return target


def emulated(path: Path) -> Path:
    model = ir.load(path)
    emulate_bfloat16(model)
    target = path.with_name(path.stem + "_emulated.onnx")
    ir.save(model, target)
    return target


def test_the_islands_of_float32_are_those_of_float16(tmp_path: Path) -> None:
    made = dtypes(narrowed(decoder(tmp_path)))
    full = "square mean with_eps root inverse normed hidden position angle cosine bias biased probabilities"
    half = "q_rows q k v_rows products scores mixed merged projected residual present.0.key"
    assert {name: made[name] for name in full.split()} == dict.fromkeys(full.split(), FULL)
    assert {name: made[name] for name in half.split()} == dict.fromkeys(half.split(), BRAIN)
    assert made["logits"] == FULL


def test_a_decoder_is_close_to_float32(tmp_path: Path) -> None:
    source = decoder(tmp_path)
    inputs = {
        name: value.astype(ml_dtypes.bfloat16).astype(np.float32) if name.startswith("past") else value
        for name, value in request(np.float32).items()
    }
    wanted, got = outputs(source, inputs), outputs(emulated(narrowed(source)), inputs)
    for name, array in wanted.items():
        # 8 bits: 4e-3 of a number, a few times over through six products; float16 stays below 3e-3.
        np.testing.assert_allclose(got[name], array, atol=2.5e-2 * np.abs(array).max(), rtol=0)
        # Not float32 by accident, which would be 1e-7: half a unit of 8 bits is 2e-3 of a number.
        assert np.abs(got[name] - array).max() > 3e-4 * np.abs(array).max()
    np.testing.assert_array_equal(
        got["present.0.key"], got["present.0.key"].astype(ml_dtypes.bfloat16).astype(np.float32)
    )


def test_an_operator_that_onnx_does_not_define_for_it_stays_float32(tmp_path: Path) -> None:
    """Conv takes bfloat16 from opset 22 on."""
    text = """
    <ir_version: 10, opset_import: ["" : OPSET]>
    g (float[1, 3, 8, 8] x) => (float[1, 4, 1, 1] y) { c = Conv(x, w) y = Relu(c) }
    """
    for opset, expected in ((20, FULL), (22, BRAIN)):
        model = with_weight(text.replace("OPSET", str(opset)), np.ones((4, 3, 8, 8), np.float32))
        ir.save(model, tmp_path / f"{opset}.onnx", external_data=f"{opset}.onnx_data")
        assert dtypes(narrowed(tmp_path / f"{opset}.onnx"))["c"] == expected


def test_emulation_rounds_like_numpy(tmp_path: Path) -> None:
    text = """
    <ir_version: 10, opset_import: ["" : 20]>
    g (bfloat16[4, 16] x, bfloat16[16, 8] w) => (bfloat16[4, 8] y) <bfloat16[4, 8] p>
    { p = MatMul(x, w) y = Add(p, p) }
    """
    model = ir.from_proto(onnx.parser.parse_model(text))
    assert emulate_bfloat16(model) == 2
    ir.save(model, tmp_path / "g.onnx")
    rng = np.random.default_rng(0)
    x, w = (
        rng.standard_normal(shape).astype(ml_dtypes.bfloat16).astype(np.float32)
        for shape in ((4, 16), (16, 8))
    )
    session = ort.InferenceSession(tmp_path / "g.onnx", providers=["CPUExecutionProvider"])
    (got,) = session.run(None, {"x": x, "w": w})
    product = (x @ w).astype(ml_dtypes.bfloat16).astype(np.float32)
    np.testing.assert_array_equal(got, (2 * product).astype(ml_dtypes.bfloat16).astype(np.float32))
    assert got.dtype == np.float32


def test_a_graph_without_bfloat16_stays(tmp_path: Path) -> None:
    model = ir.load(decoder(tmp_path))
    assert emulate_bfloat16(model) == 0


def test_the_copy_is_gone_afterwards_and_the_bundle_as_it_was(tmp_path: Path) -> None:
    root = tmp_path / "bundle"
    (root / "onnx").mkdir(parents=True)
    path = narrowed(decoder(root / "onnx"))
    before = {file: file.read_bytes() for file in root.rglob("*") if file.is_file()}
    with runnable_copy(root, ("fp32", "fp32", "bf16")) as copy:
        assert copy != root
        assert is_gone(copy)  # by its name: a build that was killed leaves it, and the next one takes it away
        inputs = request(np.float32)
        assert outputs(copy / "onnx" / path.name, inputs)["logits"].shape == (1, 3, 40)
    assert not copy.exists()
    assert {file: file.read_bytes() for file in root.rglob("*") if file.is_file()} == before
    with runnable_copy(root, ("fp16", "int4", "fp32")) as same:
        assert same == root


def test_a_weight_beyond_bfloat16_is_refused(tmp_path: Path) -> None:
    text = """
    <ir_version: 10, opset_import: ["" : 20]>
    g (float[1, 128] x) => (float[1, 1] y) { y = MatMul(x, w) }
    """
    model = with_weight(text, np.full((128, 1), 3.402e38, np.float32))
    ir.save(model, tmp_path / "w.onnx", external_data="w.onnx_data")
    with pytest.raises(
        OptionError, match=r"weight w has the value 3\.402e\+38, but bfloat16 ends at 3\.38953e\+38"
    ):
        narrowed(tmp_path / "w.onnx")


def test_it_is_one_file_for_every_tensorrt(tmp_path: Path) -> None:
    path = narrowed(decoder(tmp_path))
    for name, target in TARGETS.items():
        if target.family != "ort":
            assert lint_file(path, name).of("error") == ()


@needs_rtx
def test_tensorrt_for_rtx_builds_it(tmp_path: Path) -> None:
    cache = Profile((1, 2, 1, 8), (1, 2, 4, 8), (1, 2, 8, 8))
    profiles = {
        "inputs_embeds": Profile((1, 1, 16), (1, 3, 16), (1, 8, 16)),
        "position_ids": Profile((1, 1), (1, 3), (1, 8)),
        "attention_mask": Profile((1, 2), (1, 7), (1, 16)),
        "past_key_values.0.key": cache,
        "past_key_values.0.value": cache,
    }
    report = build_check(narrowed(decoder(tmp_path)), profiles, capabilities=("SM86", "SM120"))
    assert report.ok, report.findings
    assert [engine.capability for engine in report.engines] == ["SM86", "SM120"]
    assert report.points[2].outputs["logits"] == (1, 8, 40)
