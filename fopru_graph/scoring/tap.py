"""Probabilities that the graph computes anyway."""

from __future__ import annotations

import onnx_ir as ir

from fopru_graph.attention import AttentionCore
from fopru_graph.builder import GraphBuilder
from fopru_graph.scoring.rows import Rows
from fopru_graph.shapes import constant_scalar

__all__ = ["nan_guard", "tapped"]


def tapped(core: AttentionCore, builder: GraphBuilder, rows: Rows) -> ir.Value:
    """float32 [B, H, rows, K]: rows of the graph's own probabilities, behind its guard against NaN."""
    guard = nan_guard(core.anchor)
    source = core.anchor if guard is None else guard.outputs[0]
    return builder.cast(rows.take(source, axis=2), ir.DataType.FLOAT)


def nan_guard(probabilities: ir.Value) -> ir.Node | None:
    """`Where(IsNaN(p), constant, p)`: what sdpa makes of a query that may look at no key."""
    for use in probabilities.uses():
        node = use.node
        if node.op_type != "Where" or use.idx != 2 or constant_scalar(node.inputs[1]) is None:
            continue
        condition = node.inputs[0].producer() if node.inputs[0] is not None else None
        if condition is not None and condition.op_type == "IsNaN" and condition.inputs[0] is probabilities:
            return node
    return None
