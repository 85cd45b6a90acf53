"""Weights in 8 or 4 bits with a scale per block, activations as they were.

Each MatMul (and Gemm) with a constant matrix becomes `com.microsoft.MatMulNBits`, packed by the functions of
ONNX Runtime's own quantiser (`onnxruntime.quantization.matmul_nbits_quantizer`, class
`DefaultWeightOnlyQuantizer`); a bias stays the Add that it was. A token table that is looked up by a graph
input becomes `com.microsoft.GatherBlockQuantized` over the same layout, so that a tied embedding and LM head
are the same bytes.

Left alone, and named in the result: a matrix whose rows are not a multiple of the block, and stacks of
matrices. Convolutions and vectors stay float32 too; they are a percent of a model's bytes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from calib.precision.names import Precision
from calib.precision.weight_file import WeightFile, initializer_of, row_chunks, source_of
from calib.precision.widened import numbers_of
from runtime.lazy import require

__all__ = ["Packed", "WeightOnly", "quantize_weights", "quantized_rows"]

_DOMAIN = "com.microsoft"
_FLOAT = ir.DataType.FLOAT


@dataclass(frozen=True)
class Packed:
    """One matrix [N, K] on disk, with B = K / block.

    Attributes:
        values: uint8 [N, B, block * bits / 8]; of two numbers in a byte the lower half comes first.
        scales: float32 [N, B].
        zero_points: uint8 [N, ceil(B * bits / 8)]; None where all are the middle of the range.
    """

    values: ir.ExternalTensor
    scales: ir.ExternalTensor
    zero_points: ir.ExternalTensor | None


@dataclass(frozen=True)
class WeightOnly:
    """What `quantize_weights` did: matrices and tables replaced, and the weights that it left as they are."""

    matrices: int
    tables: int
    left: tuple[str, ...]


@dataclass(frozen=True)
class _Use:
    """A node that multiplies by a constant matrix; `rows_are_outputs`: it is stored as [N, K]."""

    node: ir.Node
    weight: ir.Value
    rows_are_outputs: bool


def quantize_weights(model: ir.Model, precision: Precision, file: WeightFile) -> WeightOnly:
    """Replace constant matrices in place; their float32 initializers are gone from the graph.

    Args:
        model: weights may be external; each is read once.
        precision: int8 or int4.
        file: where the new weights go.

    Returns:
        Counts. Other initializers still point to where they were.
    """
    graph = model.graph
    matrices, tables, left = 0, 0, []
    for node in list(graph.all_nodes()):
        use = _matrix_use(node)
        if use is not None:
            if _fits(use.weight, precision, axis=1 if use.rows_are_outputs else 0):
                _replace_matmul(graph, use, precision, file)
                matrices += 1
            else:
                left.append(str(use.weight.name))
        elif _is_token_lookup(node, graph):
            if _fits(_value(node, 0), precision, axis=1):
                _replace_gather(graph, node, precision, file)
                tables += 1
            else:
                left.append(str(_value(node, 0).name))
    if matrices or tables:
        model.opset_imports[_DOMAIN] = 1
    _remove_unused_initializers(graph)
    return WeightOnly(matrices, tables, tuple(dict.fromkeys(left)))


def _matrix_use(node: ir.Node) -> _Use | None:
    """A product with a constant right-hand side of two axes or more that can be written as MatMulNBits."""
    if node.domain != "" or node.op_type not in ("MatMul", "Gemm"):
        return None
    weight = node.inputs[1]
    if weight is None or weight.const_value is None or not weight.is_initializer() or weight.shape is None:
        return None
    if weight.dtype != _FLOAT or len(weight.shape) < 2:
        return None
    if node.op_type == "MatMul":
        return _Use(node, weight, rows_are_outputs=False)
    scaled = any(node.attributes.get_float(name, 1.0) != 1.0 for name in ("alpha", "beta"))
    if scaled or node.attributes.get_int("transA", 0) == 1:
        return None
    return _Use(node, weight, rows_are_outputs=node.attributes.get_int("transB", 0) == 1)


def _is_token_lookup(node: ir.Node, graph: ir.Graph) -> bool:
    """A table of vectors indexed by a graph input; tables indexed by a constant (positions) are small."""
    if node.domain != "" or node.op_type != "Gather" or node.attributes.get_int("axis", 0) != 0:
        return False
    table = node.inputs[0]
    constant = table is not None and table.is_initializer() and table.const_value is not None
    return constant and table is not None and table.dtype == _FLOAT and node.inputs[1] in graph.inputs


def _fits(weight: ir.Value, precision: Precision, axis: int) -> bool:
    shape = _shape(weight)
    return len(shape) == 2 and shape[axis] % precision.block == 0


def _replace_matmul(graph: ir.Graph, use: _Use, precision: Precision, file: WeightFile) -> None:
    node, shape = use.node, _shape(use.weight)
    packed = _packed(use.weight, precision, file, use.rows_are_outputs)
    values = _initializers(graph, packed)
    outputs, inputs = (shape[0], shape[1]) if use.rows_are_outputs else (shape[1], shape[0])
    attributes: dict[str, int] = {
        "K": inputs,
        "N": outputs,
        "bits": precision.bits,
        "block_size": precision.block,
    }
    if precision.accuracy_level:
        attributes["accuracy_level"] = precision.accuracy_level
    made = ir.node("MatMulNBits", [node.inputs[0], *values], attributes, domain=_DOMAIN, name=node.name)
    bias = node.inputs[2] if node.op_type == "Gemm" and len(node.inputs) > 2 else None
    nodes = [made] if bias is None else [made, ir.node("Add", [made.outputs[0], bias])]
    _put_in_place(node, nodes)


def _replace_gather(graph: ir.Graph, node: ir.Node, precision: Precision, file: WeightFile) -> None:
    packed = _packed(_value(node, 0), precision, file, rows_are_outputs=True)
    rows, width = _shape(_value(node, 0))
    # The operator wants two axes where MatMulNBits wants three: other dims over the same bytes.
    flat = _with_shape(packed.values, (rows, width * precision.bits // 8))
    values = _initializers(graph, Packed(flat, packed.scales, packed.zero_points))
    attributes = {
        "bits": precision.bits,
        "block_size": precision.block,
        "gather_axis": 0,
        "quantize_axis": 1,
    }
    inputs = [values[0], node.inputs[1], *values[1:]]
    _put_in_place(node, [ir.node("GatherBlockQuantized", inputs, attributes, domain=_DOMAIN, name=node.name)])


def _packed(weight: ir.Value, precision: Precision, file: WeightFile, rows_are_outputs: bool) -> Packed:
    """A matrix in its new form, converted the first time its bytes are met."""
    tensor = weight.const_value
    assert tensor is not None
    settings = (*_shape(weight), precision.bits, precision.block, precision.symmetric, rows_are_outputs)
    key = (source_of(tensor), settings)
    if key not in file.known:
        # No name for the array: what it maps could not be given back below.
        file.known[key] = _write(
            numbers_of(tensor) if rows_are_outputs else numbers_of(tensor).T,
            str(weight.name),
            precision,
            file,
        )
        file.keep(tensor)
    found: Packed = file.known[key]
    return found


def _write(matrix: npt.NDArray[Any], name: str, precision: Precision, file: WeightFile) -> Packed:
    """Quantise [N, K] some rows at a time; the values go to disk at once, scales are kept for the end."""
    outputs, inputs = matrix.shape
    blocks, per_byte = inputs // precision.block, 8 // precision.bits
    scales, zeros = [], []

    def values() -> Iterator[npt.NDArray[np.uint8]]:
        for rows in row_chunks(outputs, inputs * 4):
            packed, scale, zero = quantized_rows(matrix[rows], precision)
            scales.append(scale)
            zeros.append(zero)
            yield packed

    suffix = f"_{precision.name}"
    packed = file.write(
        f"{name}{suffix}", ir.DataType.UINT8, (outputs, blocks, precision.block // per_byte), values()
    )
    scale = file.write(f"{name}{suffix}_scales", _FLOAT, (outputs, blocks), scales)
    if precision.symmetric:
        return Packed(packed, scale, None)
    width = -(-blocks // per_byte)
    zero = file.write(f"{name}{suffix}_zero_points", ir.DataType.UINT8, (outputs, width), zeros)
    return Packed(packed, scale, zero)


def quantized_rows(
    rows: npt.NDArray[Any], precision: Precision
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.float32], npt.NDArray[np.uint8]]:
    """ONNX Runtime's packing of [N, K]: values, scales, zero points, shaped as in `Packed`."""
    functions = require("onnxruntime.capi._pybind_state", "onnxruntime")
    quantize = {4: functions.quantize_matmul_4bits, 8: functions.quantize_matmul_8bits}[precision.bits]
    outputs, inputs = rows.shape
    blocks, per_byte = inputs // precision.block, 8 // precision.bits
    values = np.zeros((outputs, blocks, precision.block // per_byte), np.uint8)
    scales = np.zeros((outputs, blocks), np.float32)
    zeros = np.zeros((outputs, -(-blocks // per_byte)), np.uint8)
    columns = np.ascontiguousarray(rows.T, np.float32)
    quantize(values, columns, scales, zeros, precision.block, outputs, inputs, precision.symmetric)
    return values, scales, zeros


def _initializers(graph: ir.Graph, packed: Packed) -> list[ir.Value]:
    tensors = [packed.values, packed.scales, *([packed.zero_points] if packed.zero_points else [])]
    return [initializer_of(graph, tensor, str(tensor.name)) for tensor in tensors]


def _with_shape(tensor: ir.ExternalTensor, shape: tuple[int, ...]) -> ir.ExternalTensor:
    return ir.ExternalTensor(
        tensor.location,
        tensor.offset,
        tensor.length,
        tensor.dtype,
        shape=ir.Shape(shape),
        name=f"{tensor.name}_table",
        base_dir=tensor.base_dir,
    )


def _put_in_place(node: ir.Node, nodes: list[ir.Node]) -> None:
    """Put nodes where `node` was: the last one takes over its output, name, dtype and shape."""
    old, new = node.outputs[0], nodes[-1].outputs[0]
    new.type, new.shape, name = old.type, old.shape, old.name
    owner = node.graph
    assert owner is not None
    owner.insert_before(node, nodes)
    ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
    owner.remove(node, safe=True)
    new.name = name


def _remove_unused_initializers(graph: ir.Graph) -> None:
    for name in [name for name, value in graph.initializers.items() if not value.uses()]:
        if not graph.initializers[name].is_graph_output():
            del graph.initializers[name]


def _value(node: ir.Node, position: int) -> ir.Value:
    value = node.inputs[position]
    assert value is not None
    return value


def _shape(value: ir.Value) -> tuple[int, ...]:
    assert value.shape is not None
    return tuple(int(dim) for dim in value.shape.numpy())
