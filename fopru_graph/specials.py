"""Counts the rows that are not patches: a class token, registers, anything learnt that is put before them."""

from __future__ import annotations

import onnx_ir as ir

from fopru_graph.attention import upstream_nodes
from fopru_graph.lineage import Lineage, Stop
from fopru_graph.shapes import attribute_int, constant_ints, dims, same
from fopru_graph.tokenwise import Demand, Refusal, demands_of

__all__ = ["special_rows"]

_SHAPE_ONLY = frozenset({"Shape", "Size"})
_MOST = 4096  # special rows; a larger number is a size that lies
_PATCHES = frozenset({"Conv", "Flatten", "Gemm", "MatMul", "Reshape", "Transpose"})


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
        if node.op_type in _PATCHES:
            return 0  # the patch embedding: this is where rows come to be
        answer = tuple((index, Demand(axis, 0)) for index in range(len(node.inputs)))
    varying = [(node.inputs[at], wanted.axis) for at, wanted in answer if not _pixel_free(node.inputs[at])]
    if len(varying) != 1 or not _same_rows(value, axis, *varying[0]):
        return None
    return _leading(*varying[0])


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
    if axes[0] % len(dims(node.inputs[0]) or ()) != axis:
        return lead
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
        for source in node.inputs:
            if source is None or source in seen or source.is_initializer():
                continue
            if source.producer() is None:
                return False
            seen.add(source)
            pending.append(source)
    return True
