"""`uniform`: evenly spread in reading order."""

from __future__ import annotations

from typing import ClassVar, Literal

import onnx_ir as ir

from fopru_graph.builder import Made
from fopru_graph.selectors.base import SelectContext, count_up, same_for_all

__all__ = ["Uniform"]

_INT64 = ir.DataType.INT64


class Uniform:
    """The middle of each of K equal stretches: i_t = ((2t + 1) N) // (2K), t = 0..K-1, in int64.

    Strictly increasing for K <= N. On a grid it may fall on one column: K = R of R x C takes column C // 2.
    """

    name: ClassVar[str] = "uniform"
    source: ClassVar[str] = "baseline: every N/K-th token in reading order"
    needs_scores: ClassVar[bool] = False
    needs_grid: ClassVar[bool] = False
    needs_rows: ClassVar[bool] = False
    takes_mask: ClassVar[bool] = False
    topk: ClassVar[Literal["tokens", "rows", "none"]] = "none"

    def aggregation(self, special_tokens: int) -> str:
        del special_tokens
        return "col_mean"

    def select(self, context: SelectContext) -> ir.Value:
        builder = context.builder

        def int64(op_type: str, name: str, left: ir.Value, right: ir.Value) -> ir.Value:
            return builder.op(op_type, [left, right], Made(name, _INT64, ("kept",)))

        steps = count_up(builder, context.num_keep, "steps")
        odd = int64("Add", "odd", int64("Add", "even", steps, steps), builder.ints("one", [1]))
        scaled = int64("Mul", "scaled", odd, context.count_tokens())
        twice = builder.op("Add", [context.num_keep, context.num_keep], Made("twice_keep", _INT64, (1,)))
        return same_for_all(context, int64("Div", "uniform", scaled, twice))
