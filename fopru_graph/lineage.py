"""Where rows come from: follows the tokens of a tensor upwards, through any layout.

Unlike `hoisting.py`, which must place a gather and so needs one row per image at a known place, this only
asks which row of one tensor belongs to which row of another. Tokens may lie on any axis, and operands may be
shared by images.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

import onnx_ir as ir

from fopru_graph.attention import ONNX_DOMAINS
from fopru_graph.shapes import Dim, attribute_int, constant_ints, dims, same
from fopru_graph.tokenwise import Demand, InputDemands, Refusal, demands_of, slice_axes

__all__ = ["Lineage", "Stop", "follow", "row_offset", "same_rows"]


_PRODUCT = re.compile(r"\w+(\*\w+)*")


@dataclass(frozen=True)
class Stop:
    """A node past which rows cannot be followed, why, and the rows wanted of its output."""

    node: ir.Node
    reason: str
    demand: Demand

    def __str__(self) -> str:
        return f"{self.node.op_type} '{self.node.name}': {self.reason}"


@dataclass(frozen=True)
class _Images:
    """How many images there are, and on which axis of the tensor at hand; None: nobody knows any more."""

    size: Dim
    axis: int | None

    def above(self, node: ir.Node, index: int) -> _Images:
        """The same for an input of the node that made the tensor."""
        if self.axis is None:
            return self
        source, out = dims(node.inputs[index]), dims(node.outputs[0])
        rule = _RULES.get(node.op_type)
        if source is None or out is None:
            return _Images(self.size, None)
        if rule is None or node.op_type in ("Attention", "MatMul"):  # leading axes stay where they are
            return _Images(self.size, self.axis if len(source) == len(out) else None)
        found = dict(rule(node, Demand(self.axis, 0)) or ())
        return _Images(self.size, found[index].axis if index in found else None)

    def picked_by(self, node: ir.Node) -> bool:
        """Whether a node takes a part of the images: then rows may be of another one."""
        sizes = dims(node.inputs[0])
        if node.op_type in ("Gather", "Split"):
            axes = [attribute_int(node, "axis", 0) % len(sizes)] if sizes else None
        elif node.op_type == "Slice":
            axes = slice_axes(node) if sizes else None
        else:
            return False
        if sizes is None or axes is None:
            return True
        if self.axis is None:
            return any(same(sizes[axis], self.size) for axis in axes)
        above = self.above(node, 0).axis
        return above is None or above in axes


@dataclass(frozen=True)
class Lineage:
    """Every tensor that rows were followed to, with the demands on it, and the nodes where that ended."""

    reached: dict[ir.Value, frozenset[Demand]]
    stops: tuple[Stop, ...]


def follow(value: ir.Value, axis: int) -> Lineage:
    """Follow the rows of `value` along `axis` upwards, as far as they go; axis 0 counts images else."""
    size = (dims(value) or (None,))[0]
    reached: dict[ir.Value, set[Demand]] = {}
    stops: list[Stop] = []
    pending: list[tuple[ir.Value, Demand, _Images]] = [
        (value, Demand(axis, 0), _Images(size, 0 if axis else None))
    ]
    while pending:
        value, demand, images = pending.pop()
        if demand in reached.setdefault(value, set()):
            continue
        reached[value].add(demand)
        node = value.producer()
        if node is None:
            continue
        answer = _sources(node, demand, images)
        if isinstance(answer, Refusal):
            stops.append(Stop(node, answer.reason, demand))
            continue
        for index, wanted in answer:
            source = node.inputs[index]
            if source is not None:
                pending.append((source, wanted, images.above(node, index)))
    return Lineage({value: frozenset(demands) for value, demands in reached.items()}, tuple(stops))


def row_offset(features: Lineage, anchor: ir.Value, axis: int) -> int | None:
    """o: row i of the features is row i + o of `anchor` along `axis`; None if the graph does not say so.

    The features are made from the anchor, or both are made from a tensor x: if row i of the features is its
    row i + a, and row j of the anchor its row j + b, then o = a - b.
    """
    direct = {demand.offset for demand in features.reached.get(anchor, ()) if demand.axis == axis}
    offsets = direct or _meet(features, follow(anchor, axis))
    offset = offsets.pop() if len(offsets) == 1 else -1
    return offset if offset >= 0 else None


def _meet(one: Lineage, other: Lineage) -> set[int]:
    """Offsets between two sets of rows: row i of the one is row i + offset of the other."""
    return {
        ours.offset - theirs.offset
        for value, demands in other.reached.items()
        for theirs in demands
        for ours in one.reached.get(value, ())
        if ours.axis == theirs.axis
    }


def same_rows(one: tuple[ir.Value, int], other: tuple[ir.Value, int], depth: int = 3) -> bool:
    """Whether two tensors are made from the same rows in the same order; each with the axis of its rows.

    Both may be joined from parts along that axis (class token and patches with rotary positions): then the
    parts are compared one by one, `depth` such joins deep.
    """
    lineages = follow(*one), follow(*other)
    offsets = _meet(*lineages)
    if offsets or not depth:
        return offsets == {0}
    joins = [[stop for stop in lineage.stops if _is_join(stop)] for lineage in lineages]
    if [len(found) for found in joins] != [1, 1]:
        return False
    (left,), (right,) = joins
    parts = list(zip(left.node.inputs, right.node.inputs, strict=False))
    return (
        len(left.node.inputs) == len(right.node.inputs)
        and left.demand.offset == right.demand.offset
        and all(_same_part(pair, (left.demand.axis, right.demand.axis), depth) for pair in parts)
    )


def _same_part(parts: tuple[ir.Value | None, ir.Value | None], axes: tuple[int, int], depth: int) -> bool:
    one, other = parts
    if one is None or other is None:
        return False
    sizes = dims(one), dims(other)
    if sizes[0] is None or sizes[1] is None or not same(sizes[0][axes[0]], sizes[1][axes[1]]):
        return False
    return same_rows((one, axes[0]), (other, axes[1]), depth - 1)


def _is_join(stop: Stop) -> bool:
    rank = len(dims(stop.node.outputs[0]) or ())
    along = rank and attribute_int(stop.node, "axis", 0) % rank
    return stop.node.op_type == "Concat" and along == stop.demand.axis


def _sources(node: ir.Node, demand: Demand, images: _Images) -> InputDemands | Refusal:
    answer = demands_of(node, demand)
    if not isinstance(answer, Refusal) or node.domain not in ONNX_DOMAINS or not node.inputs:
        return answer
    if images.picked_by(node):
        return Refusal("it picks images, or may do so")
    rule = _RULES.get(node.op_type)
    if rule is None or any(dims(value) is None for value in (*node.inputs[:1], node.outputs[0])):
        return answer
    return rule(node, demand) or answer


_Rule = Callable[[ir.Node, Demand], InputDemands | None]


def _slice(node: ir.Node, demand: Demand) -> InputDemands | None:
    axes = slice_axes(node)
    return None if axes is None or demand.axis in axes else ((0, demand),)


def _broadcast(node: ir.Node, demand: Demand) -> InputDemands | None:
    """Elementwise: operands that have as many rows, wherever they are shared."""
    out = dims(node.outputs[0]) or ()
    wanted: list[tuple[int, Demand]] = []
    for index, value in enumerate(node.inputs):
        sizes = dims(value)
        axis = demand.axis - len(out) + len(sizes or ())
        if sizes is None or axis < 0 or sizes[axis] == 1:
            continue
        if not same(sizes[axis], out[demand.axis]):
            return None
        wanted.append((index, Demand(axis, demand.offset)))
    return tuple(wanted) or None


def _first(node: ir.Node, demand: Demand) -> InputDemands | None:
    """Along the normalised axes rows would mix; those are the last ones."""
    rank = len(dims(node.outputs[0]) or ())
    first_mixed = attribute_int(node, "axis", -1) % rank
    mixes = demand.axis >= first_mixed if node.op_type != "Softmax" else demand.axis == first_mixed
    return None if mixes else ((0, demand),)


def _matmul(node: ir.Node, demand: Demand) -> InputDemands | None:
    left, right = dims(node.inputs[0]) or (), dims(node.inputs[1])
    if right is None or len(right) != 2 or demand.axis >= len(left) - 1:
        return None
    return ((0, demand),)


def _transpose(node: ir.Node, demand: Demand) -> InputDemands | None:
    rank = len(dims(node.inputs[0]) or ())
    attribute = node.attributes.get("perm")
    perm = list(attribute.as_ints()) if attribute is not None else list(reversed(range(rank)))
    return ((0, Demand(perm[demand.axis], demand.offset)),)


def _reshape(node: ir.Node, demand: Demand) -> InputDemands | None:
    """An axis survives if as many elements lie before it, or behind it, as did before."""
    source, out = dims(node.inputs[0]) or (), dims(node.outputs[0]) or ()
    for axis, size in enumerate(source):
        if not same(size, out[demand.axis]):
            continue
        if _equal_products(source[:axis], out[: demand.axis]) or _equal_products(
            source[axis + 1 :], out[demand.axis + 1 :]
        ):
            return ((0, Demand(axis, demand.offset)),)
    return None


def _equal_products(left: tuple[Dim, ...], right: tuple[Dim, ...]) -> bool:
    """Whether two products of dims are certainly equal: the numbers multiply, the names agree."""
    factors = [_factors(sizes) for sizes in (left, right)]
    return None not in factors and factors[0] == factors[1]


def _factors(sizes: tuple[Dim, ...]) -> tuple[int, list[str]] | None:
    """Number and names of a product; a name may itself be a product, as in "4*images"."""
    number, names = 1, []
    for size in sizes:
        if size is None:
            return None
        whole = isinstance(size, int) or not _PRODUCT.fullmatch(size)
        for factor in [str(size)] if whole else size.split("*"):  # type: ignore[union-attr]
            if factor.isdigit():
                number *= int(factor)
            else:
                names.append(factor)
    return number, sorted(names)


def _attention(node: ir.Node, demand: Demand) -> InputDemands | None:
    """Rows are those of the queries, whatever the mask."""
    rank = len(dims(node.outputs[0]) or ())
    return ((0, demand),) if demand.axis == rank - 2 and len(dims(node.inputs[0]) or ()) == rank else None


def _gather(node: ir.Node, demand: Demand) -> InputDemands | None:
    """Picking along another axis; the indices' axes take the place of that one."""
    source, indices = dims(node.inputs[0]) or (), dims(node.inputs[1])
    if indices is None:
        return None
    axis = attribute_int(node, "axis", 0) % len(source)
    if demand.axis < axis:
        return ((0, demand),)
    if demand.axis >= axis + len(indices):
        return ((0, Demand(demand.axis - len(indices) + 1, demand.offset)),)
    return None


def _split(node: ir.Node, demand: Demand) -> InputDemands | None:
    axis = attribute_int(node, "axis", 0) % len(dims(node.outputs[0]) or ())
    return None if axis == demand.axis else ((0, demand),)


def _squeeze(node: ir.Node, demand: Demand) -> InputDemands | None:
    source = dims(node.inputs[0]) or ()
    gone = _axes(node, len(source)) or [axis for axis, size in enumerate(source) if size == 1]
    return (
        (0, Demand([axis for axis in range(len(source)) if axis not in gone][demand.axis], demand.offset)),
    )


def _unsqueeze(node: ir.Node, demand: Demand) -> InputDemands | None:
    rank = len(dims(node.outputs[0]) or ())
    new = _axes(node, rank)
    if new is None or demand.axis in new:
        return None
    return ((0, Demand([axis for axis in range(rank) if axis not in new].index(demand.axis), demand.offset)),)


def _axes(node: ir.Node, rank: int) -> list[int] | None:
    axes = constant_ints(node.inputs[1]) if len(node.inputs) > 1 else None
    return [axis % rank for axis in axes] if axes is not None else None


_RULES: dict[str, _Rule] = {
    **dict.fromkeys(["Add", "Div", "Mul", "Sub", "Where"], _broadcast),
    **dict.fromkeys(["Cast", "Dropout", "Identity"], lambda _node, demand: ((0, demand),)),
    **dict.fromkeys(["LayerNormalization", "RMSNormalization", "Softmax"], _first),
    "Attention": _attention,
    "Gather": _gather,
    "MatMul": _matmul,
    "Reshape": _reshape,
    "Slice": _slice,
    "Split": _split,
    "Squeeze": _squeeze,
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
}
