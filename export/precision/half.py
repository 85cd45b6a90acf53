"""float16 weights and activations, with float32 where 11 bits are not enough.

One walk over the graph in its order. Products, convolutions, attention and fused norms run in float16 (the
last two sum in float32 inside). These stay float32: everything from a Pow, a Reduce, a Sqrt or an Exp to the
next product (a norm written out), Softmax and the additions of its mask, angles until their Cos and Sin, and
all nodes that score and select tokens, down to TopK. Graph inputs and outputs stay float32, except the KV
cache, which is half as large.

Which of the two an elementwise node runs in depends on its inputs: float32 as soon as one leans to float32.
What leans to float16 although it is computed in float32: graph inputs, and what lies in [-1, 1] (Softmax,
Cos, Sin). A node of an unknown kind runs in float32.

`onnxruntime.transformers.float16` does not do: it holds the whole model as one protobuf, and takes op types,
not places, out of float16, so that the score of a token would be rounded wherever a MatMul computes it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from export.errors import OptionError
from export.precision.weight_file import INLINE_BYTES, WeightFile, initializer_of, row_chunks, source_of
from export.precision.widened import numbers_of
from fopru_graph.builder import STAMP

__all__ = ["HalfReport", "halve"]

_FULL, _HALF = ir.DataType.FLOAT, ir.DataType.FLOAT16
_LARGEST, _SMALLEST = 65504.0, 2.0**-14  # of float16; below, it loses bits
_CACHE = ("past_key_values.", "present.")
_CAREFUL_PASSES = ("score", "select")

_PRODUCTS = (
    *("MatMul", "Gemm", "Conv", "ConvTranspose", "Einsum", "MatMulNBits", "AveragePool", "GlobalAveragePool"),
    *("Attention", "GroupQueryAttention", "MultiHeadAttention", "RotaryEmbedding", "MaxPool"),
    *("LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization"),
    *("SkipLayerNormalization", "SkipSimplifiedLayerNormalization"),
)
_NORMS = (
    *("LayerNormalization", "SimplifiedLayerNormalization"),
    *("SkipLayerNormalization", "SkipSimplifiedLayerNormalization"),
)
_STATISTICS = (1, 2)  # outputs of a norm that are float32 in any precision: mean, and 1 / deviation
_FOLLOW = (
    *("Add", "Sub", "Mul", "Div", "Neg", "Abs", "Clip", "Min", "Max", "Where", "Identity", "Pad", "Tile"),
    *(
        "Sigmoid",
        "Tanh",
        "Erf",
        "Relu",
        "LeakyRelu",
        "Gelu",
        "FastGelu",
        "QuickGelu",
        "BiasGelu",
        "HardSwish",
    ),
    *("Reshape", "Transpose", "Slice", "Split", "Concat", "Squeeze", "Unsqueeze", "Expand", "Flatten"),
    *("Gather", "GatherElements", "GatherND", "ScatterND", "ScatterElements", "DepthToSpace", "SpaceToDepth"),
)
_ANY = ("Shape", "Size")
_IN_UNIT_RANGE = ("Softmax", "Cos", "Sin")
_BOOLEAN = ("Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "And", "Or", "Not", "IsNaN", "IsInf")


@dataclass(frozen=True)
class HalfReport:
    """Nodes that run in float16, float nodes that stay float32, Casts added."""

    half: int
    full: int
    casts: int


def halve(model: ir.Model, file: WeightFile) -> HalfReport:
    """Change a float32 graph in place.

    Args:
        model: sorted; weights may be external, each is read once.
        file: where float16 weights go.

    Raises:
        OptionError: a weight that float16 cannot hold.
    """
    return _Walk(model.graph, file).run()


class _Walk:
    """One pass over a graph: `leans` is the dtype each float value would rather be read in."""

    def __init__(self, graph: ir.Graph, file: WeightFile) -> None:
        self._graph = graph
        self._file = file
        self._leans: dict[ir.Value, ir.DataType] = {}
        self._casts: dict[tuple[ir.Value, ir.DataType], ir.Value] = {}
        self._half = self._full = 0

    def run(self) -> HalfReport:
        for value in self._graph.inputs:
            if value.dtype == _FULL:
                self._leans[value] = _HALF
                if str(value.name).startswith(_CACHE):
                    value.type = ir.TensorType(_HALF)
        for node in list(self._graph):
            _fill_dtypes(node)
            self._place(node)
        for position, value in enumerate(self._graph.outputs):
            wanted = _HALF if str(value.name).startswith(_CACHE) else _FULL
            if value.dtype in (_FULL, _HALF) and value.dtype != wanted:
                self._graph.outputs[position] = self._renamed(value, wanted)
        for name in [name for name, value in self._graph.initializers.items() if not value.uses()]:
            if not self._graph.initializers[name].is_graph_output():
                del self._graph.initializers[name]
        return HalfReport(self._half, self._full, len(self._casts))

    def _place(self, node: ir.Node) -> None:
        """Decide where a node runs, bring its inputs there, and note what its outputs are."""
        if node.op_type in _ANY and node.domain == "":
            return
        floats = [value for value in node.inputs if value is not None and value.dtype in (_FULL, _HALF)]
        made = [value for value in node.outputs if value.dtype == _FULL]
        if not floats and not made:
            return
        dtype = self._dtype(node, floats)
        self._read_in(node, dtype)
        self._half, self._full = self._half + (dtype == _HALF), self._full + (dtype == _FULL)
        for value in made:
            if node.op_type in _NORMS and value.index() in _STATISTICS:
                self._leans[value] = _FULL
                continue
            value.type = ir.TensorType(dtype)
            in_range = node.op_type in _IN_UNIT_RANGE and not _is_careful(node)
            self._leans[value] = _HALF if in_range else dtype

    def _dtype(self, node: ir.Node, floats: list[ir.Value]) -> ir.DataType:
        if _is_careful(node) or _subgraphs(node):
            return _FULL
        if node.op_type in _PRODUCTS:
            if node.op_type == "Attention" and node.domain == "":
                node.attributes["softmax_precision"] = ir.AttrInt64("softmax_precision", _FULL)
            return _HALF
        if node.op_type not in _FOLLOW:
            return _FULL
        moving = [value for value in floats if value.const_value is None]
        if not moving or any(self._leans.get(value, _FULL) == _FULL for value in moving):
            return _FULL
        constants = [value.const_value for value in floats if value.const_value is not None]
        return _HALF if all(_is_representable(tensor) for tensor in constants) else _FULL

    def _read_in(self, node: ir.Node, dtype: ir.DataType) -> None:
        for position, value in enumerate(node.inputs):
            if value is not None and value.dtype in (_FULL, _HALF) and value.dtype != dtype:
                node.replace_input_with(position, self._as(value, dtype))
        for graph in _subgraphs(node):
            for inner in graph.all_nodes():
                for position, value in enumerate(inner.inputs):
                    if value is not None and value.dtype == _HALF and _is_of(value, self._graph):
                        inner.replace_input_with(position, self._as(value, _FULL))

    def _as(self, value: ir.Value, dtype: ir.DataType) -> ir.Value:
        if (value, dtype) not in self._casts:
            if value.is_initializer() and value.const_value is not None:
                return self._half_weight(value)
            self._casts[value, dtype] = self._cast(value, dtype)
        return self._casts[value, dtype]

    def _cast(self, value: ir.Value, dtype: ir.DataType) -> ir.Value:
        name = f"{value.name}_{dtype.name.lower()}"
        node = ir.node("Cast", [value], {"to": dtype}, metadata_props={STAMP: "half"}, name=f"cast_{name}")
        out = node.outputs[0]
        out.name, out.type, out.shape = name, ir.TensorType(dtype), value.shape
        producer = value.producer()
        if producer is None:
            self._graph.insert_before(self._graph[0], node)
        else:
            self._graph.insert_after(producer, node)
        return out

    def _renamed(self, value: ir.Value, dtype: ir.DataType) -> ir.Value:
        """A graph output in its dtype; it takes over the name, which hosts know."""
        name = str(value.name)
        value.name = f"{name}_{'half' if value.dtype == _HALF else 'full'}"
        self._casts.pop((value, dtype), None)
        self._casts[value, dtype] = out = self._cast(value, dtype)
        out.name = name
        return out

    def _half_weight(self, value: ir.Value) -> ir.Value:
        tensor = value.const_value
        assert tensor is not None
        name = f"{value.name}_fp16"
        if name in self._graph.initializers:
            return self._graph.initializers[name]
        if tensor.nbytes <= INLINE_BYTES:
            return initializer_of(self._graph, ir.tensor(_rounded(tensor.numpy(), name), name=name), name)
        key = (source_of(tensor), "fp16")
        if key not in self._file.known:
            shape = tuple(int(dim) for dim in tensor.shape.numpy())
            self._file.known[key] = self._file.write(
                name, _HALF, shape, _half_chunks(numbers_of(tensor), name)
            )
            self._file.keep(tensor)
        return initializer_of(self._graph, self._file.known[key], name)


def _half_chunks(array: npt.NDArray[Any], name: str) -> Iterator[npt.NDArray[np.float16]]:
    rows = array.reshape(array.shape[0] if array.ndim > 1 else 1, -1)
    for part in row_chunks(len(rows), rows.shape[1] * 4):
        yield _rounded(rows[part].astype(np.float32, copy=False), name)


def _rounded(array: npt.NDArray[Any], name: str) -> npt.NDArray[np.float16]:
    largest = float(np.abs(array).max(initial=0.0))
    if largest > _LARGEST:
        raise OptionError(
            f"weight {name.removesuffix('_fp16')} has the value {largest:g}, but float16 ends at "
            f"{_LARGEST:g}: give this part fp32, int8 or int4 with --precision"
        )
    return array.astype(np.float16)


def _is_representable(tensor: ir.TensorProtocol) -> bool:
    """Whether float16 keeps a small constant: -3e38 of a mask or 1e-6 of a norm are neither."""
    if tensor.nbytes > INLINE_BYTES:
        return True
    size = np.abs(tensor.numpy())
    return bool((((size <= _LARGEST) & (size >= _SMALLEST)) | (size == 0)).all())


def _is_careful(node: ir.Node) -> bool:
    return node.metadata_props.get(STAMP) in _CAREFUL_PASSES


def _subgraphs(node: ir.Node) -> list[ir.Graph]:
    return [
        attribute.as_graph()
        for attribute in node.attributes.values()
        if isinstance(attribute, ir.Attr) and attribute.type == ir.AttributeType.GRAPH
    ]


def _is_of(value: ir.Value, graph: ir.Graph) -> bool:
    producer = value.producer()
    return producer.graph is graph if producer is not None else value in graph.inputs


def _fill_dtypes(node: ir.Node) -> None:
    """Give outputs without a dtype the one that follows from the op: rewriters leave it out."""
    known = [value.dtype for value in node.inputs if value is not None and value.dtype is not None]
    for position, value in enumerate(node.outputs):
        if value.dtype is not None:
            continue
        if node.op_type == "Cast":
            dtype = ir.DataType(node.attributes.get_int("to", _FULL))
        elif node.op_type in _ANY or (node.op_type == "TopK" and position == 1):
            dtype = ir.DataType.INT64
        elif node.op_type in _BOOLEAN:
            dtype = ir.DataType.BOOL
        elif node.op_type == "Where":
            dtype = known[-1]
        elif known:
            dtype = known[0]
        else:
            continue
        # A half input of a float op means that the graph was float32 there before this walk.
        value.type = ir.TensorType(_FULL if dtype == _HALF else dtype)
