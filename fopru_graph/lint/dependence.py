"""What the content of a value depends on: constants, shapes and numbers from the host, or the data itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

import onnx_ir as ir

from fopru_graph.shapes import dims

__all__ = ["SELECTING_OPS", "SHAPE_INPUTS", "Dependence", "Kind", "dependences"]

Kind = Literal["constant", "shape", "data"]
_ORDER: tuple[Kind, ...] = ("constant", "shape", "data")

SELECTING_OPS = ("NonZero", "Compress", "Unique")
"""Operators that make as many elements as the data says."""

SHAPE_INPUTS: Mapping[str, tuple[int, ...]] = MappingProxyType(
    {
        "ConstantOfShape": (0,),
        "Expand": (1,),
        "OneHot": (1,),
        "Pad": (1,),
        "Range": (0, 1, 2),
        "Reshape": (1,),
        "Resize": (2, 3),
        "Slice": (1, 2, 4),
        "Split": (1,),
        "Tile": (1,),
        "TopK": (1,),
    }
)
"""Inputs whose content is the size of what the operator makes."""


@dataclass(frozen=True)
class Dependence:
    """What one value depends on.

    Attributes:
        kind: `constant`; `shape`: known before a run, from input shapes and from integer inputs of rank 0 or
            1, which TensorRT reads on the host (shape tensors); `data`: known only while running.
        source: the graph input or the node that it hangs on.
        selected: the node that gives this value a size by the data, "" if its size is known before a run.
        counted: whether the content is only such a size, whose node is a finding already.
    """

    kind: Kind
    source: str = ""
    selected: str = ""
    counted: bool = False


_CONSTANT = Dependence("constant")


def dependences(model: ir.Model) -> dict[ir.Value, Dependence]:
    """The dependence of every value, bodies of If, Loop and Scan included; what is not in it is constant."""
    found = {value: _of_input(value) for value in model.graph.inputs}
    _visit(model.graph, found)
    for function in model.functions.values():
        found.update((value, Dependence("shape", str(value.name))) for value in function.inputs)
        _visit(function, found)
    return found


def _of_input(value: ir.Value) -> Dependence:
    if value.is_initializer():
        return _CONSTANT
    sizes = dims(value)
    on_host = value.dtype in (ir.DataType.INT32, ir.DataType.INT64) and sizes is not None and len(sizes) <= 1
    return Dependence("shape" if on_host else "data", str(value.name))


def _visit(graph: ir.Graph | ir.Function, found: dict[ir.Value, Dependence]) -> None:
    for node in graph:
        inputs = [found.get(value, _CONSTANT) if value is not None else _CONSTANT for value in node.inputs]
        result = _gravest([*inputs, *_of_bodies(node, inputs, found)])
        if node.op_type in ("Shape", "Size") and inputs:
            result = _of_shape(node, inputs[0])
        elif selected := _selected(node, inputs):
            result = Dependence(result.kind, result.source, selected, result.counted)
        for value in node.outputs:
            found[value] = result


def _selected(node: ir.Node, inputs: list[Dependence]) -> str:
    """The node that makes the size of a node's outputs hang on the data."""
    before = next((each.selected for each in inputs if each.selected), "")
    by_data = node.op_type in SELECTING_OPS and _gravest(inputs).kind == "data"
    sizing = [inputs[at] for at in SHAPE_INPUTS.get(node.op_type, ()) if at < len(inputs)]
    if by_data or any(each.kind == "data" for each in sizing):
        return before or node.name or str(node.outputs[0].name)
    return before


def _of_shape(node: ir.Node, measured: Dependence) -> Dependence:
    sizes = dims(node.inputs[0])
    if sizes is not None and all(isinstance(size, int) for size in sizes):
        return _CONSTANT
    if measured.selected:
        return Dependence("data", measured.selected, counted=True)
    return Dependence("shape", measured.source)


def _of_bodies(
    node: ir.Node, inputs: list[Dependence], found: dict[ir.Value, Dependence]
) -> list[Dependence]:
    """What the bodies of a node make of its inputs."""
    results: list[Dependence] = []
    for attribute in node.attributes.values():
        if attribute.is_ref() or attribute.type != ir.AttributeType.GRAPH:
            continue
        body = attribute.as_graph()
        carried = _gravest(inputs)
        found.update((value, carried) for value in body.inputs)
        _visit(body, found)
        results += [found.get(value, _CONSTANT) for value in body.outputs]
    return results


def _gravest(several: list[Dependence]) -> Dependence:
    worst = max(several, key=lambda each: (_ORDER.index(each.kind), not each.counted), default=_CONSTANT)
    selected = next((each.selected for each in several if each.selected), "")
    return Dependence(worst.kind, worst.source, selected, worst.counted)
