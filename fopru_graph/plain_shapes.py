"""Writes shape arithmetic plainly: what an exporter computes in roundabout ways, said so that it can be read.

Each function changes a graph without changing any result, and returns how many nodes it dealt with.
"""

from __future__ import annotations

import re

import numpy as np
import onnx
import onnx_ir as ir
from onnx.reference import ReferenceEvaluator

from fopru_graph.builder import GraphBuilder, Made
from fopru_graph.shapes import Dim, attribute_int, constant_ints, dims

__all__ = ["fold_integers", "reroute_sizes", "rewrite_expands"]

_INT64 = ir.DataType.INT64
_NAMES = re.compile(r"[^\W\d]\w*")  # in an expression of sizes
_INTEGER_OPS = frozenset(
    {
        "Add",
        "Cast",
        "Concat",
        "Div",
        "Gather",
        "Mod",
        "Mul",
        "Reshape",
        "Slice",
        "Squeeze",
        "Sub",
        "Unsqueeze",
    }
)


def fold_integers(graph: ir.Graph, builder: GraphBuilder) -> int:
    """Replace int64 arithmetic on small constants by its result, computed by ONNX's reference evaluator."""
    count = 0
    for node in list(graph):
        out = node.outputs[0]
        if node.op_type not in _INTEGER_OPS or node.domain or out.is_graph_output() or not node.inputs:
            continue
        if any(value is not None and constant_ints(value) is None for value in node.inputs):
            continue
        try:
            result = _evaluate(node, builder.opset)
        except Exception:  # arithmetic that is wrong in itself stays: the runtime says why
            continue
        if result.dtype != np.int64:
            continue
        out.replace_all_uses_with(builder.constant("folded", result))
        graph.remove(node, safe=True)
        count += 1
    return count


def _evaluate(node: ir.Node, opset: int) -> np.ndarray:
    arrays = {
        str(value.name): np.asarray(ir.convenience.get_const_tensor(value).numpy())  # type: ignore[union-attr]
        for value in node.inputs
        if value is not None
    }
    proto = ir.to_proto(node)
    inputs = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.INT64, None) for name in arrays]
    output = onnx.helper.make_tensor_value_info(proto.output[0], onnx.TensorProto.INT64, None)
    graph = onnx.helper.make_graph([proto], "one_node", inputs, [output])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", opset)])
    results = ReferenceEvaluator(model).run(None, arrays)
    return np.asarray(next(iter(results)))


def rewrite_expands(graph: ir.Graph, builder: GraphBuilder) -> int:
    """TorchScript writes `expand(-1)` as `Where(Equal(s, -1), 1, s)` over a shape s of sizes and constants.

    Sizes are never -1, so s with 1 for its constants -1 is the same.
    """
    count = 0
    for node in list(graph):
        if node.op_type == "Expand" and node.inputs[1] is not None and node.outputs[0].uses():
            plain = _without_minus_one(node.inputs[1], builder)
            if plain is not None:
                node.replace_input_with(1, plain)
                count += 1
    if count:
        graph.sort()
    return count


def _without_minus_one(target: ir.Value, builder: GraphBuilder) -> ir.Value | None:
    """`s` with 1 for -1, if `target` is Where(Equal(s, -1), 1, s) over a shape of sizes and constants."""
    where = target.producer()
    if where is None or where.op_type != "Where":
        return None
    equal = where.inputs[0].producer() if where.inputs[0] is not None else None
    shape = where.inputs[2]
    if equal is None or equal.op_type != "Equal" or shape is None or equal.inputs[0] is not shape:
        return None
    if _filled_with(equal.inputs[1]) != -1 or _filled_with(where.inputs[1]) != 1:
        return None
    numbers = constant_ints(shape)
    if numbers is not None:
        return builder.ints("expand_shape", [1 if at == -1 else at for at in numbers])
    join = shape.producer()
    if join is not None and join.op_type == "Reshape" and constant_ints(join.inputs[1]) == [-1]:
        join = join.inputs[0].producer() if join.inputs[0] is not None else None
    if join is None or join.op_type != "Concat":
        return None
    parts: list[ir.Value] = []
    for part in join.inputs:
        numbers = constant_ints(part)
        if part is None or (numbers is None and not _is_size(part)):
            return None
        parts.append(
            part if numbers is None else builder.ints("size", [1 if at == -1 else at for at in numbers])
        )
    return builder.op("Concat", parts, Made("expand_shape", _INT64, dims(shape) or (None,)), {"axis": 0})


def _filled_with(value: ir.Value | None) -> int | None:
    """The number that every element of a tensor is, by construction."""
    numbers = constant_ints(value)
    if numbers is not None:
        return numbers[0] if len(set(numbers)) == 1 else None
    node = value.producer() if value is not None else None
    if node is None:
        return None
    if node.op_type == "ConstantOfShape":
        attribute = node.attributes.get("value")
        return int(attribute.as_tensor().numpy().ravel()[0]) if attribute is not None else 0
    if node.op_type == "Mul":
        factors = [_filled_with(source) for source in node.inputs]
        return factors[0] * factors[1] if factors[0] is not None and factors[1] is not None else None
    return None


def _is_size(value: ir.Value) -> bool:
    """Whether a value is read off a Shape: then it is >= 0."""
    node = value.producer()
    while node is not None and node.op_type in (
        "Unsqueeze",
        "Squeeze",
        "Gather",
        "Slice",
        "Cast",
        "Identity",
    ):
        source = node.inputs[0]
        node = source.producer() if source is not None else None
    return node is not None and node.op_type == "Shape"


def reroute_sizes(graph: ir.Graph, builder: GraphBuilder) -> int:
    """Read a size that is known off a constant, and any other off the first tensor that has it.

    A reader of a tensor needs all of that tensor's rows; the first one is whole in any case.
    """
    origin: dict[str, tuple[ir.Value, int]] = {}
    for value in (*graph.inputs, *(value for node in graph for value in node.outputs)):
        for axis, size in enumerate(dims(value) or ()):
            if isinstance(size, str):
                origin.setdefault(size, (value, axis))
    # One name for height and width is a promise that not everybody keeps.
    doubtful = {
        size for value in graph.inputs for size in dims(value) or () if (dims(value) or ()).count(size) > 1
    }
    made: dict[tuple[Dim, bool], ir.Value] = {}
    count = 0
    for node in list(graph):
        found = _one_size(node)
        if found is None:
            continue
        source, size, as_vector = found
        if isinstance(size, str) and (doubtful & set(_NAMES.findall(size)) or origin[size][0] is source):
            continue
        if (size, as_vector) not in made:
            if isinstance(size, int):
                made[size, as_vector] = (
                    builder.ints("size", [size]) if as_vector else builder.scalar("size", size)
                )
            else:
                read = builder.size_1d if as_vector else builder.size
                made[size, as_vector] = read(*origin[size])
        node.outputs[0].replace_all_uses_with(made[size, as_vector])
        count += 1
    if count:
        graph.sort()
    return count


def _one_size(node: ir.Node) -> tuple[ir.Value, int | str, bool] | None:
    """(tensor that another node made, the size that this node reads off it, whether it gives it as [1])."""
    out = node.outputs[0]
    if out.is_graph_output() or not out.uses():
        return None
    if node.op_type == "Shape":  # with start and end since opset 15
        source = node.inputs[0]
        sizes = dims(source) or ()
        rank = len(sizes)
        start, end = attribute_int(node, "start", 0), attribute_int(node, "end", rank)
        axes = list(range(rank))[start:end]
        found, as_vector = (axes[0] if len(axes) == 1 else None), True
    elif node.op_type == "Gather" and attribute_int(node, "axis", 0) == 0:
        shape = node.inputs[0].producer() if node.inputs[0] is not None else None
        at = constant_ints(node.inputs[1])
        if shape is None or shape.op_type != "Shape" or shape.attributes or at is None or len(at) != 1:
            return None
        source = shape.inputs[0]
        sizes = dims(source) or ()
        found = at[0] % len(sizes) if -len(sizes) <= at[0] < len(sizes) else None
        as_vector = len(dims(node.inputs[1]) or ()) == 1
    else:
        return None
    if source is None or source.producer() is None or found is None:
        return None
    size = sizes[found]
    return None if size is None else (source, size, as_vector)
