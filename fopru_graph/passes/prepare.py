"""Pass 0, prepare: shapes that an exporter left open are filled in; what hides them is written plainly."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir
from onnx_ir.passes.common import InlinePass, ShapeInferencePass
from onnx_shape_inference import infer_symbolic_shapes

from fopru_graph.builder import GraphBuilder, Made
from fopru_graph.errors import UnsupportedGraphError
from fopru_graph.options import GRID, KEPT_INDICES, NUM_KEEP, TOKEN_SCORES
from fopru_graph.passes.base import GraphPass, Rewritten
from fopru_graph.shapes import Dim, attribute_int, constant_ints, dims
from fopru_graph.weights import without_external_weights

__all__ = ["PreparePass", "Prepared"]

_MIN_OPSET = 13  # Softmax over one axis, axes of Unsqueeze as an input
_INT64 = ir.DataType.INT64
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Prepared:
    """Counts: local functions inlined, target shapes of Expand and reads of a size rewritten."""

    functions: int
    expands: int
    sizes: int


class PreparePass(GraphPass[Prepared]):
    """Makes a graph readable for the passes after it; computes the same as before.

    Rules:
        1. Local functions are inlined.
        2. TorchScript writes `expand(-1)` as `Where(Equal(s, -1), 1, s)` over a shape s that it puts together
           from sizes and constants. Sizes are never -1, so s with its constants -1 replaced by 1 is the same,
           and the number of rows that a class token is expanded to can be read.
        3. Shapes are inferred with names for sizes that vary, so that equal sizes have equal names. Where
           that library gives up, ONNX's own inference remains.
        4. A size that is known, or that is a size of an input, is no longer read off a tensor in between:
           such a reader would need all of that tensor's rows.
    """

    name: ClassVar[str] = "prepare"

    def requires(self, model: ir.Model) -> None:
        opset = model.graph.opset_imports.get("", 0)
        if opset < _MIN_OPSET:
            raise UnsupportedGraphError(
                f"the graph has opset {opset}, but {_MIN_OPSET} or later is needed: export it anew"
            )
        taken = {value.name for value in (*model.graph.inputs, *model.graph.outputs)}
        clash = [name for name in (NUM_KEEP, KEPT_INDICES, TOKEN_SCORES, GRID) if name in taken]
        if clash:
            raise UnsupportedGraphError(
                f"the graph already has '{clash[0]}': it is pruned, start from the unpruned graph"
            )

    def call(self, model: ir.Model) -> Rewritten[Prepared]:
        functions = len(model.functions)
        if functions:
            InlinePass()(model)
        expands = _rewrite_expands(model.graph, GraphBuilder(model.graph, self.name))
        with without_external_weights(model):
            # ONNX's own inference comes second: the names it invents would stand in the way of the first.
            try:
                infer_symbolic_shapes(model, warn_on_missing=False)
            except Exception as error:  # an annotation less is a refusal later, with its own words
                _log.debug("symbolic shape inference gave up: %s", error)
            ShapeInferencePass(check_type=False, strict_mode=False)(model)
        sizes = _reroute_sizes(model.graph, GraphBuilder(model.graph, self.name))
        return Rewritten(model, Prepared(functions, expands, sizes), functions + expands + sizes)


def _rewrite_expands(graph: ir.Graph, builder: GraphBuilder) -> int:
    count = 0
    for node in list(graph):
        if node.op_type == "Expand" and node.inputs[1] is not None:
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


def _reroute_sizes(graph: ir.Graph, builder: GraphBuilder) -> int:
    origin: dict[str, tuple[ir.Value, int]] = {}
    for value in graph.inputs:
        for axis, size in enumerate(dims(value) or ()):
            if isinstance(size, str):
                origin.setdefault(size, (value, axis))
    made: dict[tuple[Dim, bool], ir.Value] = {}
    count = 0
    for node in list(graph):
        found = _one_size(node)
        if found is None:
            continue
        size, as_vector = found
        if (size, as_vector) not in made:
            if isinstance(size, int):
                made[size, as_vector] = (
                    builder.ints("size", [size]) if as_vector else builder.scalar("size", size)
                )
            elif size in origin:
                read = builder.size_1d if as_vector else builder.size
                made[size, as_vector] = read(*origin[size])
            else:
                continue
        node.outputs[0].replace_all_uses_with(made[size, as_vector])
        count += 1
    if count:
        graph.sort()
    return count


def _one_size(node: ir.Node) -> tuple[int | str, bool] | None:
    """The size that a node reads off a tensor that another node made, and whether it gives it as [1]."""
    out = node.outputs[0]
    if out.is_graph_output():
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
        found = at[0] % len(sizes) if sizes else None
        as_vector = len(dims(node.inputs[1]) or ()) == 1
    else:
        return None
    if source is None or source.producer() is None or found is None:
        return None
    size = sizes[found]
    return None if size is None else (size, as_vector)
