"""Which queries are averaged, and how their rows are taken from a tensor that has all of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import onnx_ir as ir

from fopru_graph.builder import GraphBuilder, Made
from fopru_graph.shapes import INT64_MAX, Dim, dims, same

__all__ = ["QueryRange", "Rows", "SlicedRows", "query_range"]


@dataclass(frozen=True)
class QueryRange:
    """Queries `start` to `end` of `queries`; `end` None: all to the last one."""

    start: int
    end: int | None
    queries: Dim

    @property
    def whole(self) -> bool:
        return (self.start, self.end) == (0, None)

    @property
    def count(self) -> Dim:
        """How many; None where the number has no name."""
        if self.end is not None:
            return self.end - self.start
        if not self.start:
            return self.queries
        return self.queries - self.start if isinstance(self.queries, int) else None


def query_range(aggregation: str, special: int, queries: Dim) -> QueryRange:
    """Queries that an aggregation averages over, of an encoder with that many special rows."""
    bounds = {"col_mean": (0, None), "col_mean_patch": (special, None), "cls": (0, 1), "cls_sum": (0, 1)}
    start, end = bounds[aggregation]
    return QueryRange(start, end, queries)


class Rows(Protocol):
    """Takes rows of the averaged queries; `count` is how many at a time."""

    @property
    def count(self) -> Dim: ...

    def take(self, value: ir.Value, axis: int) -> ir.Value:
        """Rows of a value that has all queries, or one row that stands for them, on `axis`."""


class SlicedRows:
    """All averaged queries at once."""

    def __init__(self, builder: GraphBuilder, chosen: QueryRange) -> None:
        self._builder = builder
        self._chosen = chosen

    @property
    def count(self) -> Dim:
        return self._chosen.count

    def take(self, value: ir.Value, axis: int) -> ir.Value:
        sizes = list(dims(value) or ())
        if self._chosen.whole or sizes[axis] == 1:
            return value
        start, end = self._chosen.start, self._chosen.end
        certain = same(sizes[axis], self._chosen.queries)
        sizes[axis] = self.count if certain else None
        made = Made("score_rows", value.dtype or ir.DataType.FLOAT, tuple(sizes))
        if certain or not start:
            return self._builder.slice(value, axis, (start, end), made)
        first = _no_further(self._builder, self._builder.ints("start", [start]), (value, axis))
        bounds = [first, self._builder.ints("end", [INT64_MAX]), self._builder.ints("axis", [axis])]
        return self._builder.op("Slice", [value, *bounds], made)


def _no_further(builder: GraphBuilder, position: ir.Value, rows: tuple[ir.Value, int]) -> ir.Value:
    """int64 [1]: a position, but no row behind the last one: a mask may have one row for all queries."""
    made = Made("row", ir.DataType.INT64, (1,))
    last = builder.op("Sub", [builder.size_1d(*rows), builder.ints("one", [1])], made)
    return builder.op("Min", [position, last], made)
