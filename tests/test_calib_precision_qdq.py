"""Explicit Q/DQ: numbers against a fake quantisation in numpy, and what TensorRT for RTX builds of it."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass, replace
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest

from calib.errors import OptionError
from calib.precision import Precision
from calib.precision.convert import Scales, convert_model
from calib.precision.qdq import QdqFormat, QdqReport, add_qdq, products_of, scale_for
from calib.precision.unpacked import int4_nodes, unpack_int4
from calib.precision.weight_file import WeightFile
from fopru_graph.lint import lint_file
from fopru_graph.lint.profiles import Profile
from fopru_graph.lint.rtx import build_check

needs_rtx = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None,
    reason="TensorRT for RTX is not installed: pip install tensorrt-rtx",
)
AMAX = {"x": 3.0, "flat": 4.0, "picture": 2.5}
INT8, FP8, INT4 = QdqFormat("int8"), QdqFormat("fp8"), QdqFormat("int4", block=32)
TENSORRT = QdqFormat("int4", block=32, dialect="tensorrt")

# A patch embedding, two linear layers as torch writes them, one with its weight the other way round.
TEXT = """
<ir_version: 10, opset_import: ["" : OPSET]>
g (float[batch, 64, 12, 12] picture, float[batch, 8, 64] x)
    => (float[batch, 8, 32] y, float[batch, 16, 2, 2] patches)
<int64[2] rows = {-1, 96}, int64[3] split = {-1, 8, 32}>
{
    patches = Conv <kernel_shape = [6, 6], strides = [6, 6]> (picture, filters)
    first = MatMul(x, up)
    shifted = Add(first, bias)
    hidden = Relu(shifted)
    flat = Reshape(hidden, rows)
    second = Gemm <transB = 1> (flat, down, offset)
    y = Reshape(second, split)
}
"""
SHAPES = {"filters": (16, 64, 6, 6), "up": (64, 96), "bias": (96,), "down": (32, 96), "offset": (32,)}


def model(folder: Path, opset: int = 21) -> tuple[Path, dict[str, np.ndarray]]:
    """The graph above with weights in a file, one output channel of `up` all zero."""
    made = ir.from_proto(onnx.parser.parse_model(TEXT.replace("OPSET", str(opset))))
    rng, weights = np.random.default_rng(5), {}
    for name, shape in SHAPES.items():
        weights[name] = (rng.standard_normal(shape) / 8).astype(np.float32)
    weights["up"][:, 3] = 0
    for name, array in weights.items():
        value = next(v for node in made.graph for v in node.inputs if v is not None and v.name == name)
        value.const_value, value.type = ir.tensor(array, name=name), ir.TensorType(ir.DataType.FLOAT)
        value.shape = ir.Shape(array.shape)
        made.graph.register_initializer(value)
    path = folder / "model.onnx"
    ir.save(made, path, external_data="model.onnx_data")
    return path, weights


@dataclass(frozen=True)
class Made:
    path: Path
    report: QdqReport
    weights: dict[str, np.ndarray]


def quantised(
    folder: Path, form: QdqFormat, *, half: bool = False, opset: int = 21, **options: object
) -> Made:
    path, weights = model(folder, opset)
    target = folder / "quantised.onnx"
    graph = ir.load(path)
    with WeightFile(folder / "quantised.onnx_data") as file:
        amax = options.pop("amax", {} if form.weight_only else AMAX)
        report = add_qdq(graph, form, amax, file, **options)
        convert_model(graph, Precision("fp16" if half else "fp32"), file)
    ir.save(graph, target)
    path.with_name("model.onnx_data").unlink()  # what was made needs nothing of it
    return Made(target, report, weights)


def rounded(array: np.ndarray, form: QdqFormat, greatest: np.ndarray | float) -> np.ndarray:
    """The reference: quantise and dequantise in plain numpy."""
    scale = scale_for(greatest, form)
    if form.name == "fp8":
        clipped = np.clip(array / scale, -448, 448)
        return clipped.astype(ml_dtypes.float8_e4m3fn).astype(np.float32) * scale
    most = 127 if form.name == "int8" else 7
    low = -128 if form.name == "int8" else -8
    return np.clip(np.rint(array / scale), low, most).astype(np.float32) * scale


def rounded_weight(array: np.ndarray, form: QdqFormat, channels: int) -> np.ndarray:
    if form.name == "fp8":
        return rounded(array, form, np.abs(array).max())
    if form.name == "int8":
        axes = tuple(axis for axis in range(array.ndim) if axis != channels)
        return rounded(array, form, np.abs(array).max(axis=axes, keepdims=True))
    if array.ndim != 2:
        return array
    wide = np.moveaxis(array, 1 - channels, 1)
    blocks = wide.reshape(len(wide), -1, form.block)
    done = rounded(blocks, form, np.abs(blocks).max(axis=2, keepdims=True)).reshape(wide.shape)
    return np.moveaxis(done, 1, 1 - channels)


def reference(
    weights: dict[str, np.ndarray], feeds: dict[str, np.ndarray], form: QdqFormat
) -> dict[str, np.ndarray]:
    def read(name: str, array: np.ndarray) -> np.ndarray:
        return array if form.weight_only else rounded(array, form, AMAX[name])

    picture = read("picture", feeds["picture"])
    batch = len(picture)
    cut = picture.reshape(batch, 64, 2, 6, 2, 6).transpose(0, 2, 4, 1, 3, 5).reshape(batch, 2, 2, -1)
    patches = cut @ rounded_weight(weights["filters"], form, 0).reshape(16, -1).T
    hidden = np.maximum(read("x", feeds["x"]) @ rounded_weight(weights["up"], form, 1) + weights["bias"], 0)
    y = read("flat", hidden) @ rounded_weight(weights["down"], form, 0).T + weights["offset"]
    return {"y": y, "patches": patches.transpose(0, 3, 1, 2)}


def feeds(dtype: type = np.float32) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(9)
    return {
        "picture": rng.standard_normal((2, 64, 12, 12)).astype(dtype),
        "x": rng.standard_normal((2, 8, 64)).astype(dtype),
    }


def run(path: Path, values: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Without fusions: those of ONNX Runtime turn Q/DQ into integer products, which round elsewhere, and fail
    on float8."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(None, values), strict=True))


@pytest.mark.parametrize("form", [INT8, FP8, INT4], ids=lambda form: form.name)
def test_numbers_are_those_of_a_fake_quantisation(form: QdqFormat, tmp_path: Path) -> None:
    made = quantised(tmp_path, form)
    got, wanted = run(made.path, feeds()), reference(made.weights, feeds(), form)
    for name, array in wanted.items():
        # The same rounded numbers, summed in another order.
        np.testing.assert_allclose(got[name], array, rtol=0, atol=2e-5)
    assert made.report == (QdqReport(2, 0, ("filters",)) if form.weight_only else QdqReport(3, 3, ()))


@pytest.mark.parametrize("form", [INT8, FP8, INT4], ids=lambda form: form.name)
def test_quantised_numbers_differ_from_float32(form: QdqFormat, tmp_path: Path) -> None:
    path, _ = model(tmp_path)
    wanted = run(path, feeds())["y"]
    got = run(quantised(tmp_path, form).path, feeds())["y"]
    difference = np.abs(got - wanted).max()
    # Not float32 by accident, and no other answer: 4 bits of weights are the coarsest here.
    assert 1e-4 < difference < 0.2 * np.abs(wanted).max()


def test_a_product_whose_input_has_no_amax_is_left(tmp_path: Path) -> None:
    # Gemm reads `flat`, a view of `hidden`: the tensor that it reads is the one that has to be named.
    made = quantised(tmp_path, INT8, amax={"x": 3.0, "hidden": 4.0})
    assert made.report == QdqReport(1, 1, ("filters", "down"))
    nodes = [node for node in ir.load(made.path).graph if node.op_type.endswith("tizeLinear")]
    assert [node.metadata_props["fopru.pass"] for node in nodes] == ["qdq"] * 3


def test_products_that_can_be_quantised(tmp_path: Path) -> None:
    path, _ = model(tmp_path)
    every = products_of(ir.load(path), INT8)
    assert [each.weight for each in every] == ["filters", "up", "down"]
    assert [each.weight for each in products_of(ir.load(path), INT4)] == ["up", "down"]
    amax = {each.activation: 4.0 for each in every}
    assert quantised(tmp_path, INT8, amax=amax).report == QdqReport(3, 3, ())


@pytest.mark.parametrize(("name", "form"), [("w8a8", INT8), ("fp8", FP8)])
def test_a_graph_is_converted_with_scales(name: str, form: QdqFormat, tmp_path: Path) -> None:
    path, _ = model(tmp_path)
    loaded, amax = ir.load(path), {each.activation: 4.0 for each in products_of(ir.load(path), form)}
    with WeightFile(tmp_path / "c.onnx_data") as file:
        made = convert_model(loaded, Precision(name), file, scales=Scales(amax, frozenset({"up"})))
    assert made.replaced == 2
    assert "up" in loaded.graph.initializers
    assert not {"filters", "down"} & set(loaded.graph.initializers)


def test_a_skipped_weight_stays(tmp_path: Path) -> None:
    assert quantised(tmp_path, INT4, skip=("up",)).report.left == ("filters", "up")


@pytest.mark.parametrize("form", [INT8, FP8, INT4], ids=lambda form: form.name)
def test_in_float16_the_integers_are_the_same(form: QdqFormat, tmp_path: Path) -> None:
    made = quantised(tmp_path, form, half=True)
    graph = ir.load(made.path).graph
    for node in graph:
        if node.op_type == "DequantizeLinear":
            assert node.inputs[1].dtype == node.outputs[0].dtype == ir.DataType.FLOAT16
    got, wanted = run(made.path, feeds()), reference(made.weights, feeds(), form)
    for name, array in wanted.items():
        # float16 sums over 96 and 2,304 numbers, and an activation at a border between two integers.
        np.testing.assert_allclose(got[name], array, rtol=0, atol=0.03 * np.abs(array).max())


def test_scales_are_float16_and_never_too_small() -> None:
    wanted = np.random.default_rng(1).uniform(1e-6, 10, 1000).astype(np.float32)
    scales = scale_for(wanted, INT8)
    np.testing.assert_array_equal(scales, scales.astype(np.float16).astype(np.float32))
    assert (scales * 127 >= wanted * (1 - 1e-6)).all()
    assert (scales[wanted > 0.1] < wanted[wanted > 0.1] / 127 * 1.001).all()
    assert scale_for(0.0, INT8) == 1
    assert scale_for(1e-12, INT8) == 2.0**-24


def test_shared_weights_are_written_once(tmp_path: Path) -> None:
    path, _ = model(tmp_path)
    with WeightFile(tmp_path / "both.onnx_data") as file:
        for _ in range(2):
            add_qdq(ir.load(path), INT4, {}, file)
    # [64, 96] and [32, 96] in 4 bits; scales are small and stay in the graph.
    assert (tmp_path / "both.onnx_data").stat().st_size == (64 * 96 + 32 * 96) // 2


def test_tensorrts_own_operator_holds_the_same_integers(tmp_path: Path) -> None:
    (tmp_path / "own").mkdir()
    (tmp_path / "standard").mkdir()
    own, standard = quantised(tmp_path / "own", TENSORRT, opset=20), quantised(tmp_path / "standard", INT4)
    for name in ("up_int4", "down_int4", "up_int4_scale"):
        first, second = (ir.load(each.path).graph.initializers[name].const_value for each in (own, standard))
        np.testing.assert_array_equal(first.numpy(), second.numpy())
    assert [node.op_type for node in ir.load(own.path).graph if node.domain == "trt"] == [
        "TRT_INT4DequantizeLinear",
        "TRT_INT4DequantizeLinear",
    ]
    assert lint_file(own.path, "jetpack6").ok
    assert [finding.rule for finding in lint_file(standard.path, "jetpack6").of("error")] == ["opset"]


@pytest.mark.parametrize(
    ("form", "options", "message"),
    [
        (INT4, {"opset": 20}, "int4 needs operators of opset 21, the graph has 20: .* dialect 'tensorrt'"),
        (INT8, {"opset": 18}, "int8 needs operators of opset 19, the graph has 18"),
        (INT4, {"amax": {"x": 1.0}}, "weights alone, but activations were given"),
        (INT8, {"amax": {"z": 1.0}}, "amax is given for 'z', which the graph does not have"),
        (INT8, {"amax": {"x": 0.0}}, "amax of 'x' is 0.0, but it is a positive number"),
        (INT8, {"amax": {"x": float("nan")}}, "amax of 'x' is nan"),
        (
            INT8,
            {"amax": {"x": 1e7}},
            r"amax of 'x' is 1e\+07, and its scale would be more than float16 holds",
        ),
    ],
)
def test_refusals(form: QdqFormat, options: dict[str, object], message: str, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=message):
        quantised(tmp_path, form, **options)


def test_formats() -> None:
    with pytest.raises(OptionError, match="quantisation is 'int3', expected one of int8, fp8, int4"):
        QdqFormat("int3")
    with pytest.raises(OptionError, match="block is 3, expected an even number"):
        QdqFormat("int4", block=3)


@pytest.mark.parametrize("form", [INT4, TENSORRT], ids=["standard", "tensorrt"])
def test_weights_written_out_are_those_of_the_operator(tmp_path: Path, form: QdqFormat) -> None:
    """`up` has its blocks along the first axis, `down`, which is the other way round, along the second."""
    made = quantised(tmp_path, form, opset=21 if form is INT4 else 20)
    graph, target = ir.load(made.path), tmp_path / "unpacked.onnx"
    assert [node.attributes.get_int("axis", 9) for node in int4_nodes(graph)] == [0, 1]
    with WeightFile(tmp_path / "unpacked.onnx_data") as file:
        assert unpack_int4(graph, file) == 2
    ir.save(graph, target)
    found = {name: value.const_value.numpy() for name, value in ir.load(target).graph.initializers.items()}
    for name, channels in (("up", 1), ("down", 0)):
        (written,) = (array for key, array in found.items() if key.startswith(name) and "unpacked" in key)
        np.testing.assert_array_equal(written, rounded_weight(made.weights[name], form, channels))
    assert not int4_nodes(ir.load(target))


@needs_rtx
@pytest.mark.parametrize(
    ("form", "opset", "chips"),
    [
        (INT8, 20, ("SM86", "SM89", "SM120")),
        (FP8, 20, ("SM89", "SM120")),
        (INT4, 21, ("SM86", "SM89", "SM120")),
        (TENSORRT, 20, ("SM86", "SM89", "SM120")),
    ],
    ids=["int8", "fp8", "int4", "int4-tensorrt"],
)
def test_tensorrt_for_rtx_builds_it_for_the_chips_that_have_it(
    form: QdqFormat, opset: int, chips: tuple[str, ...], tmp_path: Path
) -> None:
    made = quantised(tmp_path, form, half=True, opset=opset)
    profiles = {
        "picture": Profile((1, 64, 12, 12), (1, 64, 12, 12), (4, 64, 12, 12)),
        "x": Profile((1, 8, 64), (1, 8, 64), (4, 8, 64)),
    }
    report = build_check(made.path, profiles, capabilities=("SM86", "SM89", "SM120"))
    assert tuple(engine.capability for engine in report.engines) == chips
    refused = [finding.message for finding in report.findings if finding.severity == "error"]
    assert all("SM86" in message and "fp8" in message for message in refused)
    assert report.points[2].outputs["y"] == (4, 8, 32)


def test_unsigned_activations_are_the_same_numbers_in_integer_products(tmp_path: Path) -> None:
    signed, unsigned = (
        quantised(folder(tmp_path, f"{flag}"), replace(INT8, unsigned=flag)) for flag in (False, True)
    )
    wanted, got = run(signed.path, feeds()), run(unsigned.path, feeds())
    for name, array in wanted.items():
        np.testing.assert_array_equal(got[name], array)
    with pytest.raises(OptionError, match="quantisation fp8 has no unsigned activations"):
        replace(FP8, unsigned=True)


def folder(root: Path, name: str) -> Path:
    made = root / name
    made.mkdir()
    return made
