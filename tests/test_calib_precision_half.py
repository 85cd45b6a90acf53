"""float16 graphs: what they compute, which nodes stay float32, and what crosses their borders."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest

from calib.errors import OptionError
from calib.precision import Precision
from calib.precision.convert import convert_graph
from calib.precision.weight_file import WeightFile
from fopru_graph import PruneOptions, prune_file
from tests.random_encoders import Sketch, build, images

HALF = Precision("fp16")
WIDTH, HEADS, HEAD = 16, 2, 8

# A decoder layer as torch writes it: a norm in plain arithmetic, rotary angles from positions, attention with
# a mask of float32's minimum. The cache grows along `total`.
DECODER = """
<ir_version: 10, opset_import: ["" : 20]>
decoder (float[batch, seq, 16] inputs_embeds, int64[batch, seq] position_ids,
         int64[batch, total] attention_mask,
         float[batch, 2, past, 8] past_key, float[batch, 2, past, 8] past_value)
    => (float[batch, seq, 40] logits,
        float[batch, 2, total, 8] present_key, float[batch, 2, total, 8] present_value)
<float eps = {1e-6}, float two = {2.0}, float scale = {0.35355339}, float minimum = {-3.4e38},
 float zero = {0.0},
 int64[1] last = {-1}, int64[1] middle = {1}, int64[4] split = {0, 0, 2, 8}, int64[3] merge = {0, 0, 16},
 int64[2] masked_axes = {1, 2}, int64 nothing = {0}>
{
    square = Pow(inputs_embeds, two)
    mean = ReduceMean(square, last)
    with_eps = Add(mean, eps)
    root = Sqrt(with_eps)
    inverse = Reciprocal(root)
    normed = Mul(inputs_embeds, inverse)
    hidden = Mul(normed, norm)
    position = Cast <to: int = 1> (position_ids)
    position_column = Unsqueeze(position, last)
    angle = Mul(position_column, frequencies)
    cosine = Cos(angle)
    cosine_heads = Unsqueeze(cosine, middle)
    q_rows = MatMul(hidden, wq)
    q_split = Reshape(q_rows, split)
    q_heads = Transpose <perm = [0, 2, 1, 3]> (q_split)
    q = Mul(q_heads, cosine_heads)
    k_rows = MatMul(hidden, wk)
    k_split = Reshape(k_rows, split)
    k_heads = Transpose <perm = [0, 2, 1, 3]> (k_split)
    k = Mul(k_heads, cosine_heads)
    v_rows = MatMul(hidden, wv)
    v_split = Reshape(v_rows, split)
    v = Transpose <perm = [0, 2, 1, 3]> (v_split)
    present_key = Concat <axis = 2> (past_key, k)
    present_value = Concat <axis = 2> (past_value, v)
    k_columns = Transpose <perm = [0, 1, 3, 2]> (present_key)
    products = MatMul(q, k_columns)
    scores = Mul(products, scale)
    mask_wide = Unsqueeze(attention_mask, masked_axes)
    shown = Greater(mask_wide, nothing)
    bias = Where(shown, zero, minimum)
    biased = Add(scores, bias)
    probabilities = Softmax <axis = -1> (biased)
    mixed = MatMul(probabilities, present_value)
    turned = Transpose <perm = [0, 2, 1, 3]> (mixed)
    merged = Reshape(turned, merge)
    projected = MatMul(merged, wo)
    residual = Add(inputs_embeds, projected)
    logits = MatMul(residual, head)
}
"""


def parsed(text: str) -> ir.Model:
    """ONNX's text form knows no names with dots, which the cache has."""
    model = ir.from_proto(onnx.parser.parse_model(text))
    for value in model.graph.inputs:
        value.name = str(value.name).replace("past_", "past_key_values.0.")
    for value in model.graph.outputs:
        value.name = str(value.name).replace("present_", "present.0.")
    return model


def decoder(folder: Path) -> Path:
    """The graph above with its weights in a file."""
    model = parsed(DECODER)
    shapes = {"norm": (16,), "frequencies": (8,), "head": (16, 40)}
    rng = np.random.default_rng(3)  # the same weights for every test, in whatever order they run
    for name in ("norm", "frequencies", "wq", "wk", "wv", "wo", "head"):
        array = (rng.standard_normal(shapes.get(name, (16, 16))) / 4).astype(np.float32)
        value = next(
            value for node in model.graph for value in node.inputs if value is not None and value.name == name
        )
        value.const_value, value.type = ir.tensor(array, name=name), ir.TensorType(ir.DataType.FLOAT)
        value.shape = ir.Shape(array.shape)
        model.graph.register_initializer(value)
    ir.save(model, folder / "decoder.onnx", external_data="decoder.onnx_data")
    return folder / "decoder.onnx"


def request(dtype: type) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(11)
    cache = [rng.standard_normal((1, HEADS, 4, HEAD)).astype(dtype) for _ in range(2)]
    return {
        "inputs_embeds": rng.standard_normal((1, 3, WIDTH)).astype(np.float32),
        "position_ids": np.arange(4, 7)[None],
        "attention_mask": np.array([[0, 1, 1, 1, 1, 1, 1]]),
        "past_key_values.0.key": cache[0],
        "past_key_values.0.value": cache[1],
    }


def outputs(path: Path, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(None, inputs), strict=True))


def halved(source: Path) -> Path:
    target = source.with_name(source.stem + "_fp16.onnx")
    with WeightFile(target.with_name(target.name + "_data")) as file:
        convert_graph(source, target, HALF, file)
    return target


def dtypes(path: Path) -> dict[str, ir.DataType | None]:
    """Of what each node makes, by its name."""
    return {str(node.outputs[0].name): node.outputs[0].dtype for node in ir.load(path).graph}


def test_a_decoder_in_float16_is_close_to_float32(tmp_path: Path) -> None:
    source = decoder(tmp_path)
    # float16 on both sides, so that the comparison is about the graph alone.
    inputs = request(np.float16)
    wide = {
        name: value.astype(np.float32) if value.dtype == np.float16 else value
        for name, value in inputs.items()
    }
    wanted = outputs(source, wide)
    target = halved(source)
    (tmp_path / "decoder.onnx_data").unlink()
    got = outputs(target, inputs)
    assert {name: array.dtype for name, array in got.items()} == {
        "logits": np.float32,
        "present.0.key": np.float16,
        "present.0.value": np.float16,
    }
    for name, array in wanted.items():
        # 11 bits: 5e-4 of a number, a few times over through six products.
        np.testing.assert_allclose(got[name], array, atol=3e-3 * np.abs(array).max(), rtol=0)
        assert np.abs(got[name] - array).max() > 0  # not float32 by accident
    assert (
        target.with_name(target.name + "_data").stat().st_size < 2 * (4 * 256 + 640) + 12 * 64
    )  # and padding


def test_float32_islands(tmp_path: Path) -> None:
    made = dtypes(halved(decoder(tmp_path)))
    full = "square mean with_eps root inverse normed hidden position angle cosine bias biased probabilities"
    full += " logits"
    half = "q_rows q k v_rows products scores mixed merged projected residual present.0.key"
    assert {name: made[name] for name in full.split()} == dict.fromkeys(full.split(), ir.DataType.FLOAT)
    assert {name: made[name] for name in half.split()} == dict.fromkeys(half.split(), ir.DataType.FLOAT16)


def test_a_value_is_cast_once(tmp_path: Path) -> None:
    casts = [name for name in dtypes(halved(decoder(tmp_path))) if name.endswith(("_float16", "_float"))]
    # The norm's result goes to three products, the angles to two: one Cast each.
    assert sorted(casts) == [
        "cosine_float16",
        "head_fp16_float",
        "hidden_float16",
        "inputs_embeds_float16",
        "probabilities_float16",
        "residual_float",
        "scores_float",
    ]


def test_fused_attention_with_an_untyped_neighbour(tmp_path: Path) -> None:
    """GroupQueryAttention, and values whose dtype nobody wrote down."""
    text = """
    <ir_version: 10, opset_import: ["" : 20, "com.microsoft" : 1]>
    g (float[1, seq, 16] x, int32[1] lengths, int32 total,
       float[1, 2, 8, 8] past_key, float[1, 2, 8, 8] past_value)
        => (float[1, seq, 16] y, float[1, 2, 8, 8] present_key, float[1, 2, 8, 8] present_value)
    <float half = {0.5}>
    {
        scaled = Mul(x, half)
        attended, present_key, present_value =
            com.microsoft.GroupQueryAttention <num_heads = 2, kv_num_heads = 2>
            (scaled, x, x, past_key, past_value, lengths, total)
        y = Add(attended, x)
    }
    """
    ir.save(parsed(text), tmp_path / "a.onnx")
    target = halved(tmp_path / "a.onnx")
    rng = np.random.default_rng(2)
    inputs = {
        "x": rng.standard_normal((1, 3, 16)).astype(np.float32),
        "lengths": np.array([2], np.int32),
        "total": np.array(3, np.int32),
    }
    cache = {f"past_key_values.0.{part}": np.zeros((1, 2, 8, 8), np.float32) for part in ("key", "value")}
    wanted = outputs(tmp_path / "a.onnx", inputs | cache)
    got = outputs(target, inputs | {name: array.astype(np.float16) for name, array in cache.items()})
    assert [array.dtype for array in got.values()] == [np.float32, np.float16, np.float16]
    for name, array in wanted.items():
        # Values to 4 in 11 bits, and one softmax.
        np.testing.assert_allclose(got[name], array, atol=5e-3, rtol=0)


def test_a_pruned_encoder_selects_in_float32(tmp_path: Path) -> None:
    sketch = Sketch(layers=2, feature_layer=1, grid=(4, 5))
    onnx.save(build(sketch), tmp_path / "encoder.onnx")
    prune_file(tmp_path / "encoder.onnx", tmp_path / "pruned.onnx", PruneOptions(special_tokens=1))
    target = halved(tmp_path / "pruned.onnx")
    inputs = images(sketch, 3) | {"num_keep": np.array([8])}
    wanted, got = outputs(tmp_path / "pruned.onnx", inputs), outputs(target, inputs)
    assert {name: array.dtype for name, array in got.items()} == {
        name: array.dtype for name, array in wanted.items()
    }
    # Random weights: the scores of neighbours are 1e-2 apart, float16 states move them by 1e-4.
    np.testing.assert_array_equal(got["kept_indices"], wanted["kept_indices"])
    scale = np.abs(wanted["token_scores"]).mean()
    np.testing.assert_allclose(got["token_scores"], wanted["token_scores"], atol=0.02 * scale)
    size = np.abs(wanted["image_features"]).max()
    np.testing.assert_allclose(got["image_features"], wanted["image_features"], atol=0.01 * size)
    stamped = [
        node for node in ir.load(target).graph if node.metadata_props.get("fopru.pass") in ("score", "select")
    ]
    floats = {value.dtype for node in stamped for value in node.outputs} & {
        ir.DataType.FLOAT,
        ir.DataType.FLOAT16,
    }
    assert floats == {ir.DataType.FLOAT}


def test_scores_start_at_a_float32_product(tmp_path: Path) -> None:
    """Scores tap a softmax at opset 20: the product below it is float32, those of others are not."""
    sketch = Sketch(layers=2, feature_layer=1, grid=(4, 5))
    onnx.save(build(sketch), tmp_path / "encoder.onnx")
    prune_file(tmp_path / "encoder.onnx", tmp_path / "pruned.onnx", PruneOptions(special_tokens=1))
    graph = ir.load(halved(tmp_path / "pruned.onnx")).graph
    below = []
    for node in graph:
        if node.op_type == "Softmax":
            value = node.inputs[0]
            while value is not None and value.producer() is not None and value.producer().op_type != "MatMul":
                value = value.producer().inputs[0]
            below.append(None if value is None else value.dtype)
    assert below.count(ir.DataType.FLOAT) == 1
    assert below.count(ir.DataType.FLOAT16) == len(below) - 1 > 0


def test_the_head_multiplies_in_float32(tmp_path: Path) -> None:
    """Its weights take 16 bits in the file, and its sums keep what 16 bits would round away."""
    source = decoder(tmp_path)
    head = next(node for node in ir.load(source).graph if node.outputs[0].name == "logits").inputs[1]
    target = halved(source)
    made = next(node for node in ir.load(target).graph if node.outputs[0].name == "logits")
    widened = made.inputs[1].producer()
    assert made.op_type == "MatMul"
    assert widened is not None
    assert (widened.op_type, widened.inputs[0].dtype) == ("Cast", ir.DataType.FLOAT16)
    np.testing.assert_array_equal(
        widened.inputs[0].const_value.numpy(), head.const_value.numpy().astype(np.float16)
    )
    logits = outputs(target, request(np.float16))["logits"]
    assert (logits != logits.astype(np.float16)).mean() > 0.9


def test_a_head_in_four_bits_stays_in_float16(tmp_path: Path) -> None:
    text = """
    <ir_version: 10, opset_import: ["" : 20]>
    g (float[1, seq, 4] x) => (float[1, seq, 2] logits)
    <uint8[4, 2] packed = {1, 2, 3, 4, 5, 6, 7, 8}, float[2] scale = {0.5, 0.25}>
    {
        head = DequantizeLinear <axis = 1> (packed, scale)
        logits = MatMul(x, head)
    }
    """
    ir.save(ir.from_proto(onnx.parser.parse_model(text)), tmp_path / "a.onnx")
    made = ir.load(halved(tmp_path / "a.onnx")).graph
    assert [node.inputs[0].dtype for node in made if node.op_type == "MatMul"] == [ir.DataType.FLOAT16]


def test_both_encoders_share_the_float16_file(tmp_path: Path) -> None:
    sketch = Sketch(layers=2, feature_layer=1, heads=4, head_width=16)
    source = tmp_path / "encoder.onnx"
    ir.save(ir.from_proto(build(sketch)), source, external_data="encoder.onnx_data", size_threshold_bytes=0)
    prune_file(source, tmp_path / "pruned.onnx", PruneOptions(special_tokens=1))
    with WeightFile(tmp_path / "h.onnx_data") as file:
        convert_graph(source, tmp_path / "encoder_fp16.onnx", HALF, file)
        size = (tmp_path / "h.onnx_data").stat().st_size
        convert_graph(tmp_path / "pruned.onnx", tmp_path / "pruned_fp16.onnx", HALF, file)
    grown = (tmp_path / "h.onnx_data").stat().st_size - size
    assert size > 0
    assert grown < size / 2  # what scores in float32 stays float32
    (tmp_path / "encoder.onnx_data").unlink()
    outputs(tmp_path / "encoder_fp16.onnx", images(sketch, 2))
    outputs(tmp_path / "pruned_fp16.onnx", images(sketch, 2) | {"num_keep": np.array([2])})


def test_a_loop_reads_float32(tmp_path: Path) -> None:
    """A body captures values of the graph around it, which are float16 there."""
    text = """
    <ir_version: 10, opset_import: ["" : 20]>
    g (float[n, 4] x) => (float[n, 4] y)
    <int64 turns = {3}, bool go = {1}, float[4, 4] w = {1,0,0,0, 0,1,0,0, 0,0,1,0, 0,0,0,1}>
    {
        z = MatMul(x, w)
        y = Loop(turns, go, x) <body = body (int64 turn, bool on, float[n, 4] state) =>
            (bool still, float[n, 4] sum) { still = Identity(on) sum = Add(state, z) }>
    }
    """
    onnx.save(onnx.parser.parse_model(text), tmp_path / "a.onnx")
    target = halved(tmp_path / "a.onnx")
    x = np.array([[1.0, 2.5, -3.0, 0.125]], np.float32)  # exact in float16
    np.testing.assert_array_equal(outputs(target, {"x": x})["y"], 4 * x)
    assert dtypes(target)["z"] == ir.DataType.FLOAT16


def test_a_weight_beyond_float16_is_refused(tmp_path: Path) -> None:
    text = """
    <ir_version: 10, opset_import: ["" : 20]>
    g (float[n, 2] x) => (float[n, 2] y) <float[2, 2] huge = {1.0, 70000.0, 0.0, 1.0}> { y = MatMul(x, huge) }
    """
    onnx.save(onnx.parser.parse_model(text), tmp_path / "a.onnx")
    message = "weight huge has the value 70000, but float16 ends at 65504: give this part fp32, int8 or int4"
    with pytest.raises(OptionError, match=message):
        halved(tmp_path / "a.onnx")
