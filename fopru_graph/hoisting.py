"""Moves a row selection from the end of a graph towards its start, past every node that works row by row.

Both questions are answered without touching the graph. `trace_rows`: row i of the features is which row of
that tensor? `plan_hoist`: which nodes can work on selected rows only, and on which tensors must the rows then
be selected?
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir

from fopru_graph.tokenwise import Demand, Refusal, demands_of

__all__ = ["Frontier", "HoistPlan", "Stop", "plan_hoist", "trace_rows"]


@dataclass(frozen=True)
class Stop:
    """A node past which a selection cannot move, why, and the rows demanded of it."""

    node: ir.Node
    reason: str
    demand: Demand

    def __str__(self) -> str:
        return f"{self.node.op_type} '{self.node.name}': {self.reason}"


@dataclass(frozen=True)
class Frontier:
    """A tensor of which rows must be selected, for these inputs (node, index) of nodes behind it.

    `uses` is empty when the tensor is the features output itself.
    """

    value: ir.Value
    demand: Demand
    uses: tuple[tuple[ir.Node, int], ...]


@dataclass(frozen=True)
class HoistPlan:
    """Nodes that get selected rows, from the last to the first, with the demand on their outputs; and the
    frontier.

    `stops` holds the nodes that refused; a frontier without one is a tensor that somebody else needs whole.
    """

    nodes: tuple[tuple[ir.Node, Demand], ...]
    frontier: tuple[Frontier, ...]
    stops: tuple[Stop, ...]

    @property
    def node_set(self) -> frozenset[ir.Node]:
        return frozenset(node for node, _ in self.nodes)


def trace_rows(features: ir.Value, target: ir.Value | None) -> tuple[frozenset[Demand], tuple[Stop, ...]]:
    """Follow the rows of `features` (axis 1) back to `target`, or, without one, as far as they go.

    Returns:
        Every demand that reaches `target` (one, in a sane graph; none if it is not connected row by row), and
        the nodes where a path ended for another reason than having no producer.
    """
    reached: set[Demand] = set()
    stops: list[Stop] = []
    seen: set[tuple[ir.Value, Demand]] = set()
    pending = [(features, Demand(axis=1, offset=0))]
    while pending:
        value, demand = pending.pop()
        if (value, demand) in seen:
            continue
        seen.add((value, demand))
        if value is target:
            reached.add(demand)
            continue
        node = value.producer()
        if node is None:
            continue
        answer = demands_of(node, demand)
        if isinstance(answer, Refusal):
            stops.append(Stop(node, answer.reason, demand))
            continue
        for index, wanted in answer:
            source = node.inputs[index]
            if source is not None:
                pending.append((source, wanted))
    return frozenset(reached), tuple(stops)


class _Demands:
    """Who wants which rows of which value."""

    def __init__(self, features: ir.Value) -> None:
        self._features = features
        self._wanted: dict[tuple[ir.Node, int], Demand] = {}
        self._root = Demand(axis=1, offset=0)

    def add(self, node: ir.Node, answer: Sequence[tuple[int, Demand]]) -> None:
        for index, demand in answer:
            self._wanted[node, index] = demand

    def on(self, value: ir.Value) -> dict[Demand, list[tuple[ir.Node, int]]]:
        """Demands on a value, each with the inputs that make it; the features output demands its own rows."""
        found: dict[Demand, list[tuple[ir.Node, int]]] = {}
        if value is self._features:
            found[self._root] = []
        for use in value.uses():
            demand = self._wanted.get((use.node, use.idx))
            if demand is not None:
                found.setdefault(demand, []).append((use.node, use.idx))
        return found

    def common(self, node: ir.Node) -> Demand | None:
        """The one demand that every use of every output of the node makes, or None."""
        demands: set[Demand | None] = set()
        for value in node.outputs:
            if value is self._features:
                demands.add(self._root)
            elif value.is_graph_output():
                demands.add(None)
            demands.update(self._wanted.get((use.node, use.idx)) for use in value.uses())
        return demands.pop() if len(demands) == 1 else None


def plan_hoist(graph: ir.Graph, features: ir.Value) -> HoistPlan:
    """Plan the selection of rows of `features` as early as it is exact; the graph must be sorted.

    A node moves behind the selection if it works row by row and nobody needs its other rows.
    """
    demands = _Demands(features)
    nodes: list[tuple[ir.Node, Demand]] = []
    frontier: list[Frontier] = []
    stops: list[Stop] = []
    for node in reversed(list(graph)):
        demand = demands.common(node)
        if demand is not None:
            answer = demands_of(node, demand)
            if not isinstance(answer, Refusal):
                nodes.append((node, demand))
                demands.add(node, answer)
                continue
            stops.append(Stop(node, answer.reason, demand))
        frontier.extend(_frontier_at(node.outputs, demands))
    frontier.extend(_frontier_at([*graph.inputs, *graph.initializers.values()], demands))
    return HoistPlan(tuple(nodes), tuple(frontier), tuple(stops))


def _frontier_at(values: Sequence[ir.Value], demands: _Demands) -> list[Frontier]:
    return [
        Frontier(value, demand, tuple(uses)) for value in values for demand, uses in demands.on(value).items()
    ]
