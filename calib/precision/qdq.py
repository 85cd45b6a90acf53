"""Explicit quantisation: QuantizeLinear and DequantizeLinear around products, as TensorRT reads precision.

TensorRT 11 has neither an INT8 mode nor calibrators; what runs in 8 or 4 bits is what the graph says. Three
formats, all symmetric, all read by the parsers of TensorRT 10.3 to 11:

- `int8`: weights per output channel, activations per tensor; opset 19 or later. `unsigned` activations have
  the zero point 128, not 0, which is the same numbers: on x86 ONNX Runtime multiplies uint8 by int8 alone,
  and its own way from the one to the other leaves out activations that several products read (queries, keys
  and values). TensorRT takes no zero point.
- `fp8`: E4M3, weights and activations per tensor; opset 19 or later, chips from SM89 on.
- `int4`: weights alone, a scale per block of a row. The standard operator is of opset 21 (`blocked`), which
  TensorRT 10.3 does not document; its parser has the same under the name `trt::TRT_INT4DequantizeLinear` for
  graphs of any opset (`tensorrt`; importers of 10.1, and run with TensorRT for RTX 1.7.1).

Scales of weights come from the weights; those of activations are given, by tensor. Quantised are MatMul, Gemm
and Conv with a constant weight; products of two activations, tables and whatever scores and selects tokens
stay as they are. Scales are rounded up to float16, and numbers are quantised with the rounded scale, so that
the graph may run in float32 or in float16 with the same integers.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from calib.errors import OptionError
from calib.precision.weight_file import WeightFile, initializer_of, row_chunks, source_of
from calib.precision.widened import numbers_of
from fopru_graph.builder import STAMP

__all__ = [
    "FORMATS",
    "INT4_OPSET",
    "TENSORRT_DOMAIN",
    "Dialect",
    "Product",
    "QdqFormat",
    "QdqReport",
    "add_qdq",
    "greatest_amax",
    "products_of",
    "scale_for",
]

FORMATS = ("int8", "fp8", "int4")
INT4_OPSET = 21
"""The first whose DequantizeLinear has blocks and takes 4 bits."""

TENSORRT_DOMAIN = "trt"
"""Of the operators that TensorRT's parser adds."""

Dialect: TypeAlias = Literal["blocked", "tensorrt"]

_DTYPES = {"int8": ir.DataType.INT8, "fp8": ir.DataType.FLOAT8E4M3FN, "int4": ir.DataType.INT4}
_LARGEST = {"int8": 127.0, "fp8": 448.0, "int4": 7.0}
_FULL = ir.DataType.FLOAT
_CAREFUL_PASSES = ("score", "select")
_PASS = "qdq"
_OPSET = 19  # the first with float8 and with scales of another type than float32
_LEAST_SCALE, _GREATEST_SCALE = 2.0**-24, 65504.0  # of float16


@dataclass(frozen=True)
class QdqFormat:
    """How products are quantised.

    Attributes:
        name: one of `FORMATS`.
        block: int4 only: weights of one row, along the summed axis, that share a scale.
        dialect: int4 only: `blocked` is DequantizeLinear of opset 21, `tensorrt` is TensorRT's own operator.
        unsigned: int8 only: activations are uint8, for ONNX Runtime.
    """

    name: str
    block: int = 128
    dialect: Dialect = "blocked"
    unsigned: bool = False

    def __post_init__(self) -> None:
        if self.name not in FORMATS:
            raise OptionError(f"quantisation is {self.name!r}, expected one of {', '.join(FORMATS)}")
        if self.block < 2 or self.block % 2:
            raise OptionError(f"quantisation block is {self.block}, expected an even number, as 32 or 128")
        if self.unsigned and self.name != "int8":
            raise OptionError(
                f"quantisation {self.name} has no unsigned activations: leave it out, or take int8"
            )

    @property
    def weight_only(self) -> bool:
        """Whether activations stay what they are."""
        return self.name == "int4"


@dataclass(frozen=True)
class Product:
    """A product that can be quantised, by the names of its constant weight, its activation and its node."""

    weight: str
    activation: str
    node: str


@dataclass(frozen=True)
class QdqReport:
    """What `add_qdq` did: products and activations quantised, and weights that it left, by name."""

    products: int
    activations: int
    left: tuple[str, ...]


@dataclass(frozen=True)
class _Product:
    """A product with a constant weight: axis of its output channels, and axis that is summed."""

    node: ir.Node
    weight: ir.Value
    channels: int
    summed: int


def add_qdq(
    model: ir.Model,
    form: QdqFormat,
    amax: Mapping[str, float],
    file: WeightFile,
    *,
    skip: Collection[str] = (),
) -> QdqReport:
    """Quantise the products of a float32 graph in place; `calib.precision.half` may follow.

    Args:
        model: sorted; weights may be external, each is read once.
        form: the format.
        amax: greatest magnitude of an activation by tensor name; a product whose input has none is left
            alone. Empty for `int4`.
        file: where quantised weights go.
        skip: names of weights to leave as they are.

    Raises:
        OptionError: an amax of a tensor that the graph does not have or that is not positive, activations
            given for int4, or an opset without the operators.
    """
    graph = model.graph
    products = [found for node in graph if (found := _product(node)) is not None]
    _check(model, form, amax)
    quantised: dict[ir.Value, ir.Value] = {}
    left: list[str] = []
    done = 0
    for product in products:
        source = product.node.inputs[0]
        assert source is not None
        name = str(product.weight.name)
        if name in skip or not _fits(product, form) or not (form.weight_only or source.name in amax):
            left.append(name)
            continue
        if not form.weight_only:
            if source not in quantised:
                quantised[source] = _activation(graph, source, form, amax[str(source.name)])
            product.node.replace_input_with(0, quantised[source])
        product.node.replace_input_with(1, _weight(graph, product, form, file))
        done += 1
    if done and form.weight_only and form.dialect == "tensorrt":
        model.opset_imports[TENSORRT_DOMAIN] = 1
    for name in [name for name, value in graph.initializers.items() if not value.uses()]:
        if not graph.initializers[name].is_graph_output():
            del graph.initializers[name]
    return QdqReport(done, len(quantised), tuple(dict.fromkeys(left)))


def products_of(model: ir.Model, form: QdqFormat) -> tuple[Product, ...]:
    """The products that `add_qdq` would quantise if every activation had a range, in order."""
    found = (_product(node) for node in model.graph)
    return tuple(
        Product(str(each.weight.name), str(source.name), str(each.node.name))
        for each in found
        if each is not None and (source := each.node.inputs[0]) is not None and _fits(each, form)
    )


def scale_for(amax: npt.ArrayLike, form: QdqFormat) -> npt.NDArray[np.float32]:
    """Scales that bring magnitudes up to `amax` into the range of a format, rounded up to float16; 1 for
    magnitude 0, as TensorRT takes positive scales only."""
    wanted = np.asarray(amax, np.float32) / np.float32(_LARGEST[form.name])
    half = wanted.astype(np.float16)
    below = half.astype(np.float32) < wanted
    half = np.where(below, np.nextafter(half, np.float16(np.inf)), half)
    scales = np.maximum(half.astype(np.float32), np.float32(_LEAST_SCALE))
    return np.where(wanted == 0, np.float32(1), scales).astype(np.float32)


def greatest_amax(form: QdqFormat) -> float:
    """The largest magnitude whose scale float16 holds."""
    return _GREATEST_SCALE * _LARGEST[form.name]


def _check(model: ir.Model, form: QdqFormat, amax: Mapping[str, float]) -> None:
    opset = model.opset_imports[""]
    blocked = form.weight_only and form.dialect == "blocked"
    needed = INT4_OPSET if blocked else 1 if form.weight_only else _OPSET
    if opset < needed:
        raise OptionError(
            f"{form.name} needs operators of opset {needed}, the graph has {opset}: raise its opset"
            + (", or take the dialect 'tensorrt'" if blocked else "")
        )
    if form.weight_only and amax:
        raise OptionError("int4 is about weights alone, but activations were given: leave amax empty")
    names = {str(value.name) for value in model.graph.inputs}
    names |= {str(value.name) for node in model.graph for value in node.outputs}
    for name, greatest in amax.items():
        if name not in names:
            raise OptionError(
                f"amax is given for {name!r}, which the graph does not have: calibrate this graph"
            )
        if not 0 < greatest < float("inf"):
            raise OptionError(
                f"amax of {name!r} is {greatest}, but it is a positive number: calibrate it anew"
            )
        if greatest > greatest_amax(form):
            raise OptionError(
                f"amax of {name!r} is {greatest:g}, and its scale would be more than float16 holds "
                f"({_GREATEST_SCALE:g}): leave this product out with skip"
            )


def _product(node: ir.Node) -> _Product | None:
    """A MatMul, Gemm or Conv whose right-hand side is a float32 constant of two axes or more."""
    careful = node.metadata_props.get(STAMP) in _CAREFUL_PASSES
    if node.domain != "" or node.op_type not in ("MatMul", "Gemm", "Conv") or careful:
        return None
    weight = node.inputs[1]
    if weight is None or not weight.is_initializer() or weight.const_value is None or weight.dtype != _FULL:
        return None
    rank = len(weight.const_value.shape)
    if rank < 2 or (node.op_type == "MatMul" and rank != 2):
        return None
    if node.op_type == "Gemm" and node.attributes.get_int("transA", 0) == 1:
        return None
    outputs_first = node.op_type == "Conv" or node.attributes.get_int("transB", 0) == 1
    return _Product(node, weight, *((0, 1) if outputs_first else (1, 0)))


def _fits(product: _Product, form: QdqFormat) -> bool:
    shape = _shape(product.weight)
    if form.name != "int4":
        return True
    return len(shape) == 2 and shape[product.summed] % form.block == 0 and shape[-1] % 2 == 0


def _activation(graph: ir.Graph, source: ir.Value, form: QdqFormat, greatest: float) -> ir.Value:
    scale = _constant(graph, f"{source.name}_scale", scale_for(greatest, form))
    zero = _zero_point(graph, form, ()) if not form.unsigned else _middle(graph)
    stored = ir.DataType.UINT8 if form.unsigned else _DTYPES[form.name]
    shape = source.shape
    pair = [_node("QuantizeLinear", [source, scale, zero], f"{source.name}_{form.name}", {})]
    pair.append(_node("DequantizeLinear", [pair[0].outputs[0], scale, zero], f"{source.name}_rounded", {}))
    for node, dtype in zip(pair, (stored, _FULL), strict=True):
        node.outputs[0].type, node.outputs[0].shape = ir.TensorType(dtype), shape
    producer = source.producer()
    if producer is None:
        graph.insert_before(graph[0], pair)
    else:
        graph.insert_after(producer, pair)
    return pair[1].outputs[0]


def _weight(graph: ir.Graph, product: _Product, form: QdqFormat, file: WeightFile) -> ir.Value:
    """The dequantised weight, whose integers are written the first time its bytes are met."""
    name = f"{product.weight.name}_{form.name}"
    for use in graph.initializers[name].uses() if name in graph.initializers else ():
        return use.node.outputs[0]
    stored, scales = _stored(product, form, file, name)
    axis = product.summed if form.weight_only else product.channels
    inputs = [initializer_of(graph, stored, name), _constant(graph, f"{name}_scale", scales)]
    operator, domain, attributes = "DequantizeLinear", "", {"axis": axis} if scales.ndim else {}
    if form.weight_only:
        attributes["block_size"] = form.block
        if form.dialect == "tensorrt":
            operator, domain = "TRT_INT4DequantizeLinear", TENSORRT_DOMAIN
    else:
        inputs.append(_zero_point(graph, form, scales.shape))
    node = _node(operator, inputs, f"{product.weight.name}_rounded", attributes, domain)
    node.outputs[0].type, node.outputs[0].shape = ir.TensorType(_FULL), product.weight.shape
    graph.insert_before(product.node, node)
    return node.outputs[0]


def _stored(
    product: _Product, form: QdqFormat, file: WeightFile, name: str
) -> tuple[ir.ExternalTensor, npt.NDArray[np.float32]]:
    tensor = product.weight.const_value
    assert tensor is not None
    key = (source_of(tensor), "qdq", form.name, form.block, product.summed)
    if key not in file.known:
        array = numbers_of(tensor)
        scales = scale_for(_greatest(array, product, form), form)
        shape = _shape(product.weight)
        data = file.write(name, _DTYPES[form.name], shape, _chunks(array, scales, product, form))
        file.known[key] = (data, scales)
        del array
        file.keep(tensor)
    found: tuple[ir.ExternalTensor, npt.NDArray[np.float32]] = file.known[key]
    return found


def _greatest(array: npt.NDArray[Any], product: _Product, form: QdqFormat) -> npt.NDArray[np.float32]:
    """Greatest magnitudes: of a channel (int8), of everything (fp8), of a block (int4)."""
    sizes: npt.NDArray[Any] = np.abs(array)
    if form.name == "fp8":
        return np.asarray(sizes.max(), np.float32)
    if form.name == "int8":
        axes = tuple(axis for axis in range(array.ndim) if axis != product.channels)
        return np.asarray(sizes.max(axis=axes), np.float32)
    starts = np.arange(0, array.shape[product.summed], form.block)
    return np.asarray(np.maximum.reduceat(sizes, starts, axis=product.summed), np.float32)


def _chunks(
    array: npt.NDArray[Any], scales: npt.NDArray[np.float32], product: _Product, form: QdqFormat
) -> Iterator[npt.NDArray[Any]]:
    """The quantised weight, some rows at a time, in C order."""
    if form.name == "int8":
        shape = [1] * array.ndim
        shape[product.channels] = -1
        scales = scales.reshape(shape)
    for rows in row_chunks(len(array), array[0].size * 4):
        part = array[rows].astype(np.float32, copy=False)
        divided = part / _scales_of(rows, scales, product, form)
        if form.name == "fp8":
            yield divided.astype(ml_dtypes.float8_e4m3fn)
            continue
        most = _LARGEST[form.name]
        numbers = np.clip(np.rint(divided), -most, most).astype(np.int8)
        yield numbers if form.name == "int8" else _in_pairs(numbers)


def _scales_of(
    rows: slice, scales: npt.NDArray[np.float32], product: _Product, form: QdqFormat
) -> npt.NDArray[np.float32]:
    """The scales of some rows, ready to divide by."""
    found: npt.NDArray[np.float32]
    if form.name == "int4" and product.summed == 0:
        found = scales[np.arange(rows.start, rows.stop) // form.block]
        return found
    if form.name == "int4":
        return np.repeat(scales[rows], form.block, axis=1)
    return scales[rows] if scales.ndim and scales.shape[0] > 1 and product.channels == 0 else scales


def _in_pairs(numbers: npt.NDArray[np.int8]) -> npt.NDArray[np.uint8]:
    """Two numbers of 4 bits in a byte, the first in its lower half."""
    flat = numbers.reshape(-1).view(np.uint8) & np.uint8(15)
    packed: npt.NDArray[np.uint8] = flat[0::2] | (flat[1::2] << np.uint8(4))
    return packed


def _zero_point(graph: ir.Graph, form: QdqFormat, shape: tuple[int, ...]) -> ir.Value:
    """Zeros, whose type says what is quantised to."""
    name = f"{_PASS}_zero_{form.name}" + "".join(f"_{size}" for size in shape)
    dtype = np.dtype(np.int8) if form.name == "int8" else np.dtype(ml_dtypes.float8_e4m3fn)
    return initializer_of(graph, ir.tensor(np.zeros(shape, dtype), dtype=_DTYPES[form.name], name=name), name)


def _middle(graph: ir.Graph) -> ir.Value:
    name = f"{_PASS}_zero_uint8"
    return initializer_of(graph, ir.tensor(np.array(128, np.uint8), name=name), name)


def _constant(graph: ir.Graph, name: str, array: npt.NDArray[np.float32]) -> ir.Value:
    return initializer_of(graph, ir.tensor(array, name=name), name)


def _node(
    operator: str, inputs: list[ir.Value], name: str, attributes: Mapping[str, int], domain: str = ""
) -> ir.Node:
    marks = {STAMP: _PASS}
    node = ir.node(
        operator, inputs, dict(attributes), domain=domain, name=f"{_PASS}_{name}", metadata_props=marks
    )
    node.outputs[0].name = name
    return node


def _shape(value: ir.Value) -> tuple[int, ...]:
    assert value.const_value is not None
    return tuple(int(size) for size in value.const_value.shape.numpy())
