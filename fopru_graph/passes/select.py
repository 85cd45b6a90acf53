"""Pass 3, select: positions of the kept tokens, in reading order, their number given at run time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from fopru_graph.builder import GraphBuilder, Made
from fopru_graph.errors import OptionError, RewriteError
from fopru_graph.options import KEPT_INDICES, NUM_KEEP, PruneOptions
from fopru_graph.passes.base import GraphPass, Rewritten
from fopru_graph.passes.locate import Located
from fopru_graph.passes.score import Scored
from fopru_graph.shapes import Dim, dims

__all__ = ["SelectPass", "Selected"]

_INT64 = ir.DataType.INT64
_FLOAT = ir.DataType.FLOAT


@dataclass(frozen=True)
class Selected:
    """`indices` is int64 [images, kept], ascending positions in 0..N-1; `added` counts nodes."""

    indices: ir.Value
    added: int


class SelectPass(GraphPass[Selected]):
    """Adds the input `num_keep` (int64 [1]) and the output `kept_indices`.

    Rules:
        1. `rank`: the `num_keep` highest scores, ties to the lower position (ONNX says so; a GPU runtime may
           not), sorted.
        2. `row`: the `num_keep / C` grid rows with the highest mean, ties to the upper row, all their tokens.
           The division drops a remainder: the host gives a multiple of C.
        3. Only TopK(sorted=1), Reshape and int64 arithmetic: no NonZero, Compress or Unique.
        4. 1 <= `num_keep` <= N is the host's duty; runtimes stop with their own error above N.
    """

    name: ClassVar[str] = "select"

    def __init__(self, options: PruneOptions, located: Located, scored: Scored) -> None:
        super().__init__()
        self._options = options
        self._tokens = located.tokens
        self._scored = scored

    def requires(self, model: ir.Model) -> None:
        del model
        grid = self._options.grid
        if grid is not None and grid[0] * grid[1] != self._tokens:
            raise OptionError(
                f"grid is {grid[0]}x{grid[1]} = {grid[0] * grid[1]} tokens, but there are {self._tokens}: "
                "give the grid of the scored tokens, or use strategy 'rank' where they fill none"
            )

    def call(self, model: ir.Model) -> Rewritten[Selected]:
        builder = GraphBuilder(model.graph, self.name)
        num_keep = ir.Value(name=NUM_KEEP, shape=ir.Shape([1]), type=ir.TensorType(_INT64))
        model.graph.inputs.append(num_keep)
        images = (dims(self._scored.scores) or (None,))[0]
        if self._options.strategy == "row" and self._options.grid is not None:
            indices = _rows(builder, self._scored.scores, num_keep, self._options.grid)
        else:
            indices = _highest(builder, self._scored.scores, num_keep, (images, "kept"))
        indices.name = KEPT_INDICES
        model.graph.outputs.append(indices)
        model.graph.sort()
        return Rewritten(model, Selected(indices, builder.added), builder.added)

    def ensures(self, model: ir.Model) -> None:
        if KEPT_INDICES not in {value.name for value in model.graph.outputs}:
            raise RewriteError(f"the select pass left no output '{KEPT_INDICES}' in the graph")


def _highest(builder: GraphBuilder, scores: ir.Value, count: ir.Value, sizes: tuple[Dim, ...]) -> ir.Value:
    """int64 [images, count]: positions of the highest scores, ascending."""
    _, best = builder.ops(
        "TopK",
        [scores, count],
        [Made("best_scores", _FLOAT, sizes), Made("best", _INT64, sizes)],
        {"axis": 1, "largest": 1, "sorted": 1},
    )
    ascending, _ = builder.ops(
        "TopK",
        [best, count],
        [Made("ascending", _INT64, sizes), Made("ascending_order", _INT64, sizes)],
        {"axis": 1, "largest": 0, "sorted": 1},
    )
    return ascending


def _rows(builder: GraphBuilder, scores: ir.Value, num_keep: ir.Value, grid: tuple[int, int]) -> ir.Value:
    """int64 [images, kept]: y * C + (0..C-1) for the best rows y."""
    rows, columns = grid
    images = (dims(scores) or (None,))[0]
    on_grid = builder.op(
        "Reshape",
        [scores, builder.ints("grid", [-1, rows, columns])],
        Made("grid_scores", _FLOAT, (images, rows, columns)),
    )
    means = builder.mean(on_grid, 2, Made("row_scores", _FLOAT, (images, rows)))
    width = builder.ints("columns", [columns])
    count = builder.op("Div", [num_keep, width], Made("kept_grid_rows", _INT64, (1,)))
    best = _highest(builder, means, count, (images, "kept_grid_rows"))
    first = builder.op("Mul", [best, width], Made("row_starts", _INT64, (images, "kept_grid_rows")))
    made = Made("row_starts_column", _INT64, (images, "kept_grid_rows", 1))
    column = builder.op("Unsqueeze", [first, builder.ints("axis", [2])], made)
    steps = builder.constant("row_steps", np.arange(columns, dtype=np.int64).reshape(1, 1, columns))
    every = builder.op(
        "Add", [column, steps], Made("row_tokens", _INT64, (images, "kept_grid_rows", columns))
    )
    return builder.op(
        "Reshape", [every, builder.ints("flat", [0, -1])], Made(KEPT_INDICES, _INT64, (images, "kept"))
    )
