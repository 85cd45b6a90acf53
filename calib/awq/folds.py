"""Where a decoder's weights may be scaled without changing what it computes.

Products share an input; what makes that input is divided by what the products are multiplied by. Three kinds:

- the gain of a norm, which queries, keys and values share, or gate and up: LayerNorm and RMSNorm as one
  operator, fused with the residual by ONNX Runtime, or written out; a beta is divided too;
- the product `up` in front of `down`: one side of the gate's Mul that is linear, with its bias;
- the product of values in front of the attention's output: with grouped queries one scale serves all heads of
  a group. The cache holds scaled values then.

A tensor that anything else reads is never scaled: a table tied to the LM head, a gain that two norms share, a
matrix that another graph of the bundle reads elsewhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from calib.awq.places import Readers, Tensor, place_of
from calib.awq.values import attention_values
from calib.layers import places_of
from fopru_graph.shapes import dims

__all__ = ["Fold", "Heads", "Side", "folds_of", "shared_folds"]

_FULL = ir.DataType.FLOAT
_NORMS: dict[tuple[str, str], tuple[int, ...]] = {  # inputs that are gains and betas
    ("", "LayerNormalization"): (1, 2),
    ("", "RMSNormalization"): (1,),
    ("", "SimplifiedLayerNormalization"): (1,),
    ("com.microsoft", "SimplifiedLayerNormalization"): (1,),
    ("com.microsoft", "SkipLayerNormalization"): (2, 3),
    ("com.microsoft", "SkipSimplifiedLayerNormalization"): (2,),
}


@dataclass(frozen=True)
class Heads:
    """Of attention: `keys` heads of `size` channels that queries share."""

    keys: int
    size: int


@dataclass(frozen=True)
class Side:
    """A tensor and the axis along which it is scaled."""

    tensor: Tensor
    axis: int


@dataclass(frozen=True)
class Fold:
    """One place where scales can go.

    Attributes:
        name: as `layers.3.mlp.input`, of `input` or `output` of attention or MLP.
        activation: the tensor that the products read.
        products: their weights, initializers [K, N] or [N, K], each with its axis K.
        multiplied, divided: what is scaled.
        heads: of the values, where each scale serves several channels of the activation; None: one each.
    """

    name: str
    activation: str
    products: tuple[tuple[ir.Value, int], ...]
    multiplied: frozenset[Side]
    divided: frozenset[Side]
    heads: Heads | None = None

    @property
    def channels(self) -> int:
        """Of the activation."""
        weight, axis = self.products[0]
        return _shape(weight)[axis]

    def spread(self, scale: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """A scale of the divided side for every channel of the activation."""
        if self.heads is None:
            return scale
        parts = scale.reshape(self.heads.keys, 1, self.heads.size)
        shared = self.channels // scale.size
        return np.broadcast_to(parts, (self.heads.keys, shared, self.heads.size)).reshape(-1)

    def same_as(self, other: Fold) -> bool:
        """Whether both scale the same tensors along the same axes."""
        return self.multiplied == other.multiplied and self.divided == other.divided


@dataclass(frozen=True)
class _Source:
    """What makes an activation: tensors to divide, with the nodes that may read them."""

    kind: str
    sides: tuple[tuple[ir.Value, int], ...]
    nodes: frozenset[ir.Node]
    heads: Heads | None = None


def folds_of(model: ir.Model, heads: Heads) -> tuple[tuple[Fold, ...], tuple[str, ...]]:
    """The folds of one graph in its order, and a sentence for each group of products that has none.

    Args:
        model: a decoder, sorted; weights that are cast from 16 bits must be folded (`fold_casts`).
        heads: key-value heads of its attention.
    """
    readers = Readers.of(model)
    products = [node for node in model.graph if _summed_axis(node) is not None]
    # What is outside of layers has no name that a decoder's user would know.
    names = [
        place.name if place.layer else str(_value(node, 1).name)
        for node, place in zip(products, places_of(model, products), strict=True)
    ]
    groups: dict[ir.Value, list[int]] = {}
    for number, node in enumerate(products):
        groups.setdefault(_value(node, 0), []).append(number)
    folds, notes = list[Fold](), list[str]()
    for activation, numbers in groups.items():
        nodes, name = [products[number] for number in numbers], names[numbers[0]]
        made = _source(activation, nodes, heads)
        found = made if isinstance(made, str) else _fold(name, activation, nodes, made, readers)
        if isinstance(found, Fold):
            taken = sum(fold.name.split("#")[0] == found.name for fold in folds)
            folds.append(replace(found, name=f"{found.name}#{taken + 1}") if taken else found)
        else:
            notes.append(f"{name} is not scaled: {found}")
    return tuple(folds), tuple(notes)


def shared_folds(
    folds: Sequence[Fold], others: Sequence[tuple[Readers, Sequence[Fold]]]
) -> tuple[tuple[Fold, ...], tuple[str, ...]]:
    """Those that every other graph of the bundle which reads one of their tensors has too, and a sentence for
    each of the rest."""
    kept, notes = list[Fold](), list[str]()
    for fold in folds:
        tensors = {side.tensor for side in fold.multiplied | fold.divided}
        odd = [
            readers.graph
            for readers, theirs in others
            if readers.touches(tensors) and not any(fold.same_as(other) for other in theirs)
        ]
        if odd:
            notes.append(f"{fold.name} is not scaled: the graph {odd[0]} reads its weights in another way")
        else:
            kept.append(fold)
    return tuple(kept), tuple(notes)


def _fold(
    name: str, activation: ir.Value, nodes: Sequence[ir.Node], source: _Source, readers: Readers
) -> Fold | str:
    products = tuple((_value(node, 1), _summed_axis(node) or 0) for node in nodes)
    multiplied = frozenset(Side(place_of(weight), axis) for weight, axis in products)
    divided = frozenset(Side(place_of(value), axis) for value, axis in source.sides)
    tensors = {side.tensor for side in multiplied | divided}
    # The same tensor on both sides, or along both axes, would be scaled twice.
    if len(tensors) < len({weight for weight, _ in products}) + len(source.sides):
        return "two of its weights are the same tensor"
    known = source.nodes | set(nodes)
    for value in [weight for weight, _ in products] + [value for value, _ in source.sides]:
        if readers.others(place_of(value), known):
            return f"{value.name} is read elsewhere too"
    title = f"{name}.{source.kind}"
    return Fold(title, str(activation.name), products, multiplied, divided, source.heads)


def _source(activation: ir.Value, nodes: Sequence[ir.Node], heads: Heads) -> _Source | str:
    good = all(node in nodes and place == 0 for node, place in _readers(activation))
    if activation.is_graph_output() or not good:
        return "its input is read by more than products"
    width = _shape(_value(nodes[0], 1))[_summed_axis(nodes[0]) or 0]
    source = _before_moves(activation, width)
    maker = source.producer()
    if maker is None:
        return "its input is an input of the graph"
    if (maker.domain, maker.op_type) in _NORMS:
        return _of_norm(maker, source, width)
    if maker.domain == "" and maker.op_type == "Mul":
        return _of_mul(maker, width)
    if len(nodes) == 1:
        return _of_values(nodes[0], activation, heads)
    return f"its input is made by {maker.op_type}, which has no gain"


def _before_moves(value: ir.Value, width: int) -> ir.Value:
    """What a value is some rows of, as an LM head reads the last ones, if nothing else reads it."""
    node = value.producer()
    while node is not None and node.domain == "" and node.op_type in ("Reshape", "Slice", "Identity"):
        source = node.inputs[0]
        if source is None or not all((dims(each) or (None,))[-1] == width for each in (source, value)):
            break
        if not _is_read_by(source, node):
            break
        value, node = source, source.producer()
    return value


def _of_norm(maker: ir.Node, activation: ir.Value, width: int) -> _Source | str:
    if activation is not maker.outputs[0]:
        return f"its input is not the norm that {maker.op_type} makes"
    places = [each for each in _NORMS[maker.domain, maker.op_type] if each < len(maker.inputs)]
    gains = [value for place in places if (value := maker.inputs[place]) is not None]
    if not gains or not all(_is_vector(value, width) for value in gains):
        return "the norm in front has no constant gain"
    return _Source("input", tuple((value, 0) for value in gains), frozenset({maker}))


def _of_mul(maker: ir.Node, width: int) -> _Source | str:
    for value in maker.inputs:
        if value is not None and _is_vector(value, width):
            axis = len(_shape(value)) - 1
            return _Source("input", ((value, axis),), frozenset({maker}))
    for value in maker.inputs:
        found = _linear(value, maker, width)
        if found is not None:
            return _Source("output", found[0], found[1])
    return "neither side of the product in front is linear or a constant gain"


def _linear(
    value: ir.Value | None, user: ir.Node, width: int
) -> tuple[tuple[tuple[ir.Value, int], ...], frozenset[ir.Node]] | None:
    """Weight and bias of the product that makes a value that `user` alone reads, along its output axis."""
    if value is None or not _is_read_by(value, user):
        return None
    node, biases = value.producer(), list[tuple[ir.Value, int]]()
    nodes = set[ir.Node]()
    if node is not None and node.domain == "" and node.op_type == "Add":
        bias = next((each for each in node.inputs if each is not None and _is_vector(each, width)), None)
        inner = next((each for each in node.inputs if each is not bias), None)
        if bias is None or inner is None or not _is_read_by(inner, node):
            return None
        biases.append((bias, len(_shape(bias)) - 1))
        nodes.add(node)
        node = inner.producer()
    if node is None or (summed := _summed_axis(node)) is None:
        return None
    if node.op_type == "Gemm" and len(node.inputs) > 2 and (offset := node.inputs[2]) is not None:
        if not _is_vector(offset, width):
            return None
        biases.append((offset, len(_shape(offset)) - 1))
    weight = _value(node, 1)
    if _shape(weight)[1 - summed] != width:
        return None
    return ((weight, 1 - summed), *biases), frozenset({*nodes, node})


def _of_values(product: ir.Node, activation: ir.Value, heads: Heads) -> _Source | str:
    """The product of values of the attention whose result `product` reads."""
    axis = _summed_axis(product) or 0
    queries, width = _shape(_value(product, 1))[axis], heads.keys * heads.size
    if queries % width:
        return f"its input has {queries} channels, no multiple of the {width} of values"
    value = attention_values(activation, lambda each: _linear_of(each, width) is not None)
    found = None if value is None else _linear_of(value, width)
    if found is None:
        return "what makes its input is neither a norm, a gate nor an attention whose values are a product"
    return _Source("output", found[0], found[1], None if queries == width else heads)


def _linear_of(
    value: ir.Value, width: int
) -> tuple[tuple[tuple[ir.Value, int], ...], frozenset[ir.Node]] | None:
    """As `_linear`, for a value with any one reader."""
    users = list({node for node, _ in _readers(value)})
    return _linear(value, users[0], width) if len(users) == 1 else None


def _summed_axis(node: ir.Node) -> int | None:
    """Axis K of the constant float32 matrix that a MatMul or Gemm multiplies by, None for other nodes."""
    if node.domain != "" or node.op_type not in ("MatMul", "Gemm"):
        return None
    weight = node.inputs[1]
    if weight is None or not weight.is_initializer() or weight.const_value is None or weight.dtype != _FULL:
        return None
    if len(weight.const_value.shape) != 2 or node.inputs[0] is None:
        return None
    if node.op_type == "MatMul":
        return 0
    if node.attributes.get_int("transA", 0) == 1:
        return None
    return 1 if node.attributes.get_int("transB", 0) == 1 else 0


def _is_read_by(value: ir.Value, user: ir.Node) -> bool:
    """Whether a node reads a value at one place, and nothing else does: the square of `up` is not linear."""
    return not value.is_graph_output() and [node for node, _ in _readers(value)] == [user]


def _readers(value: ir.Value) -> list[tuple[ir.Node, int]]:
    """Who reads the numbers of a value, and at which place."""
    return [(use.node, use.idx) for use in value.uses() if use.node.op_type != "Shape"]


def _is_vector(value: ir.Value, width: int) -> bool:
    """A float32 constant with `width` numbers along its last axis and one along each other."""
    if not value.is_initializer() or value.const_value is None or value.dtype != _FULL:
        return False
    shape = _shape(value)
    return bool(shape) and shape[-1] == width and all(size == 1 for size in shape[:-1])


def _value(node: ir.Node, position: int) -> ir.Value:
    value = node.inputs[position]
    assert value is not None
    return value


def _shape(value: ir.Value) -> tuple[int, ...]:
    assert value.const_value is not None
    return tuple(int(size) for size in value.const_value.shape.numpy())
