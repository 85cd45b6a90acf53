"""Pass 5, clean: what nobody needs any more goes, and the graph is valid."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir
from onnx_ir.passes.common import CheckerPass, NameFixPass, RemoveUnusedNodesPass

from fopru_graph.errors import RewriteError
from fopru_graph.passes.base import GraphPass, Rewritten
from fopru_graph.weights import without_external_weights

__all__ = ["CleanPass", "Cleaned"]


@dataclass(frozen=True)
class Cleaned:
    """`removed` counts nodes, `removed_weights` initializers."""

    removed: int
    removed_weights: int


class CleanPass(GraphPass[Cleaned]):
    """Removes dead nodes (encoder layers after the features, post-LayerNorm) and weights that only they used.

    Rules:
        1. Inputs and outputs stay. A weight file on disk stays as it is: only pointers into it are dropped,
           so that other graphs keep sharing it.
        2. The graph is sorted, and names are unique.
        3. The ONNX checker passes; it sees the graph without its weights, so that their size does not matter.
    """

    name: ClassVar[str] = "clean"

    def call(self, model: ir.Model) -> Rewritten[Cleaned]:
        nodes, weights = len(model.graph), len(model.graph.initializers)
        RemoveUnusedNodesPass()(model)
        NameFixPass()(model)
        model.graph.sort()
        found = Cleaned(nodes - len(model.graph), weights - len(model.graph.initializers))
        return Rewritten(model, found, found.removed + found.removed_weights)

    def ensures(self, model: ir.Model) -> None:
        try:
            with without_external_weights(model):
                CheckerPass()(model)
        except Exception as error:
            raise RewriteError(f"the pruned graph is not valid ONNX: {error}") from error
