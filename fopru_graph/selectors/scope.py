"""`scope`: greedy coverage of the image, weighted by attention (SCOPE)."""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np
import onnx_ir as ir

from fopru_graph.builder import GraphBuilder, Made
from fopru_graph.errors import RewriteError
from fopru_graph.loop import LoopBody
from fopru_graph.selectors.base import SelectContext, every_token, highest
from fopru_graph.shapes import Dim, dims

__all__ = ["Scope"]

_INT64 = ir.DataType.INT64
_FLOAT = ir.DataType.FLOAT
_TINY = 1e-12  # length of a row of zeros, which then is like no other


class Scope:
    """K times the token that adds most: a_j sum_i max(0, cos(i, j) - max over picked s of cos(i, s)).

    a is CLS attention, or the mean over all queries without a class token; the paper's exponent alpha is 1,
    in its scripts too. The maximum over no token is 0. Ties go to the lower position. Everything is float32;
    a turn reads the N x N cosines once, O(K N^2) in all. The states of the Loop keep their shapes: what each
    token is covered by, and which are picked; the picked positions come out of a TopK. A token that a mask
    hides is neither picked nor left to be covered.
    """

    name: ClassVar[str] = "scope"
    source: ClassVar[str] = "SCOPE, arXiv 2510.24214: greedy coverage weighted by attention"
    needs_scores: ClassVar[bool] = True
    needs_grid: ClassVar[bool] = False
    needs_rows: ClassVar[bool] = True
    takes_mask: ClassVar[bool] = True
    topk: ClassVar[Literal["tokens", "rows", "none"]] = "tokens"

    def aggregation(self, special_tokens: int) -> str:
        return "cls" if special_tokens else "col_mean"

    def select(self, context: SelectContext) -> ir.Value:
        if context.scores is None or context.rows is None:
            raise RewriteError(f"selector '{self.name}' was given no scores, or no rows to compare")
        builder = context.builder
        axis = builder.ints("axis", [0])
        turns = builder.op("Squeeze", [context.num_keep, axis], Made("turns", _INT64, ()))
        picked = _pick(context, context.scores, _cosines(context, context.rows), turns)
        return highest(builder, picked, context.num_keep, (context.images, "kept"))


def _cosines(context: SelectContext, rows: ir.Value) -> ir.Value:
    """float32 [images, N, N]."""
    builder, images, tokens = context.builder, context.images, context.tokens
    rows = builder.cast(rows, _FLOAT)
    sizes = (images, tokens, (dims(rows) or (None, None, None))[2])
    squares = builder.op("Mul", [rows, rows], Made("squares", _FLOAT, sizes))
    made = Made("squared_length", _FLOAT, (images, tokens, 1))
    summed = builder.op("ReduceSum", [squares, builder.ints("axis", [2])], made, {"keepdims": 1})
    length = builder.op("Sqrt", [summed], Made("length", _FLOAT, (images, tokens, 1)))
    tiny = builder.constant("tiny", np.asarray(_TINY, dtype=np.float32))
    length = builder.op("Max", [length, tiny], Made("length", _FLOAT, (images, tokens, 1)))
    unit = builder.op("Div", [rows, length], Made("unit_rows", _FLOAT, sizes))
    turned = Made("unit_columns", _FLOAT, (images, sizes[2], tokens))
    columns = builder.op("Transpose", [unit], turned, {"perm": [0, 2, 1]})
    return builder.op("MatMul", [unit, columns], Made("cosines", _FLOAT, (images, tokens, tokens)))


def _pick(context: SelectContext, scores: ir.Value, cosines: ir.Value, turns: ir.Value) -> ir.Value:
    """float32 [images, N]: 1 for each of the picked tokens, else 0."""
    builder, images, tokens = context.builder, context.images, context.tokens
    flags: tuple[Dim, ...] = (images, tokens)
    row: tuple[Dim, ...] = (images, 1, tokens)
    every = every_token(context)
    flat = builder.op(
        "Reshape",
        [cosines, _joined(builder, [builder.ints("every", [-1]), context.count_tokens()])],
        Made("flat_cosines", _FLOAT, (None, tokens)),
    )
    starts = _image_starts(context)

    body = LoopBody(builder, "select")
    covered = body.state(_covered_before(context), Made("covered", _FLOAT, row))
    picked = body.state(_zeros(context, []), Made("picked", _FLOAT, flags))
    left = body.op("Sub", [cosines, covered], Made("uncovered", _FLOAT, (images, tokens, tokens)))
    gained = body.op("Relu", [left], Made("gained", _FLOAT, (images, tokens, tokens)))
    axis = body.ints("axis", [2])
    gains = body.op("ReduceSum", [gained, axis], Made("gains", _FLOAT, flags), {"keepdims": 0})
    weighted = body.op("Mul", [gains, scores], Made("weighted_gains", _FLOAT, flags))
    done = body.cast(picked, ir.DataType.BOOL)
    out = body.constant("never", np.asarray(-1, dtype=np.float32))
    if context.mask is not None:
        weighted = body.op("Where", [context.mask, weighted, out], Made("seen_gains", _FLOAT, flags))
    free = body.op("Where", [done, out, weighted], Made("free_gains", _FLOAT, flags))
    chosen = {"axis": 1, "keepdims": 1, "select_last_index": 0}
    best = body.op("ArgMax", [free], Made("best", _INT64, (images, 1)), chosen)
    at = body.op("Add", [best, starts], Made("best_rows", _INT64, (images, 1)))
    nearness = body.op("Gather", [flat, at], Made("nearness", _FLOAT, row), {"axis": 0})
    now_covered = body.op("Max", [covered, nearness], Made("now_covered", _FLOAT, row))
    hit = body.op("Equal", [every, best], Made("hit", ir.DataType.BOOL, flags))
    now_picked = body.op("Max", [picked, body.cast(hit, _FLOAT)], Made("now_picked", _FLOAT, flags))
    return body.run(turns, [now_covered, now_picked])[1]


def _covered_before(context: SelectContext) -> ir.Value:
    """float32 [images, 1, N]: 0, and 2 for a hidden token: no cosine is above it, so nobody gains there."""
    zeros = _zeros(context, [1])
    if context.mask is None:
        return zeros
    builder, sizes = context.builder, (context.images, 1, context.tokens)
    two = builder.constant("covered", np.asarray(2, dtype=np.float32))
    made = Made("mask_row", ir.DataType.BOOL, sizes)
    shown = builder.op("Unsqueeze", [context.mask, builder.ints("axis", [1])], made)
    return builder.op("Where", [shown, zeros, two], Made("covered_before", _FLOAT, sizes))


def _zeros(context: SelectContext, middle: list[int]) -> ir.Value:
    """float32 [images, *middle, N]."""
    builder = context.builder
    parts = [context.count_images(), builder.ints("middle", middle), context.count_tokens()]
    shape = _joined(builder, parts if middle else [parts[0], parts[2]])
    sizes: tuple[Dim, ...] = (context.images, *middle, context.tokens)
    return builder.op("ConstantOfShape", [shape], Made("zeros", _FLOAT, sizes))


def _image_starts(context: SelectContext) -> ir.Value:
    """int64 [images, 1]: 0, N, 2N, ..."""
    builder = context.builder
    if context.images == 1:
        return builder.constant("image_starts", np.zeros((1, 1), dtype=np.int64))
    axis = builder.ints("axis", [0])
    images, tokens = context.count_images(), context.count_tokens()
    total = builder.op("Mul", [images, tokens], Made("all_tokens", _INT64, (1,)))
    end = builder.op("Squeeze", [total, axis], Made("starts_end", _INT64, ()))
    step = builder.op("Squeeze", [tokens, axis], Made("starts_step", _INT64, ()))
    starts = builder.op("Range", [builder.scalar("zero", 0), end, step], Made("starts", _INT64, (None,)))
    shape = builder.ints("column", [-1, 1])
    return builder.op("Reshape", [starts, shape], Made("image_starts", _INT64, (context.images, 1)))


def _joined(builder: GraphBuilder, parts: list[ir.Value]) -> ir.Value:
    """One int64 vector of vectors of one number each."""
    return builder.op("Concat", parts, Made("joined", _INT64, (len(parts),)), {"axis": 0})
