"""Moves a row selection from the end of a graph towards its start, past every node that works row by row.

`plan_hoist` says, without touching the graph, which nodes can work on selected rows only, and on which
tensors the rows must then be selected.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir

from fopru_graph.lineage import Stop
from fopru_graph.tokenwise import Demand, Refusal, demands_of

__all__ = ["Frontier", "HoistPlan", "plan_hoist"]


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
