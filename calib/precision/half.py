"""float16 or bfloat16 weights and activations, with float32 where 11 bits, or 8, are not enough.

One walk over the graph in its order. Products, convolutions, attention and fused norms run in 16 bits (the
last two sum in float32 inside). These stay float32: everything from a Pow, a Reduce, a Sqrt or an Exp to the
next product (a norm written out), Softmax and the additions of its mask, angles until their Cos and Sin, all
nodes that score and select tokens, from the product of Q with K down to TopK, and the LM head, whose sums
are compared with each other as scores are. Weights of the head are 16 bits in the file and widened behind it
(an engine holds them wide); a head in 4 bits makes products of 16. Graph inputs and outputs stay float32,
except the KV cache, which is half as large.

Which of the two an elementwise node runs in depends on its inputs: float32 as soon as one leans to float32.
What leans to 16 bits although it is computed in float32: graph inputs, and what lies in [-1, 1] (Softmax,
Cos, Sin). A node of an unknown kind runs in float32, and so does one that ONNX does not define for bfloat16
at the opset of the graph (Conv before 22).

`onnxruntime.transformers.float16` does not do: it holds the whole model as one protobuf, and takes op types,
not places, out of float16, so that the score of a token would be rounded wherever a MatMul computes it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir

from calib.errors import OptionError
from calib.precision.weight_file import INLINE_BYTES, WeightFile, initializer_of, row_chunks, source_of
from calib.precision.widened import numbers_of
from fopru_graph.builder import STAMP
from runtime import contract

__all__ = ["HalfReport", "halve"]

_FULL = ir.DataType.FLOAT
_HALVES = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
_CACHE = ("past_key_values.", "present.")
_CAREFUL_PASSES = ("score", "select")

_PRODUCTS = (
    *("MatMul", "Gemm", "Conv", "ConvTranspose", "Einsum", "MatMulNBits", "AveragePool", "GlobalAveragePool"),
    *("Attention", "GroupQueryAttention", "MultiHeadAttention", "RotaryEmbedding", "MaxPool"),
    *("LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization"),
    *("SkipLayerNormalization", "SkipSimplifiedLayerNormalization"),
    *("QuantizeLinear", "DequantizeLinear", "TRT_INT4DequantizeLinear"),
)
_MATRIX_PRODUCTS = ("MatMul", "Gemm")
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
class _Half:
    """A type of 16 bits: its greatest number, and the least one that keeps all its bits."""

    dtype: ir.DataType
    suffix: str
    word: str
    numpy: np.dtype[Any]
    largest: float
    smallest: float


_KINDS = {
    "fp16": _Half(_HALVES[0], "fp16", "float16", np.dtype(np.float16), 65504.0, 2.0**-14),
    "bf16": _Half(
        _HALVES[1], "bf16", "bfloat16", np.dtype(ml_dtypes.bfloat16), (2 - 2.0**-7) * 2.0**127, 2.0**-126
    ),
}


@dataclass(frozen=True)
class HalfReport:
    """Nodes that run in 16 bits, float nodes that stay float32, Casts added."""

    half: int
    full: int
    casts: int


def halve(model: ir.Model, file: WeightFile, precision: str = "fp16") -> HalfReport:
    """Change a float32 graph in place.

    Args:
        model: sorted; weights may be external, each is read once.
        file: where weights of 16 bits go.
        precision: `fp16` or `bf16`.

    Raises:
        OptionError: a weight that float16 cannot hold.
    """
    return _Walk(model, file, _KINDS[precision]).run()


class _Walk:
    """One pass over a graph: `leans` is the dtype each float value would rather be read in."""

    def __init__(self, model: ir.Model, file: WeightFile, kind: _Half) -> None:
        self._graph = model.graph
        self._opset = model.opset_imports[""]
        self._file = file
        self._kind = kind
        self._leans: dict[ir.Value, ir.DataType] = {}
        self._casts: dict[tuple[ir.Value, ir.DataType], ir.Value] = {}
        self._half = self._full = 0
        self._exact = _exact_products(model.graph)

    def run(self) -> HalfReport:
        for value in self._graph.inputs:
            if value.dtype == _FULL:
                self._leans[value] = self._kind.dtype
                if str(value.name).startswith(_CACHE):
                    value.type = ir.TensorType(self._kind.dtype)
        for node in list(self._graph):
            _fill_dtypes(node)
            self._place(node)
        for position, value in enumerate(self._graph.outputs):
            wanted = self._kind.dtype if str(value.name).startswith(_CACHE) else _FULL
            if value.dtype in (_FULL, self._kind.dtype) and value.dtype != wanted:
                self._graph.outputs[position] = self._renamed(value, wanted)
        for name in [name for name, value in self._graph.initializers.items() if not value.uses()]:
            if not self._graph.initializers[name].is_graph_output():
                del self._graph.initializers[name]
        return HalfReport(self._half, self._full, len(self._casts))

    def _place(self, node: ir.Node) -> None:
        """Decide where a node runs, bring its inputs there, and note what its outputs are."""
        if node.op_type in _ANY and node.domain == "":
            return
        floats = [
            value for value in node.inputs if value is not None and value.dtype in (_FULL, self._kind.dtype)
        ]
        made = [value for value in node.outputs if value.dtype == _FULL]
        if not floats and not made:
            return
        dtype = self._dtype(node, floats)
        self._read_in(node, dtype)
        self._half, self._full = self._half + (dtype != _FULL), self._full + (dtype == _FULL)
        for value in made:
            if node.op_type in _NORMS and value.index() in _STATISTICS:
                self._leans[value] = _FULL
                continue
            value.type = ir.TensorType(dtype)
            in_range = node.op_type in _IN_UNIT_RANGE and not _is_careful(node)
            self._leans[value] = self._kind.dtype if in_range else dtype

    def _dtype(self, node: ir.Node, floats: list[ir.Value]) -> ir.DataType:
        half = self._kind.dtype
        if _is_careful(node) or node in self._exact or _subgraphs(node):
            return _FULL
        if not _is_defined(node, self._opset, self._kind):
            return _FULL
        if node.op_type in _PRODUCTS:
            if node.op_type == "Attention" and node.domain == "":
                node.attributes["softmax_precision"] = ir.AttrInt64("softmax_precision", _FULL)
            return half
        if node.op_type not in _FOLLOW:
            return _FULL
        moving = [value for value in floats if value.const_value is None]
        if not moving or any(self._leans.get(value, _FULL) == _FULL for value in moving):
            return _FULL
        constants = [value.const_value for value in floats if value.const_value is not None]
        return half if all(_is_representable(tensor, self._kind) for tensor in constants) else _FULL

    def _read_in(self, node: ir.Node, dtype: ir.DataType) -> None:
        if node in self._exact:
            self._store_half(node)
        for position, value in enumerate(node.inputs):
            if value is not None and value.dtype in (_FULL, self._kind.dtype) and value.dtype != dtype:
                node.replace_input_with(position, self._as(value, dtype))
        for graph in _subgraphs(node):
            for inner in graph.all_nodes():
                for position, value in enumerate(inner.inputs):
                    if value is not None and value.dtype == self._kind.dtype and _is_of(value, self._graph):
                        inner.replace_input_with(position, self._as(value, _FULL))

    def _store_half(self, node: ir.Node) -> None:
        """Weights of a float32 product take 16 bits in the file, as all others do."""
        for position, value in enumerate(node.inputs):
            if value is not None and value.is_initializer() and value.dtype == _FULL:
                stored = self._half_weight(value)
                node.replace_input_with(position, self._as(stored, _FULL))

    def _as(self, value: ir.Value, dtype: ir.DataType) -> ir.Value:
        if (value, dtype) not in self._casts:
            if value.is_initializer() and value.const_value is not None and dtype != _FULL:
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
        value.name = f"{name}_{'full' if value.dtype == _FULL else 'half'}"
        self._casts.pop((value, dtype), None)
        self._casts[value, dtype] = out = self._cast(value, dtype)
        out.name = name
        return out

    def _half_weight(self, value: ir.Value) -> ir.Value:
        tensor = value.const_value
        assert tensor is not None
        kind = self._kind
        name = f"{value.name}_{kind.suffix}"
        if name in self._graph.initializers:
            return self._graph.initializers[name]
        if tensor.nbytes <= INLINE_BYTES:
            small = ir.tensor(_rounded(tensor.numpy(), name, kind), dtype=kind.dtype, name=name)
            return initializer_of(self._graph, small, name)
        key = (source_of(tensor), kind.suffix)
        if key not in self._file.known:
            shape = tuple(int(dim) for dim in tensor.shape.numpy())
            self._file.known[key] = self._file.write(
                name, kind.dtype, shape, _half_chunks(numbers_of(tensor), name, kind)
            )
            self._file.keep(tensor)
        return initializer_of(self._graph, self._file.known[key], name)


def _half_chunks(array: npt.NDArray[Any], name: str, kind: _Half) -> Iterator[npt.NDArray[Any]]:
    rows = array.reshape(array.shape[0] if array.ndim > 1 else 1, -1)
    for part in row_chunks(len(rows), rows.shape[1] * 4):
        yield _rounded(rows[part].astype(np.float32, copy=False), name, kind)


def _rounded(array: npt.NDArray[Any], name: str, kind: _Half) -> npt.NDArray[Any]:
    largest, weight = float(np.abs(array).max(initial=0.0)), name.removesuffix(f"_{kind.suffix}")
    if largest > kind.largest:
        raise OptionError(
            f"weight {weight} has the value {largest:g}, but {kind.word} ends at {kind.largest:g}: give "
            "this part fp32, int8 or int4 with --precision"
        )
    return array.astype(kind.numpy)


def _is_representable(tensor: ir.TensorProtocol, kind: _Half) -> bool:
    """Whether 16 bits keep a small constant: float16 has neither -3e38 of a mask nor 1e-6 of a norm."""
    if tensor.nbytes > INLINE_BYTES:
        return True
    size = np.abs(tensor.numpy())
    return bool((((size <= kind.largest) & (size >= kind.smallest)) | (size == 0)).all())


def _is_defined(node: ir.Node, opset: int, kind: _Half) -> bool:
    """Whether ONNX has an operator of the default domain for this type; others are taken to."""
    if kind.word == "float16" or node.domain != "":
        return True
    return _has_type(node.op_type, opset, f"tensor({kind.word})")


@lru_cache
def _has_type(operator: str, opset: int, word: str) -> bool:
    try:
        schema = onnx.defs.get_schema(operator, opset, "")
    except onnx.defs.SchemaError:
        return False
    floats = [each for each in schema.type_constraints if "tensor(float)" in each.allowed_type_strs]
    return all(word in each.allowed_type_strs for each in floats)


def _is_careful(node: ir.Node) -> bool:
    return node.metadata_props.get(STAMP) in _CAREFUL_PASSES


def _exact_products(graph: ir.Graph) -> set[ir.Node]:
    """Products whose sums are read as numbers, not as features: Q with K below the softmax that scores are
    made of, and the LM head. Weights in few bits are for products in 16 bits, which a head of such stays."""
    scored = [
        value.producer()
        for node in graph
        if _is_careful(node)
        for value in node.inputs
        if value is not None and value.producer() is not None
    ]
    softmaxes = _behind([node for node in scored if node is not None], ("Softmax",))
    heads = [value.producer() for value in graph.outputs if value.name == contract.LOGITS]
    products = _behind([up for node in softmaxes for up in _producers(node)], _MATRIX_PRODUCTS)
    products |= _behind([node for node in heads if node is not None], _MATRIX_PRODUCTS)
    return {node for node in products if not any(_is_packed(each) for each in _producers(node))}


def _behind(nodes: list[ir.Node], kinds: tuple[str, ...]) -> set[ir.Node]:
    """The first nodes of these kinds upstream, past nodes that compute element by element or move."""
    found, seen, waiting = set(), set(), list(nodes)
    while waiting:
        node = waiting.pop()
        if node in seen:
            continue
        seen.add(node)
        if node.op_type in kinds:
            found.add(node)
        elif node.op_type in (*_FOLLOW, "Softmax", "Cast"):
            waiting.extend(_producers(node))
    return found


def _producers(node: ir.Node) -> list[ir.Node]:
    made = (value.producer() for value in node.inputs if value is not None)
    return [producer for producer in made if producer is not None]


def _is_packed(node: ir.Node) -> bool:
    return node.op_type.endswith("DequantizeLinear")


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
        value.type = ir.TensorType(_FULL if dtype in _HALVES else dtype)
