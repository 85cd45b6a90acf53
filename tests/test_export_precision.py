"""Weights in 8 and 4 bits: what is packed, what the graphs compute, what is shared, what is left alone."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

from calib.errors import OptionError
from calib.precision import (
    SUFFIXES,
    Precision,
    Precisions,
    data_file_of,
    graph_file_of,
    parse_precision,
)
from calib.precision.convert import convert_graph
from calib.precision.weight_file import WeightFile
from export.errors import OptionError as BuildOptionError
from export.options import BuildOptions
from runtime import contract

RNG = np.random.default_rng(5)
INT4 = Precision("int4", accuracy_level=0)

WEIGHT_ONLY = [
    Precision(name, block, symmetric, 0)
    for name in ("int8", "int4")
    for block in (32, 128)
    for symmetric in (True, False)
]


def floats(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def write(path: Path, nodes: list[onnx.NodeProto], weights: dict[str, np.ndarray], width: int) -> None:
    """A graph x float32 [rows, width], or ids int64 [batch, seq], → y; every weight in a file beside it."""
    if any("ids" in node.input for node in nodes):
        source = helper.make_tensor_value_info("ids", TensorProto.INT64, ["batch", "seq"])
    else:
        source = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", width])
    target = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    initializers = [onnx.numpy_helper.from_array(array, name) for name, array in weights.items()]
    graph = helper.make_graph(nodes, "g", [source], [target], initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    ir.save(ir.from_proto(model), path, external_data=path.name + "_data", size_threshold_bytes=0)


def run(path: Path, **inputs: np.ndarray) -> np.ndarray:
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    result: np.ndarray = session.run(["y"], inputs)[0]
    return result


def nodes_of(path: Path) -> list[str]:
    return [node.op_type for node in onnx.load(path, load_external_data=False).graph.node]


def stored(path: Path) -> dict[str, np.ndarray]:
    """What a graph holds of its one packed matrix: `values`, `scales`, perhaps `zero_points`."""
    found = {}
    for name, value in ir.load(path).graph.initializers.items():
        array = np.array(value.const_value.numpy())
        ends = [end for end in ("scales", "zero_points") if name.endswith(f"_{end}")]
        if ends or array.dtype == np.uint8:
            found[ends[0] if ends else "values"] = array
    return found


def dequantized(arrays: dict[str, np.ndarray], bits: int) -> np.ndarray:
    """float32 [N, K] by the definition of MatMulNBits: (value - zero point) * scale, low half of a byte
    first."""

    def unpacked(data: np.ndarray) -> np.ndarray:
        rows = data.reshape(len(data), -1)
        if bits == 8:
            return rows
        out = np.empty((len(rows), 2 * rows.shape[1]), np.uint8)
        out[:, 0::2], out[:, 1::2] = rows & 15, rows >> 4
        return out

    scales = arrays["scales"]
    values = unpacked(arrays["values"]).astype(np.float64)
    blocks = scales.shape[1]
    zeros = np.full(scales.shape, 2.0 ** (bits - 1))
    if "zero_points" in arrays:
        zeros = unpacked(arrays["zero_points"])[:, :blocks].astype(np.float64)
    block = values.shape[1] // blocks
    return ((values - zeros.repeat(block, 1)) * scales.repeat(block, 1)).astype(np.float32)


@pytest.mark.parametrize("precision", WEIGHT_ONLY, ids=Precision.text)
def test_packed_weights_are_within_half_a_step(precision: Precision, tmp_path: Path) -> None:
    weight = floats(384, 48)  # three blocks of 128: an odd number, so that zero points end in half a byte
    write(tmp_path / "a.onnx", [helper.make_node("MatMul", ["x", "w"], ["y"])], {"w": weight}, 384)
    with WeightFile(tmp_path / "b.onnx_data") as file:
        found = convert_graph(tmp_path / "a.onnx", tmp_path / "b.onnx", precision, file)
    assert (found.replaced, found.notes) == (1, ())
    arrays = stored(tmp_path / "b.onnx")
    assert ("zero_points" in arrays) == (not precision.symmetric)
    got = dequantized(arrays, precision.bits)
    steps = np.abs(got - weight.T) / np.abs(arrays["scales"]).repeat(precision.block, 1)
    if precision.symmetric:
        # The range is -8..7 steps, the largest magnitude at -8: what is as large on the other side loses up
        # to one step, everything below 7.5 steps half of one.
        limit = 2 ** (precision.bits - 1) - 0.5
        inside = np.abs(weight.T) < limit * np.abs(arrays["scales"]).repeat(precision.block, 1)
        assert steps[inside].max() <= 0.5 + 1e-4  # the division by the scale rounds
        assert steps.max() <= 1.0 + 1e-4
    else:
        assert steps.max() <= 0.5 + 1e-4
    assert steps.mean() > 0.1  # not float32 by accident


@pytest.mark.parametrize("precision", WEIGHT_ONLY, ids=Precision.text)
def test_the_product_is_the_one_with_the_dequantized_weight(precision: Precision, tmp_path: Path) -> None:
    write(tmp_path / "a.onnx", [helper.make_node("MatMul", ["x", "w"], ["y"])], {"w": floats(256, 24)}, 256)
    with WeightFile(tmp_path / "b.onnx_data") as file:
        convert_graph(tmp_path / "a.onnx", tmp_path / "b.onnx", precision, file)
    assert nodes_of(tmp_path / "b.onnx") == ["MatMulNBits"]
    x = floats(5, 256)
    wanted = x @ dequantized(stored(tmp_path / "b.onnx"), precision.bits).T
    # float32 sums of 256 products in another order.
    np.testing.assert_allclose(run(tmp_path / "b.onnx", x=x), wanted, atol=1e-5 * np.abs(wanted).max())


def test_accuracy_level_4_rounds_the_activations(tmp_path: Path) -> None:
    write(tmp_path / "a.onnx", [helper.make_node("MatMul", ["x", "w"], ["y"])], {"w": floats(256, 24)}, 256)
    with WeightFile(tmp_path / "b.onnx_data") as file:
        convert_graph(tmp_path / "a.onnx", tmp_path / "b.onnx", Precision("int4"), file)
    node = onnx.load(tmp_path / "b.onnx", load_external_data=False).graph.node[0]
    assert {a.name: a.i for a in node.attribute} == {
        "K": 256,
        "N": 24,
        "bits": 4,
        "block_size": 32,
        "accuracy_level": 4,
    }
    x = floats(5, 256)
    wanted = x @ dequantized(stored(tmp_path / "b.onnx"), 4).T
    # Activations in 8 bits: half a step of 1/127 of a block's largest, over 256 of them, which mostly cancel.
    np.testing.assert_allclose(run(tmp_path / "b.onnx", x=x), wanted, atol=0.02 * np.abs(wanted).max())


def test_a_gemm_keeps_its_bias_and_reads_rows_as_outputs(tmp_path: Path) -> None:
    weight, bias = floats(40, 64), floats(40)
    gemm = helper.make_node("Gemm", ["x", "w", "b"], ["y"], transB=1)
    write(tmp_path / "a.onnx", [gemm], {"w": weight, "b": bias}, 64)
    with WeightFile(tmp_path / "b.onnx_data") as file:
        convert_graph(tmp_path / "a.onnx", tmp_path / "b.onnx", INT4, file)
    assert nodes_of(tmp_path / "b.onnx") == ["MatMulNBits", "Add"]
    (tmp_path / "a.onnx_data").unlink()  # the bias has moved too
    x = floats(3, 64)
    wanted = x @ dequantized(stored(tmp_path / "b.onnx"), 4).T + bias
    # float32 sums of 64 products in another order.
    np.testing.assert_allclose(run(tmp_path / "b.onnx", x=x), wanted, atol=1e-5 * np.abs(wanted).max())


def test_a_gemm_of_columns_is_a_matmul(tmp_path: Path) -> None:
    write(tmp_path / "a.onnx", [helper.make_node("Gemm", ["x", "w"], ["y"])], {"w": floats(64, 24)}, 64)
    with WeightFile(tmp_path / "b.onnx_data") as file:
        convert_graph(tmp_path / "a.onnx", tmp_path / "b.onnx", INT4, file)
    x = floats(3, 64)
    wanted = x @ dequantized(stored(tmp_path / "b.onnx"), 4).T
    # float32 sums of 64 products in another order.
    np.testing.assert_allclose(run(tmp_path / "b.onnx", x=x), wanted, atol=1e-5 * np.abs(wanted).max())


@pytest.mark.parametrize(
    ("node", "shape", "named"),
    [
        (helper.make_node("MatMul", ["x", "w"], ["y"]), (48, 24), True),  # 48 is no multiple of 32
        (helper.make_node("MatMul", ["x", "w"], ["y"]), (2, 64, 24), True),  # a stack of matrices
        (helper.make_node("Gemm", ["x", "w"], ["y"], alpha=2.0), (64, 24), False),
        (helper.make_node("MatMul", ["x", "w"], ["y"]), (64,), False),
        (helper.make_node("Mul", ["x", "w"], ["y"]), (64,), False),
    ],
)
def test_what_is_left_alone(
    node: onnx.NodeProto, shape: tuple[int, ...], named: bool, tmp_path: Path
) -> None:
    weight, width = floats(*shape), shape[-2] if len(shape) > 1 else shape[0]
    write(tmp_path / "a.onnx", [node], {"w": weight}, width)
    with WeightFile(tmp_path / "b.onnx_data") as file:
        found = convert_graph(tmp_path / "a.onnx", tmp_path / "b.onnx", INT4, file)
    assert found.replaced == 0
    assert nodes_of(tmp_path / "b.onnx") == [node.op_type]
    expected = ("int4: w stay float32, their rows are not a multiple of 32",) if named else ()
    assert found.notes == expected
    x = floats(3, width)
    np.testing.assert_array_equal(run(tmp_path / "b.onnx", x=x), run(tmp_path / "a.onnx", x=x))


def tied(folder: Path, table: np.ndarray) -> None:
    """embed.onnx: ids → rows of the table; head.onnx: states → logits, its weight in embed's file."""
    write(folder / "embed.onnx", [helper.make_node("Gather", ["table", "ids"], ["y"])], {"table": table}, 0)
    gemm = helper.make_node("Gemm", ["x", "head"], ["y"], transB=1)
    write(folder / "head.onnx", [gemm], {"head": table}, table.shape[1])
    head = ir.load(folder / "head.onnx")
    there = ir.load(folder / "embed.onnx").graph.initializers["table"].const_value
    head.graph.initializers["head"].const_value = there
    ir.save(head, folder / "head.onnx")
    (folder / "head.onnx_data").unlink()


@pytest.mark.parametrize("precision", WEIGHT_ONLY, ids=Precision.text)
def test_tied_embedding_and_head_are_the_same_bytes(precision: Precision, tmp_path: Path) -> None:
    table = floats(50, 384)  # three blocks of 128
    tied(tmp_path, table)
    with WeightFile(tmp_path / "embed_q.onnx_data") as first:
        convert_graph(tmp_path / "embed.onnx", tmp_path / "embed_q.onnx", precision, first)
        with WeightFile(tmp_path / "head_q.onnx_data", first) as second:
            convert_graph(tmp_path / "head.onnx", tmp_path / "head_q.onnx", precision, second)
    assert nodes_of(tmp_path / "embed_q.onnx") == ["GatherBlockQuantized"]
    assert nodes_of(tmp_path / "head_q.onnx") == ["MatMulNBits"]
    assert (tmp_path / "head_q.onnx_data").stat().st_size == 0
    (tmp_path / "embed.onnx_data").unlink()
    rows = dequantized(stored(tmp_path / "head_q.onnx"), precision.bits)
    ids = np.array([[0, 49, 7], [7, 8, 9]])
    # One product per number: the same float32 but for the last bit.
    np.testing.assert_allclose(run(tmp_path / "embed_q.onnx", ids=ids), rows[ids], rtol=1e-6, atol=1e-7)
    x = floats(4, 384)
    wanted = x @ rows.T  # float32 sums in another order
    np.testing.assert_allclose(run(tmp_path / "head_q.onnx", x=x), wanted, atol=1e-5 * np.abs(wanted).max())


def test_a_table_read_at_constant_places_is_left_alone(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Gather", ["table", "places"], ["rows"]),
        helper.make_node("Add", ["x", "rows"], ["y"]),
    ]
    write(tmp_path / "a.onnx", nodes, {"table": floats(9, 32), "places": np.arange(4)}, 32)
    with WeightFile(tmp_path / "b.onnx_data") as file:
        found = convert_graph(tmp_path / "a.onnx", tmp_path / "b.onnx", INT4, file)
    assert (found.replaced, nodes_of(tmp_path / "b.onnx")) == (0, ["Gather", "Add"])


def test_two_graphs_of_one_weight_file_share_the_new_one(tmp_path: Path) -> None:
    write(tmp_path / "a.onnx", [helper.make_node("MatMul", ["x", "w"], ["y"])], {"w": floats(64, 24)}, 64)
    with WeightFile(tmp_path / "q.onnx_data") as file:
        convert_graph(tmp_path / "a.onnx", tmp_path / "one.onnx", INT4, file)
        size = (tmp_path / "q.onnx_data").stat().st_size
        convert_graph(tmp_path / "a.onnx", tmp_path / "two.onnx", INT4, file)
    assert (tmp_path / "q.onnx_data").stat().st_size == size > 0
    x = floats(2, 64)
    np.testing.assert_array_equal(run(tmp_path / "one.onnx", x=x), run(tmp_path / "two.onnx", x=x))


@pytest.mark.parametrize("name", ["int8", "int4", "fp16"])
def test_memory_holds_one_weight_at_a_time(name: str, tmp_path: Path) -> None:
    layers, width = 12, 512
    states = ["x", *(f"h{layer}" for layer in range(1, layers)), "y"]
    nodes = [
        helper.make_node("MatMul", [states[layer], f"w{layer}"], [states[layer + 1]])
        for layer in range(layers)
    ]
    write(tmp_path / "a.onnx", nodes, {f"w{layer}": floats(width, width) for layer in range(layers)}, width)
    with WeightFile(tmp_path / "b.onnx_data") as file:
        tracemalloc.start()
        convert_graph(tmp_path / "a.onnx", tmp_path / "b.onnx", Precision(name), file)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    one = width * width * 4
    # The transposed copy of one weight, its packed form and the small change of 12 nodes; 12 MB is the whole.
    assert peak < 2.5 * one


def test_large_weights_are_converted_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weight = floats(64, 50)
    write(tmp_path / "a.onnx", [helper.make_node("MatMul", ["x", "w"], ["y"])], {"w": weight}, 64)
    made = []
    for chunk in (1 << 25, 64 * 4 * 7):  # 50 columns in one piece, and in pieces of 7
        monkeypatch.setattr("calib.precision.weight_file._CHUNK_BYTES", chunk)
        for precision in (Precision("int4", symmetric=False), Precision("fp16")):
            target = tmp_path / f"{chunk}_{precision.name}.onnx"
            with WeightFile(target.with_suffix(".onnx_data")) as file:
                convert_graph(tmp_path / "a.onnx", target, precision, file)
            made.append(target.with_suffix(".onnx_data").read_bytes())
    assert made[0] == made[2]
    assert made[1] == made[3]


def test_the_option_in_words() -> None:
    assert parse_precision("fp32") == Precisions()
    assert Precisions().exact
    assert Precisions().text() == ""
    assert parse_precision("vision=fp32,decoder=int4") == Precisions(
        embed=Precision("int4"), decoder=Precision("int4")
    )
    text = "vision=fp16, decoder=int4:block=128,asymmetric,accuracy=0, embed=fp32"
    options = Precision("int4", 128, False, 0)
    assert parse_precision(text) == Precisions(Precision("fp16"), Precision(), options)
    assert parse_precision("fp16") == Precisions(*[Precision("fp16")] * 3)
    assert parse_precision("int8:symmetric,vision=fp16").vision == Precision("fp16")
    assert parse_precision("int8:block=128,vision=fp16").embed == Precision("int8", 128)
    assert not parse_precision("decoder=fp16").exact


@pytest.mark.parametrize(
    "text", ["fp16", "vision=fp16", "decoder=int4:block=128,asymmetric,accuracy=0,embed=fp32"]
)
def test_the_option_is_written_as_it_is_read(text: str) -> None:
    assert parse_precision(parse_precision(text).text()) == parse_precision(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("int3", "precision is 'int3', expected one of fp32, fp16, bf16, int8, int4, or fp8 with `calib.q"),
        ("", "precision is '', expected one of"),
        ("head=int4", "precision is given for 'head', expected one of vision, embed, decoder"),
        ("vision=fp16,vision=fp32", "precision is given twice for vision: give it once"),
        ("fp16,fp32", "precision is given twice for every part: give it once"),
        ("decoder=int4:block=64", "precision block is 64, expected one of 32, 128: leave it out"),
        ("decoder=int4:accuracy=1", r"precision accuracy is 1, expected 0 \(float32 activations\) or 4"),
        ("decoder=int4:rows=8", "precision has the option 'rows=8', expected block=32, block=128, symmetric"),
        ("decoder=int4:block=x", "precision has the option 'block=x', expected block=32"),
        ("decoder=fp16:block=128", "precision fp16 has no block, zero points or accuracy level: leave"),
    ],
)
def test_what_the_option_refuses(text: str, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        parse_precision(text)


def test_file_names() -> None:
    assert SUFFIXES == {
        "fp32": "",
        "fp16": "_fp16",
        "bf16": "_bf16",
        "int8": "_int8",
        "int4": "_q4",
        "w8a8": "_w8a8",
        "fp8": "_fp8",
    }
    precisions = parse_precision("vision=fp16,decoder=int4")
    graphs = (contract.VISION_ENCODER_FOPRU, contract.EMBED_TOKENS, contract.DECODER)
    assert [graph_file_of(graph, precisions.of_graph(graph)) for graph in graphs] == [
        "onnx/vision_encoder_fopru_fp16.onnx",
        "onnx/embed_tokens_q4.onnx",
        "onnx/decoder_model_merged_q4.onnx",
    ]
    assert [data_file_of(graph, precisions.of_graph(graph)) for graph in graphs] == [
        "onnx/vision_encoder_fp16.onnx_data",  # shared with the unpruned encoder
        "onnx/embed_tokens_q4.onnx_data",
        "onnx/decoder_model_merged_q4.onnx_data",
    ]


@pytest.mark.parametrize("name", ["w8a8", "fp8"])
def test_a_build_has_no_scales_of_activations(name: str) -> None:
    message = (
        rf"precision of vision is {name}, whose scales of activations come from data: build without it, and "
        "run `python -m calib.quantize` on the bundle"
    )
    with pytest.raises(BuildOptionError, match=message):
        BuildOptions(model="m", precision=Precisions(vision=Precision(name)))
