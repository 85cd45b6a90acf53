"""Whether a node is what ONNX says of its operator: inputs, outputs, attributes and their types."""

from __future__ import annotations

import onnx
import onnx_ir as ir

from fopru_graph.lint.targets import ORT_OPS

__all__ = ["schema_violation"]


def schema_violation(node: ir.Node, opset: int) -> str:
    """Why a node of the default domain is invalid at an opset, "" if it is not.

    Shapes and types of tensors are not looked at.
    """
    if node.op_type.startswith("TRT_") or node.op_type in ORT_OPS:
        return ""  # TensorRT's parser, or ONNX Runtime, has schemas of its own for these
    try:
        schema = onnx.defs.get_schema(node.op_type, max(opset, 1), "")
    except onnx.defs.SchemaError:
        return f"ONNX has no operator {node.op_type} at opset {opset}"
    given = len(node.inputs)
    if not schema.min_input <= given <= schema.max_input:
        return f"it has {given} inputs, ONNX says {_range(schema.min_input, schema.max_input)}"
    required = [at for at, formal in enumerate(schema.inputs) if _is_single(formal)]
    missing = [at for at in required if at >= given or node.inputs[at] is None]
    if missing:
        return f"its input '{schema.inputs[missing[0]].name}' is missing"
    made = len(node.outputs)
    if not schema.min_output <= made <= schema.max_output:
        return f"it has {made} outputs, ONNX says {_range(schema.min_output, schema.max_output)}"
    for name, attribute in node.attributes.items():
        if name not in schema.attributes:
            return f"ONNX knows no attribute '{name}' of it"
        wanted = str(schema.attributes[name].type).rsplit(".", 1)[-1]
        if not attribute.is_ref() and attribute.type.name != wanted:
            return f"its attribute '{name}' is {attribute.type.name}, ONNX says {wanted}"
    for name, formal in schema.attributes.items():
        if formal.required and name not in node.attributes:
            return f"its attribute '{name}' is missing"
    return ""


def _is_single(formal: onnx.defs.OpSchema.FormalParameter) -> bool:
    return formal.option == onnx.defs.OpSchema.FormalParameterOption.Single


def _range(least: int, most: int) -> str:
    return str(least) if least == most else f"{least} to {most}"
