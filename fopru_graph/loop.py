"""The body of an ONNX Loop: chunks of queries, tokens picked one after the other."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from fopru_graph.builder import GraphBuilder, Made
from fopru_graph.shapes import dims

__all__ = ["LoopBody"]

_BOOL = ir.DataType.BOOL


class LoopBody(GraphBuilder):
    """Adds to the body of a Loop; names and constants are those of the graph around it.

    Attributes:
        step: int64 scalar, number of the turn.
    """

    def __init__(self, outer: GraphBuilder, pass_name: str) -> None:
        graph = ir.Graph(
            [], [], nodes=[], opset_imports=dict(outer.graph.opset_imports), name=outer.fresh("body")
        )
        super().__init__(graph, pass_name)
        self._outer = outer
        self._results: list[ir.Value] = []
        self._starts: list[ir.Value] = []
        self.step = self._input(Made("turn", ir.DataType.INT64, ()))
        self._go_on = self._input(Made("go_on", _BOOL, ()))

    def fresh(self, hint: str) -> str:
        return self._outer.fresh(hint)

    def constant(self, hint: str, array: np.ndarray) -> ir.Value:
        return self._outer.constant(hint, array)

    def state(self, start: ir.Value, made: Made) -> ir.Value:
        """A value that turns hand on, of the same shape in each; `start` is made outside."""
        self._starts.append(start)
        return self._input(made)

    def run(self, turns: ir.Value, results: list[ir.Value]) -> list[ir.Value]:
        """Add the Loop to the graph around: states after `turns` (int64 scalar) of it, in the order made."""
        outer = self._outer
        self.graph.outputs.append(self.op("Identity", [self._go_on], Made("go_on", _BOOL, ())))
        self.graph.outputs.extend(results)
        inputs = [turns, outer.constant("go_on", np.asarray(True)), *self._starts]
        made = [Made("after", value.dtype or ir.DataType.FLOAT, dims(value) or ()) for value in results]
        outer.added += self.added
        return list(outer.ops("Loop", inputs, made, {"body": self.graph}))

    def _input(self, made: Made) -> ir.Value:
        value = ir.Value(name=self.fresh(made.name), shape=made.shape(), type=ir.TensorType(made.dtype))
        self.graph.inputs.append(value)
        return value
