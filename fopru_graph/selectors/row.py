"""`row`: whole grid rows with the highest mean score."""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np
import onnx_ir as ir

from fopru_graph.builder import GraphBuilder, Made
from fopru_graph.errors import RewriteError
from fopru_graph.selectors.base import SelectContext, count_up, highest
from fopru_graph.shapes import Dim, dims

__all__ = ["Row"]

_INT64 = ir.DataType.INT64
_FLOAT = ir.DataType.FLOAT
_BOOL = ir.DataType.BOOL


class Row:
    """The `num_keep / C` grid rows with the highest mean, ties to the upper row, all their tokens.

    The division drops a remainder: the host gives a multiple of C. Under a mask the mean is over the tokens
    that it shows; a row without any is behind all others.
    """

    name: ClassVar[str] = "row"
    source: ClassVar[str] = (
        "FoPru, arXiv 2411.14164: rows of the image, which keep local information together"
    )
    needs_scores: ClassVar[bool] = True
    needs_grid: ClassVar[bool] = True
    needs_rows: ClassVar[bool] = False
    takes_mask: ClassVar[bool] = True
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
        sizes: tuple[Dim, ...] = (images, rows, columns)
        on_grid = builder.op("Reshape", [context.scores, shape], Made("grid_scores", _FLOAT, sizes))
        if context.mask is None:
            means = builder.mean(on_grid, 2, Made("row_scores", _FLOAT, (images, rows)))
        else:
            on_mask = builder.op("Reshape", [context.mask, shape], Made("grid_mask", _BOOL, sizes))
            means = _means_of_seen(builder, on_grid, on_mask)
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
    """Target shape (images, R, C) of the scores, C as int64 [1], and 0..C-1 as int64 [1, 1, C]."""
    if isinstance(grid, tuple):
        rows, columns = grid
        steps = np.arange(columns, dtype=np.int64).reshape(1, 1, columns)
        return (
            builder.ints("grid", [-1, rows, columns]),
            builder.ints("columns", [columns]),
            builder.constant("row_steps", steps),
        )
    # 0 keeps the number of images: with -1, a grid of half the tokens would make two images of one.
    same = builder.ints("same", [0])
    shape = builder.op("Concat", [same, grid], Made("grid_shape", _INT64, (3,)), {"axis": 0})
    width = builder.slice(grid, 0, (1, 2), Made("columns", _INT64, (1,)))
    steps_1d = count_up(builder, width, "steps")
    target = builder.ints("row_steps_shape", [1, 1, -1])
    return shape, width, builder.op("Reshape", [steps_1d, target], Made("row_steps", _INT64, (1, 1, None)))


def _means_of_seen(builder: GraphBuilder, scores: ir.Value, mask: ir.Value) -> ir.Value:
    """float32 [images, R]: mean over the columns that the mask shows, -1 where it shows none."""
    sizes = dims(scores) or ()
    made = Made("row_scores", _FLOAT, sizes[:2])
    zero, one, hidden = (
        builder.constant(name, np.asarray(at, np.float32))
        for name, at in (("zero", 0), ("one", 1), ("hidden", -1))
    )
    columns = builder.ints("axis", [2])
    shown = builder.op("Where", [mask, scores, zero], Made("shown_scores", _FLOAT, sizes))
    total = builder.op("ReduceSum", [shown, columns], made, {"keepdims": 0})
    count = builder.op("ReduceSum", [builder.cast(mask, _FLOAT), columns], made, {"keepdims": 0})
    mean = builder.op("Div", [total, builder.op("Max", [count, one], made)], made)
    some = builder.op("Greater", [count, zero], Made("row_is_seen", _BOOL, sizes[:2]))
    return builder.op("Where", [some, mean, hidden], made)
