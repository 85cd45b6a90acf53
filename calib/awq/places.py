"""What the graphs of a bundle have in common: tensors, by where their bytes are, and who reads them."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import onnx_ir as ir

from calib.precision.widened import Widened

__all__ = ["Readers", "Tensor", "place_of"]

Tensor: TypeAlias = tuple[str, int, int] | str
"""File name, offset and length; a name where the bytes are inside the graph."""


def place_of(value: ir.Value) -> Tensor:
    """Of an initializer. File names without folders: a bundle may be copied."""
    tensor = value.const_value
    if isinstance(tensor, Widened):
        tensor = tensor.source
    if isinstance(tensor, ir.ExternalTensor):
        return Path(tensor.path).name, int(tensor.offset or 0), int(tensor.length or tensor.nbytes)
    return str(value.name)


@dataclass(frozen=True)
class Readers:
    """Who reads the tensors of one graph.

    Attributes:
        graph: its name.
        nodes: by tensor; None stands for the graph's outputs.
    """

    graph: str
    nodes: dict[Tensor, frozenset[ir.Node | None]]

    @classmethod
    def of(cls, model: ir.Model, name: str = "") -> Readers:
        """Of a graph and of what is inside its nodes."""
        found: dict[Tensor, set[ir.Node | None]] = {}
        graphs = [model.graph, *(graph for node in model.graph.all_nodes() for graph in _inside(node))]
        for graph in graphs:
            for value in graph.initializers.values():
                readers = found.setdefault(place_of(value), set())
                readers.update(use.node for use in value.uses())
                if value.is_graph_output():
                    readers.add(None)
        return cls(name, {place: frozenset(nodes) for place, nodes in found.items()})

    def others(self, tensor: Tensor, known: Collection[ir.Node]) -> bool:
        """Whether something reads a tensor, or a part of its bytes, that is not a known node."""
        return any(not nodes <= set(known) for nodes in self._reading(tensor, exact=True)) or any(
            self._reading(tensor, exact=False)
        )

    def touches(self, tensors: Collection[Tensor]) -> bool:
        """Whether any of these bytes is read."""
        return any(
            nodes
            for tensor in tensors
            for exact in (True, False)
            for nodes in self._reading(tensor, exact=exact)
        )

    def _reading(self, tensor: Tensor, *, exact: bool) -> list[frozenset[ir.Node | None]]:
        if exact:
            return [self.nodes[tensor]] if tensor in self.nodes else []
        if isinstance(tensor, str):
            return []
        file, start, length = tensor
        return [
            nodes
            for other, nodes in self.nodes.items()
            if not isinstance(other, str)
            and other != tensor
            and other[0] == file
            and other[1] < start + length
            and start < other[1] + other[2]
        ]


def _inside(node: ir.Node) -> list[ir.Graph]:
    return [
        attribute.as_graph()
        for attribute in node.attributes.values()
        if attribute.type == ir.AttributeType.GRAPH
    ]
