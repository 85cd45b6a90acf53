"""Adds nodes to a graph: fresh names, a provenance stamp on each node, dtype and shape on each value."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from fopru_graph.shapes import INT64_MAX, Dim, dims

__all__ = ["STAMP", "GraphBuilder", "Made"]

STAMP = "fopru.pass"
"""Key in a node's `metadata_props` that holds the name of the pass which made it."""


@dataclass(frozen=True)
class Made:
    """Name hint, dtype and dims of a value about to be made."""

    name: str
    dtype: ir.DataType
    dims: tuple[Dim, ...]

    def shape(self) -> ir.Shape:
        return ir.Shape(list(self.dims))


class GraphBuilder:
    """Appends to one graph on behalf of one pass; the caller sorts the graph when done.

    Attributes:
        added: number of nodes made so far.
    """

    def __init__(self, graph: ir.Graph, pass_name: str) -> None:
        self.graph = graph
        self.opset = graph.opset_imports[""]
        self.added = 0
        self._pass_name = pass_name
        self._taken = _names_in(graph)

    def fresh(self, hint: str) -> str:
        """A name that no value and no node of the graph has; the only source of names in this package."""
        name, count = f"fopru/{hint}", 0
        while name in self._taken:
            count += 1
            name = f"fopru/{hint}_{count}"
        self._taken.add(name)
        return name

    def constant(self, hint: str, array: np.ndarray) -> ir.Value:
        """A new initializer; refused by onnx-ir if its name were taken."""
        name = self.fresh(hint)
        value = ir.Value(
            name=name,
            shape=ir.Shape(array.shape),
            type=ir.TensorType(ir.DataType.from_numpy(array.dtype)),
            const_value=ir.tensor(array, name=name),
        )
        self.graph.register_initializer(value)
        return value

    def ints(self, hint: str, values: Sequence[int]) -> ir.Value:
        """A new int64 initializer with one axis."""
        return self.constant(hint, np.asarray(values, dtype=np.int64))

    def op(
        self,
        op_type: str,
        inputs: Sequence[ir.Value],
        made: Made,
        attributes: Mapping[str, Any] | None = None,
    ) -> ir.Value:
        """A new node with one output."""
        return self.ops(op_type, inputs, [made], attributes)[0]

    def ops(
        self,
        op_type: str,
        inputs: Sequence[ir.Value],
        made: Sequence[Made],
        attributes: Mapping[str, Any] | None = None,
    ) -> Sequence[ir.Value]:
        """A new node with several outputs."""
        outputs = [
            ir.Value(name=self.fresh(one.name), shape=one.shape(), type=ir.TensorType(one.dtype))
            for one in made
        ]
        node = ir.node(
            op_type,
            inputs,
            attributes=attributes,
            outputs=outputs,
            name=self.fresh(f"node_{made[0].name}"),
            metadata_props={STAMP: self._pass_name},
        )
        self.graph.append(node)
        self.added += 1
        return node.outputs

    def mean(self, value: ir.Value, axis: int, made: Made) -> ir.Value:
        """Mean over one axis, which disappears."""
        if self.opset >= 18:
            return self.op("ReduceMean", [value, self.ints("axis", [axis])], made, {"keepdims": 0})
        return self.op("ReduceMean", [value], made, {"axes": [axis], "keepdims": 0})

    def slice(self, value: ir.Value, axis: int, bounds: tuple[int, int | None], made: Made) -> ir.Value:
        """`value[start:end]` along one axis; None: to the end."""
        start, end = bounds[0], INT64_MAX if bounds[1] is None else bounds[1]
        limits = [self.ints(name, [at]) for name, at in (("start", start), ("end", end), ("axis", axis))]
        return self.op("Slice", [value, *limits], made)

    def cast(self, value: ir.Value, dtype: ir.DataType) -> ir.Value:
        """The value in another dtype, or itself if it has that one."""
        if value.dtype == dtype:
            return value
        made = Made(f"{value.name}_{dtype.name.lower()}", dtype, dims(value) or ())
        return self.op("Cast", [value], made, {"to": dtype})

    def scalar(self, hint: str, number: int) -> ir.Value:
        """A new int64 initializer without axes."""
        return self.constant(hint, np.asarray(number, dtype=np.int64))

    def size_1d(self, value: ir.Value, axis: int) -> ir.Value:
        """int64 [1]: one dim of a value, read at run time."""
        shape = self.op("Shape", [value], Made("shape", ir.DataType.INT64, (len(dims(value) or ()),)))
        made = Made("size", ir.DataType.INT64, (1,))
        return self.op("Gather", [shape, self.ints("axis", [axis])], made, {"axis": 0})

    def size(self, value: ir.Value, axis: int) -> ir.Value:
        """int64 scalar: one dim of a value, read at run time."""
        shape = self.op("Shape", [value], Made("shape", ir.DataType.INT64, (len(dims(value) or ()),)))
        return self.op(
            "Gather", [shape, self.scalar("axis", axis)], Made("size", ir.DataType.INT64, ()), {"axis": 0}
        )


def _names_in(graph: ir.Graph) -> set[str]:
    names = {value.name for value in graph.inputs} | set(graph.initializers)
    for node in ir.traversal.RecursiveGraphIterator(graph):
        names.add(node.name)
        names.update(value.name for value in node.outputs)
    return {name for name in names if name}
