"""Pass 0, prepare: shapes that an exporter left open are filled in; what hides them is written plainly."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import ClassVar

import onnx
import onnx_ir as ir
from onnx_ir.passes.common import CheckerPass, InlinePass, ShapeInferencePass
from onnx_shape_inference import infer_symbolic_shapes

from fopru_graph.builder import GraphBuilder
from fopru_graph.errors import UnsupportedGraphError, first_cause
from fopru_graph.options import GRID, KEPT_INDICES, NUM_KEEP, TOKEN_MASK, TOKEN_SCORES
from fopru_graph.passes.base import GraphPass, Rewritten
from fopru_graph.plain_shapes import fold_integers, reroute_sizes, rewrite_expands
from fopru_graph.shapes import INT32_MAX, Dim, constant_ints, dims
from fopru_graph.weights import check_inner_weights, without_external_weights

__all__ = ["PreparePass", "Prepared"]

_MIN_OPSET = 13  # Softmax over one axis, axes of Unsqueeze as an input
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Prepared:
    """Counts: functions inlined, constants folded, shapes of Expand and reads of a size rewritten."""

    functions: int
    folded: int
    expands: int
    sizes: int


class PreparePass(GraphPass[Prepared]):
    """Makes a graph readable for the passes after it; computes the same as before.

    Rules:
        1. Local functions are inlined.
        2. Integer arithmetic on constants is done, and TorchScript's `expand(-1)` written without a Where, so
           that shapes put together from them can be read (`plain_shapes.py`).
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
        newest = onnx.defs.onnx_opset_version()
        if opset > newest:
            raise UnsupportedGraphError(
                f"the graph has opset {opset}, but {newest} is the newest that is known here: update onnx, "
                "or export with an older opset"
            )
        taken = {value.name for value in (*model.graph.inputs, *model.graph.outputs)}
        clash = [name for name in (NUM_KEEP, KEPT_INDICES, TOKEN_SCORES, GRID, TOKEN_MASK) if name in taken]
        if clash:
            raise UnsupportedGraphError(
                f"the graph already has '{clash[0]}': it is pruned, start from the unpruned graph"
            )

        # Every pass may then rely on valid nodes: as many inputs and attributes as their operators take.
        try:
            with without_external_weights(model):
                CheckerPass()(model)
        except Exception as error:
            raise UnsupportedGraphError(
                f"the graph is not valid ONNX ({first_cause(error)}): export it again"
            ) from error
        _check_sizes(model.graph)
        check_inner_weights(model)

    def call(self, model: ir.Model) -> Rewritten[Prepared]:
        functions = len(model.functions)
        if functions:
            InlinePass()(model)
        builder = GraphBuilder(model.graph, self.name)
        folded = fold_integers(model.graph, builder)
        expands = rewrite_expands(model.graph, builder)
        with without_external_weights(model):
            _infer_shapes(model)
        sizes = reroute_sizes(model.graph, builder)
        found = Prepared(functions, folded, expands, sizes)
        return Rewritten(model, found, functions + folded + expands + sizes)


def _without_declared_names(graph: ir.Graph) -> dict[ir.Value, tuple[Dim, ...]]:
    """Forget names that a person gave to sizes of outputs, as `seq` may be two; returns the dims they had."""
    declared = {value: dims(value) or () for value in graph.outputs if value.shape is not None}
    for value, sizes in declared.items():
        value.shape = ir.Shape([size if isinstance(size, int) else None for size in sizes])
    return declared


def _infer_shapes(model: ir.Model) -> None:
    declared = _without_declared_names(model.graph)
    # ONNX's own inference comes second: the names it invents would stand in the way of the first, but it
    # knows types where that one does not; a shape without a type would not be written.
    try:
        infer_symbolic_shapes(model, warn_on_missing=False)
    except Exception as error:  # an annotation less is a refusal later, with its own words
        _log.debug("symbolic shape inference gave up: %s", error)
    _check_sizes(model.graph)
    untyped = {value: value.shape for node in model.graph for value in node.outputs if value.type is None}
    for value in untyped:
        value.shape = None
    ShapeInferencePass(check_type=False, strict_mode=False)(model)
    for value, shape in untyped.items():
        if value.type is not None and shape is not None:
            value.shape = shape
    for value, sizes in declared.items():  # what inference could not name keeps its name
        found = dims(value) or (None,) * len(sizes)
        value.shape = ir.Shape([old if new is None else new for old, new in zip(sizes, found, strict=True)])


def _check_sizes(graph: ir.Graph) -> None:
    """Sizes that no tensor has are refused; ONNX's own inference would end the process over some of them."""
    for value in (
        *graph.inputs,
        *graph.initializers.values(),
        *(out for node in graph for out in node.outputs),
    ):
        sizes = dims(value) or ()
        if any(isinstance(size, int) and not 0 <= size <= INT32_MAX for size in sizes):
            raise UnsupportedGraphError(
                f"tensor '{value.name}' has dims {sizes}, but a size is 0 to {INT32_MAX}: export it again"
            )
    for node in graph:
        target = constant_ints(node.inputs[1]) if node.op_type == "Reshape" else None
        if target is not None and min(target, default=0) < -1:
            raise UnsupportedGraphError(
                f"Reshape '{node.name}' has target {target}, but its numbers are >= -1: export it again"
            )
