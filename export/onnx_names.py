"""Give a traced graph the names of its contract: inputs, outputs, and every symbolic axis (never `s29`)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import onnx_ir as ir

from export.errors import TraceError
from runtime.contract import GraphContract, TensorSpec

__all__ = ["name_graph"]

_TORCH_SYMBOL = re.compile(r"\b[su]\d+\b")


def name_graph(model: ir.Model, contract: GraphContract) -> None:
    """Rename in place, after comparing with the contract.

    Raises:
        TraceError: another number of tensors, another dtype or rank, or an axis that torch made constant.
    """
    graph = model.graph
    names: dict[str, str] = {}
    pairs = (("inputs", graph.inputs, contract.inputs), ("outputs", graph.outputs, contract.outputs))
    for kind, values, specs in pairs:
        if len(values) != len(specs):
            raise TraceError(f"the traced graph has {len(values)} {kind}, but its contract has {len(specs)}")
        for value, spec in zip(values, specs, strict=True):
            _match(value, spec, names)
    for value in _all_values(graph):
        if value.shape is not None:
            value.shape = ir.Shape([_renamed(dim, names) for dim in value.shape])
    for _, values, specs in pairs:
        for value, spec in zip(values, specs, strict=True):
            value.name = spec.name
            value.shape = ir.Shape(spec.shape)


def _match(value: ir.Value, spec: TensorSpec, names: dict[str, str]) -> None:
    """Compare one tensor with its contract, and learn what torch calls its axes."""
    dtype = "untyped" if value.dtype is None else str(value.dtype.numpy())
    shape: list[Any] = [] if value.shape is None else list(value.shape)
    if dtype != spec.dtype or len(shape) != len(spec.shape):
        raise TraceError(
            f"{spec.name} was traced as {dtype} {_text(shape)}, but its contract is {spec.dtype} "
            f"{_text(spec.shape)}"
        )
    for dim, wanted in zip(shape, spec.shape, strict=True):
        if isinstance(dim, int) != isinstance(wanted, int) or (isinstance(dim, int) and dim != wanted):
            raise TraceError(
                f"{spec.name} was traced with shape {_text(shape)}, but its contract is {_text(spec.shape)}: "
                "the model does something that depends on the size"
            )
        if isinstance(wanted, str) and dim.value is not None:
            names.setdefault(dim.value, wanted)


def _renamed(dim: Any, names: dict[str, str]) -> int | str | None:
    """Contract name of a symbol or of a whole expression; other expressions are renamed symbol by symbol."""
    if isinstance(dim, int):
        return dim
    if dim.value is None or dim.value in names:
        return names.get(dim.value)
    return _TORCH_SYMBOL.sub(lambda found: names.get(found.group(), found.group()), dim.value)


def _all_values(graph: ir.Graph) -> Iterator[ir.Value]:
    yield from graph.inputs
    for node in graph.all_nodes():
        yield from node.outputs


def _text(shape: Any) -> str:
    return "[" + ", ".join(str(dim) for dim in shape) + "]"
