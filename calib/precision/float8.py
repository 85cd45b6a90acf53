"""A twin of graphs in E4M3 for ONNX Runtime, which fuses their products with operators that take integers
alone, and then refuses the graph.

QuantizeLinear becomes a division and a Cast, DequantizeLinear a Cast and a product, in float32: the same
numbers, as float8 rounds alike in both.
"""

from __future__ import annotations

import onnx_ir as ir

__all__ = ["emulate_float8", "is_float8"]

_FULL, _EIGHT = ir.DataType.FLOAT, ir.DataType.FLOAT8E4M3FN


def is_float8(node: ir.Node) -> bool:
    """Whether a node quantises to E4M3, or back."""
    if node.domain != "" or node.op_type not in ("QuantizeLinear", "DequantizeLinear"):
        return False
    zero = node.inputs[2] if len(node.inputs) > 2 else None
    return zero is not None and zero.dtype == _EIGHT


def emulate_float8(model: ir.Model) -> int:
    """Replace the pairs of a graph in place; scales are those of whole tensors.

    Returns:
        Nodes replaced.
    """
    nodes = [node for node in model.graph if is_float8(node)]
    for node in nodes:
        steps = _steps(node)
        made, name = node.outputs[0], str(node.outputs[0].name)
        model.graph.insert_before(node, steps)
        ir.convenience.replace_all_uses_with(made, steps[-1].outputs[0], replace_graph_outputs=True)
        model.graph.remove(node, safe=True)
        steps[-1].outputs[0].name = name
    return len(nodes)


def _steps(node: ir.Node) -> list[ir.Node]:
    value, scale, made = node.inputs[0], node.inputs[1], node.outputs[0]
    assert value is not None
    assert scale is not None
    divides = node.op_type == "QuantizeLinear"
    wide, step = _cast(value, _FULL, f"{made.name}_wide"), _cast(scale, _FULL, f"{made.name}_step")
    scaled = ir.node(
        "Div" if divides else "Mul", [wide.outputs[0], step.outputs[0]], name=f"{made.name}_scaled"
    )
    _describe(scaled, _FULL, value.shape)
    dtype = _EIGHT if divides else made.dtype or scale.dtype or _FULL
    return [wide, step, scaled, _cast(scaled.outputs[0], dtype, f"{made.name}_cast")]


def _cast(value: ir.Value, dtype: ir.DataType, name: str) -> ir.Node:
    node = ir.node("Cast", [value], {"to": dtype}, name=name)
    _describe(node, dtype, value.shape)
    return node


def _describe(node: ir.Node, dtype: ir.DataType, shape: ir.Shape | None) -> None:
    made = node.outputs[0]
    made.name, made.type, made.shape = node.name, ir.TensorType(dtype), shape
