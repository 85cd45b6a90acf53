"""`uniform_grid`: evenly spread over the rows and columns of a grid."""

from __future__ import annotations

from typing import ClassVar, Literal

import onnx_ir as ir

from fopru_graph.builder import GraphBuilder, Made
from fopru_graph.errors import RewriteError
from fopru_graph.selectors.base import SelectContext, count_up, same_for_all
from fopru_graph.shapes import Dim

__all__ = ["UniformGrid"]

_INT64 = ir.DataType.INT64


class UniformGrid:
    """K tokens on m evenly spread rows of an R x C grid, each row evenly filled; all in int64.

    1. m is sqrt(K R / C) rounded half up, so that cells are nearly square, then held to
       max(1, ceil(K / C)) <= m <= K.
    2. Row number r = 0..m-1 is y = ((2r + 1) R) // (2m), with k = ((r + 1) K) // m - (r K) // m tokens.
    3. Token number t of a row is x = ((2t + 1) C) // (2k).

    ceil(K / C) <= R, and rounding never passes R, so m <= R and k <= C: rows and columns strictly increase,
    and there are exactly K tokens for every 1 <= K <= N. Columns start anew in each row.
    """

    name: ClassVar[str] = "uniform_grid"
    source: ClassVar[str] = "baseline: a lattice on the grid"
    needs_scores: ClassVar[bool] = False
    needs_grid: ClassVar[bool] = True
    needs_rows: ClassVar[bool] = False
    takes_mask: ClassVar[bool] = False
    topk: ClassVar[Literal["tokens", "rows", "none"]] = "none"

    def aggregation(self, special_tokens: int) -> str:
        del special_tokens
        return "col_mean"

    def select(self, context: SelectContext) -> ir.Value:
        if context.grid is None:
            raise RewriteError(f"selector '{self.name}' was given no grid")
        one, many = _Integers(context.builder, 1), _Integers(context.builder, "kept")
        unit, keep = one.constant(1), context.num_keep
        height, width = _sides(context)
        used = _used_rows(one, keep, height, width)
        number = count_up(context.builder, keep, "number")
        # Token number s lies in row ceil((s + 1) m / K) - 1.
        passed = many.mul(many.add(number, unit), used)
        row = many.div(many.sub(passed, unit), keep)
        start = many.div(many.mul(row, keep), used)
        end = many.div(many.mul(many.add(row, unit), keep), used)
        y = many.middle(row, height, used)
        x = many.middle(many.sub(number, start), width, many.sub(end, start))
        return same_for_all(context, many.add(many.mul(y, width), x))


class _Integers:
    """Arithmetic on int64 vectors of one length."""

    def __init__(self, builder: GraphBuilder, length: Dim) -> None:
        self.builder = builder
        self._length = length
        self._one = builder.ints("one", [1])

    def constant(self, number: int) -> ir.Value:
        return self.builder.ints("number", [number])

    def add(self, left: ir.Value, right: ir.Value) -> ir.Value:
        return self.apply("Add", left, right)

    def sub(self, left: ir.Value, right: ir.Value) -> ir.Value:
        return self.apply("Sub", left, right)

    def mul(self, left: ir.Value, right: ir.Value) -> ir.Value:
        return self.apply("Mul", left, right)

    def div(self, left: ir.Value, right: ir.Value) -> ir.Value:
        return self.apply("Div", left, right)

    def middle(self, step: ir.Value, size: ir.Value, count: ir.Value) -> ir.Value:
        """((2 step + 1) size) // (2 count)."""
        odd = self.add(self.add(step, step), self._one)
        return self.div(self.mul(odd, size), self.add(count, count))

    def apply(self, op_type: str, left: ir.Value, right: ir.Value) -> ir.Value:
        return self.builder.op(op_type, [left, right], Made(op_type.lower(), _INT64, (self._length,)))


def _sides(context: SelectContext) -> tuple[ir.Value, ir.Value]:
    """R and C, int64 [1] each."""
    builder, grid = context.builder, context.grid
    if isinstance(grid, tuple):
        return builder.ints("rows", [grid[0]]), builder.ints("columns", [grid[1]])
    if grid is None:
        raise RewriteError("there is no grid to take the sides of")
    made = [Made(name, _INT64, (1,)) for name in ("rows", "columns")]
    return builder.slice(grid, 0, (0, 1), made[0]), builder.slice(grid, 0, (1, 2), made[1])


def _used_rows(one: _Integers, keep: ir.Value, height: ir.Value, width: ir.Value) -> ir.Value:
    """m as int64 [1]. The rounded root is the number of j in 1..R with (2j - 1)^2 C <= 4 K R."""
    builder, unit = one.builder, one.constant(1)
    every = _Integers(builder, "grid_rows")
    zero_based = count_up(builder, height, "zero_based")
    odd = every.add(every.add(zero_based, zero_based), unit)
    needed = every.mul(every.mul(odd, odd), width)
    limit = one.mul(one.mul(one.constant(4), keep), height)
    more = builder.op("Greater", [needed, limit], Made("beyond", ir.DataType.BOOL, ("grid_rows",)))
    beyond = builder.cast(more, _INT64)
    count = builder.op(
        "ReduceSum", [beyond, builder.ints("axis", [0])], Made("beyond_count", _INT64, (1,)), {"keepdims": 1}
    )
    root = one.sub(height, count)
    least = one.div(one.sub(one.add(keep, width), unit), width)
    return one.apply("Min", one.apply("Max", root, least), keep)
