"""A graph as the rules see it: every node wherever it stands, shapes, and what each value depends on."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import onnx_ir as ir
from onnx_ir.passes.common import InlinePass, ShapeInferencePass
from onnx_shape_inference import infer_symbolic_shapes

from fopru_graph.errors import UnsupportedGraphError
from fopru_graph.lint.dependence import Dependence, dependences
from fopru_graph.lint.schema import schema_violation
from fopru_graph.shapes import Dim, constant_ints, dims
from fopru_graph.weights import external_tensors, without_external_weights

__all__ = ["GraphView", "Site", "axis_size", "constants", "upper_bound", "used_outputs", "view_of"]

_log = logging.getLogger(__name__)
_DEFAULT_DOMAINS = ("", "ai.onnx")
_SAME_ELEMENTS = ("Identity", "Cast", "Reshape", "Squeeze", "Unsqueeze")


@dataclass(frozen=True)
class Site:
    """A node, where it stands ("" is the main graph), and the version of its domain that holds there."""

    node: ir.Node
    where: str
    opset: int

    @property
    def name(self) -> str:
        """Name of the node, else of its first output that has one."""
        return self.node.name or next((str(value.name) for value in self.node.outputs if value.name), "")

    @property
    def standard(self) -> bool:
        """Whether the operator is of ONNX's default domain."""
        return self.node.domain in _DEFAULT_DOMAINS


@dataclass(frozen=True)
class GraphView:
    """A model prepared for the rules: local functions inlined, shapes inferred, weights untouched.

    Attributes:
        model: a copy; the caller's model stays as it is.
        path: file it came from, None for a model in memory.
    """

    model: ir.Model
    path: Path | None = None

    @cached_property
    def sites(self) -> tuple[Site, ...]:
        """Every node of the graph, of the bodies of If, Loop and Scan, and of functions that stayed."""
        found = list(_walk(self.model.graph, "", self.model.opset_imports))
        for function in self.model.functions.values():
            where = f"function '{function.domain}::{function.name}'"
            found += _walk(function, where, function.opset_imports)
        return tuple(found)

    @cached_property
    def invalid(self) -> dict[ir.Node, str]:
        """Nodes that are not what ONNX says of their operator, and why; rules do not look at these."""
        reasons = {site.node: schema_violation(site.node, site.opset) for site in self.sites if site.standard}
        return {node: reason for node, reason in reasons.items() if reason}

    def of(self, *op_types: str) -> Iterator[Site]:
        """The valid nodes of some operators of the default domain."""
        wanted = (site for site in self.sites if site.standard and site.node.op_type in op_types)
        return (site for site in wanted if site.node not in self.invalid)

    @cached_property
    def opset(self) -> int:
        """Version of the default domain: the newest that the graph or a function asks for, 0 for none."""
        imports = [self.model.opset_imports, *(f.opset_imports for f in self.model.functions.values())]
        return max(each.get(domain, 0) for each in imports for domain in _DEFAULT_DOMAINS)

    @cached_property
    def dependence(self) -> dict[ir.Value, Dependence]:
        """What the content of each value depends on."""
        return dependences(self.model)

    def depends(self, value: ir.Value) -> Dependence:
        """What the content of one value depends on."""
        return self.dependence.get(value, Dependence("constant"))

    def is_local(self, node: ir.Node) -> bool:
        """Whether a node calls a function of the model."""
        return node.op_identifier() in self.model.functions

    @cached_property
    def tensors(self) -> tuple[tuple[str, ir.TensorProtocol], ...]:
        """(owner, tensor) of every initializer and tensor attribute, in bodies and functions too."""
        found: list[tuple[str, ir.TensorProtocol]] = []
        graphs: list[ir.Graph | ir.Function] = [self.model.graph, *self.model.functions.values()]
        for site in self.sites:
            for attribute in site.node.attributes.values():
                if attribute.is_ref():
                    continue
                if attribute.type == ir.AttributeType.TENSOR:
                    found.append((site.name, attribute.as_tensor()))
                elif attribute.type == ir.AttributeType.GRAPH:
                    graphs.append(attribute.as_graph())
        for graph in graphs:
            if isinstance(graph, ir.Graph):
                found += [
                    (name, value.const_value)
                    for name, value in graph.initializers.items()
                    if value.const_value is not None
                ]
        return tuple(found)


def view_of(model: ir.Model, path: Path | None = None) -> GraphView:
    """Copy a model, inline its functions, infer shapes; what cannot be inferred is left open.

    Raises:
        UnsupportedGraphError: the graph is so damaged that it cannot be copied.
    """
    try:
        copy = model.clone()
    except Exception as error:
        raise UnsupportedGraphError(
            f"the graph is not valid ONNX ({_cause(error)}): export it again"
        ) from error
    if copy.functions:
        try:
            InlinePass()(copy)
        except Exception as error:  # recursive or damaged functions: their bodies are walked as they are
            _log.debug("functions were not inlined: %s", error)
    if all(_is_there(tensor) for tensor in external_tensors(copy)):
        with without_external_weights(copy):
            for infer in (_infer_by_onnx, _infer_by_symbols):
                try:
                    infer(copy)
                except Exception as error:  # a rule that needs a shape then says that it is unknown
                    _log.debug("shapes were not inferred: %s", error)
    return GraphView(copy, path)


def _infer_by_onnx(model: ir.Model) -> None:
    ShapeInferencePass(check_type=False, strict_mode=False)(model)


def _infer_by_symbols(model: ir.Model) -> None:
    """Follows the arithmetic that exporters do on sizes, which ONNX's own inference gives up at."""
    infer_symbolic_shapes(model, warn_on_missing=False)


def _is_there(tensor: ir.ExternalTensor) -> bool:
    """Whether a weight can be read: its file is there, in the folder of the graph."""
    return ".." not in Path(tensor.location).parts and Path(tensor.path).is_file()


def _cause(error: BaseException) -> str:
    """First line of what set off an error."""
    while error.__cause__ is not None:
        error = error.__cause__
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


def _walk(graph: ir.Graph | ir.Function, where: str, opsets: Mapping[str, int]) -> Iterator[Site]:
    for node in graph:
        site = Site(node, where, opsets.get(node.domain, opsets.get("ai.onnx", 0)))
        yield site
        for name, attribute in node.attributes.items():
            if attribute.is_ref():
                continue
            bodies = (
                [attribute.as_graph()]
                if attribute.type == ir.AttributeType.GRAPH
                else list(attribute.as_graphs())
                if attribute.type == ir.AttributeType.GRAPHS
                else []
            )
            for body in bodies:
                inside = f"{name} of {node.op_type} '{site.name}'"
                yield from _walk(body, f"{inside}, {where}" if where else inside, opsets)


def used_outputs(node: ir.Node) -> list[int]:
    """Positions of the outputs that somebody reads."""
    return [at for at, value in enumerate(node.outputs) if value.uses() or value.is_graph_output()]


def constants(value: ir.Value | None) -> list[int] | None:
    """Elements of a small integer constant, None for everything else and where its weight file is gone."""
    try:
        return constant_ints(value)
    except (OSError, TypeError, ValueError):  # the file is gone, or the constant is damaged
        return None


def axis_size(value: ir.Value | None, axis: int) -> Dim:
    """Size of an axis of a value, None where it is unknown or there is no such axis."""
    sizes = dims(value)
    return sizes[axis] if sizes is not None and -len(sizes) <= axis < len(sizes) else None


def upper_bound(value: ir.Value | None) -> int | None:
    """Greatest element that an integer tensor can hold, as far as constants, Min and Clip tell."""
    numbers = constants(value)
    if numbers is not None:
        return max(numbers, default=None)
    node = value.producer() if value is not None else None
    if node is None:
        return None
    if node.op_type in _SAME_ELEMENTS and node.inputs:
        return upper_bound(node.inputs[0])
    limits: list[int | None] = []
    if node.op_type == "Min":
        limits = [upper_bound(source) for source in node.inputs]
    elif node.op_type == "Clip" and len(node.inputs) > 2:
        limits = [upper_bound(node.inputs[0]), upper_bound(node.inputs[2])]
    known = [limit for limit in limits if limit is not None]
    return min(known, default=None)
