"""`row`: whole grid rows with the highest mean score."""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np
import onnx_ir as ir

from fopru_graph.builder import GraphBuilder, Made
from fopru_graph.errors import RewriteError
from fopru_graph.selectors.base import SelectContext, count_up, highest

__all__ = ["Row"]

_INT64 = ir.DataType.INT64
_FLOAT = ir.DataType.FLOAT


class Row:
    """The `num_keep / C` grid rows with the highest mean, ties to the upper row, all their tokens.

    The division drops a remainder: the host gives a multiple of C.
    """

    name: ClassVar[str] = "row"
    source: ClassVar[str] = (
        "FoPru, arXiv 2411.14164: rows of the image, which keep local information together"
    )
    needs_scores: ClassVar[bool] = True
    needs_grid: ClassVar[bool] = True
    needs_rows: ClassVar[bool] = False
    topk: ClassVar[Literal["tokens", "rows", "none"]] = "rows"

    def aggregation(self, special_tokens: int) -> str:
        del special_tokens
        return "col_mean"

    def select(self, context: SelectContext) -> ir.Value:
        """y * C + (0..C-1) for the best rows y."""
        if context.scores is None or context.grid is None:
            raise RewriteError(f"selector '{self.name}' was given no scores, or no grid")
        builder, images = context.builder, context.images
        shape, width, steps = _grid(builder, context.grid)
        rows, columns = context.grid if isinstance(context.grid, tuple) else ("grid_rows", "grid_columns")
        on_grid = builder.op(
            "Reshape", [context.scores, shape], Made("grid_scores", _FLOAT, (images, rows, columns))
        )
        means = builder.mean(on_grid, 2, Made("row_scores", _FLOAT, (images, rows)))
        count = builder.op("Div", [context.num_keep, width], Made("kept_grid_rows", _INT64, (1,)))
        best = highest(builder, means, count, (images, "kept_grid_rows"))
        first = builder.op("Mul", [best, width], Made("row_starts", _INT64, (images, "kept_grid_rows")))
        made = Made("row_starts_column", _INT64, (images, "kept_grid_rows", 1))
        column = builder.op("Unsqueeze", [first, builder.ints("axis", [2])], made)
        every = builder.op(
            "Add", [column, steps], Made("row_tokens", _INT64, (images, "kept_grid_rows", columns))
        )
        return builder.op(
            "Reshape", [every, builder.ints("flat", [0, -1])], Made("row_indices", _INT64, (images, "kept"))
        )


def _grid(builder: GraphBuilder, grid: tuple[int, int] | ir.Value) -> tuple[ir.Value, ir.Value, ir.Value]:
    """Target shape (-1, R, C) of the scores, C as int64 [1], and 0..C-1 as int64 [1, 1, C]."""
    if isinstance(grid, tuple):
        rows, columns = grid
        steps = np.arange(columns, dtype=np.int64).reshape(1, 1, columns)
        return (
            builder.ints("grid", [-1, rows, columns]),
            builder.ints("columns", [columns]),
            builder.constant("row_steps", steps),
        )
    every = builder.ints("every", [-1])
    shape = builder.op("Concat", [every, grid], Made("grid_shape", _INT64, (3,)), {"axis": 0})
    width = builder.slice(grid, 0, (1, 2), Made("columns", _INT64, (1,)))
    steps_1d = count_up(builder, width, "steps")
    target = builder.ints("row_steps_shape", [1, 1, -1])
    return shape, width, builder.op("Reshape", [steps_1d, target], Made("row_steps", _INT64, (1, 1, None)))
