"""Counts the rows that are not patches: a class token, registers, anything learnt that is put before them."""

from __future__ import annotations

import onnx_ir as ir

from fopru_graph.attention import reads, upstream_nodes
from fopru_graph.lineage import Lineage, Stop
from fopru_graph.shapes import attribute_int, constant_ints, dims, same
from fopru_graph.tokenwise import Demand, Refusal, demands_of

__all__ = ["special_rows", "trailing_rows"]

_SHAPE_ONLY = frozenset({"Shape", "Size"})
_MOST = 4096  # special rows; a larger number is a size that lies
_PATCHES = frozenset({"Conv", "Flatten", "Gemm", "MatMul", "Reshape", "Transpose"})
_JOINS = frozenset({"Concat", "Pad", "Scatter", "ScatterElements", "ScatterND"})
_ELEMENTWISE = frozenset({"Add", "Cast", "Div", "Identity", "Mul", "Sub", "Where"})


def special_rows(lineage: Lineage, dropped: int) -> int | None:
    """Leading rows of the attention that no pixel reaches, or None if the graph does not tell.

    Rows that are a graph input themselves hide nothing: those that are dropped are taken as special.

    Args:
        lineage: of the rows of the features.
        dropped: o, leading attention rows that never become features.
    """
    if not lineage.stops:
        return dropped
    joins = _first([stop for stop in lineage.stops if not _pixel_free(stop.node.outputs[0])])
    counts = {_leading(stop.node.outputs[0], stop.demand.axis) for stop in joins}
    # Rows of the join are rows of the attention only if as many are dropped on both ways.
    if len(counts) != 1 or {stop.demand.offset for stop in joins} != {dropped}:
        return None
    count = counts.pop()
    return count if count is None or count <= _MOST else None


def trailing_rows(lineage: Lineage) -> int:
    """Rows behind the patches that no pixel reaches, as far as a join shows them."""
    total = 0
    for stop in _first([stop for stop in lineage.stops if not _pixel_free(stop.node.outputs[0])]):
        if stop.node.op_type != "Concat":
            continue
        for value in reversed(stop.node.inputs):
            rows = (dims(value) or (None,) * (stop.demand.axis + 1))[stop.demand.axis]
            if not _pixel_free(value) or not isinstance(rows, int):
                break
            total += rows
    return total


def _first(stops: list[Stop]) -> list[Stop]:
    """Stops that depend on no other: rows came to be there, and others are branches that join them later."""
    nodes = {stop.node for stop in stops}
    return [stop for stop in stops if not nodes & (upstream_nodes(stop.node.outputs[0]) - {stop.node})]


def _leading(value: ir.Value | None, axis: int) -> int | None:
    """Leading rows along `axis` that depend on no pixel; None if their number cannot be told."""
    sizes = dims(value)
    if value is None or sizes is None:
        return None
    if _pixel_free(value):
        rows = sizes[axis]
        return rows if isinstance(rows, int) else None
    node = value.producer()
    if node is None:
        return 0
    if node.op_type == "Concat" and attribute_int(node, "axis", 0) % len(sizes) == axis:
        return _leading_of_join(node, axis)
    if node.op_type == "Slice":
        return _leading_of_slice(node, axis)
    answer = demands_of(node, Demand(axis, 0))
    if isinstance(answer, Refusal):
        if (
            node.op_type in _PATCHES
        ):  # the patch embedding: this is where rows come to be, if nothing joined before
            return None if any(map(_joins_learnt_rows, upstream_nodes(value))) else 0
        if node.op_type not in _ELEMENTWISE:
            return None
        answer = tuple((index, Demand(axis, 0)) for index in range(len(node.inputs)))
    varying = [(node.inputs[at], wanted.axis) for at, wanted in answer if not _pixel_free(node.inputs[at])]
    if len(varying) != 1 or not _same_rows(value, axis, *varying[0]):
        return None
    return _leading(*varying[0])


def _joins_learnt_rows(node: ir.Node) -> bool:
    """Whether a node puts something that no pixel reaches beside something that pixels do."""
    free = [_pixel_free(value) for value in node.inputs if value is not None]
    floats = any(value is not None and value.dtype == node.outputs[0].dtype for value in node.inputs[:1])
    return node.op_type in _JOINS and floats and any(free[: len(node.inputs)]) and not all(free)


def _same_rows(value: ir.Value, axis: int, source: ir.Value | None, source_axis: int) -> bool:
    """Whether rows of the value are rows of the source, one by one.

    An operand with a named number of rows may be one row for all. Its leading rows are those of the value all
    the same: none stay none, and one that joins learnt rows and patches has more than one.
    """
    sizes, of_source = dims(value) or (), dims(source) or ()
    if len(of_source) != len(sizes):
        return False
    return same(of_source[source_axis], sizes[axis]) or isinstance(of_source[source_axis], str)


def _leading_of_join(node: ir.Node, axis: int) -> int | None:
    total = 0
    for value in node.inputs:
        lead = _leading(value, axis)
        if lead is None:
            return None
        total += lead
        if value is None or (dims(value) or ())[axis] != lead:
            break
    return total


def _leading_of_slice(node: ir.Node, axis: int) -> int | None:
    """Of a Slice along one axis with constant bounds >= 0; None for any other."""
    lead = _leading(node.inputs[0], axis)
    starts, ends = constant_ints(node.inputs[1]), constant_ints(node.inputs[2])
    axes = constant_ints(node.inputs[3]) if len(node.inputs) > 3 else None
    if lead is None or starts is None or ends is None or axes is None or len(axes) != 1:
        return None
    steps = constant_ints(node.inputs[4]) if len(node.inputs) > 4 else [1]
    if axes[0] % len(dims(node.inputs[0]) or ()) != axis:
        return lead
    if steps != [1]:
        return None
    if starts[0] < 0 or ends[0] < 0:
        return None
    return max(0, min(lead, ends[0]) - starts[0])


def _pixel_free(value: ir.Value | None) -> bool:
    """Whether no graph input reaches the value but by its shape."""
    if value is None or value.is_initializer():
        return True
    if value.producer() is None:
        return False
    pending, seen = [value], {value}
    while pending:
        node = pending.pop().producer()
        if node is None or node.op_type in _SHAPE_ONLY:
            continue
        for source in reads(node):
            if source in seen or source.is_initializer():
                continue
            if source.producer() is None:
                return False
            seen.add(source)
            pending.append(source)
    return True
