"""Column means of softmax(Q K^T), a block of queries at a time: no tensor has both all queries and all keys.

FoPru specification, section 9. Exact up to the order of summation: each block has complete rows.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from fopru_graph.attention import AttentionCore, key_operand
from fopru_graph.builder import GraphBuilder, Made
from fopru_graph.loop import LoopBody
from fopru_graph.scoring.choice import Choice
from fopru_graph.scoring.rows import QueryRange
from fopru_graph.scoring.side_branch import Site, probabilities
from fopru_graph.shapes import Dim, dims, same

__all__ = ["chunked_means"]

_INT64 = ir.DataType.INT64
_FLOAT = ir.DataType.FLOAT


@dataclass(frozen=True)
class _Chunks:
    """int64 [1] each: Q, the number of averaged queries, how many make a chunk, how many chunks there are.

    `steps` is 0..chunk-1; `size` is the chunk as a number, None if the graph computes it.
    """

    queries: ir.Value
    averaged: ir.Value
    chunk: ir.Value
    trips: ir.Value
    steps: ir.Value
    size: int | None


def chunked_means(
    builder: GraphBuilder, core: AttentionCore, rows: QueryRange, choice: Choice, budget: int
) -> ir.Value:
    """float32 [B, H, 1, Q]: mean over the averaged queries, in a Loop over chunks of them.

    The last chunk is as long as the others: rows behind the last query repeat it, and count with weight 0.
    A chunk that the graph computes has at least one query, whatever the budget.
    """
    keys, key_axis = key_operand(core)
    queries = _size(builder, rows.queries, keys, key_axis)
    chunks = (
        _static_chunks(builder, rows, choice.chunk, queries)
        if choice.chunk
        else _dynamic_chunks(builder, rows, queries, budget // choice.query_bytes)
    )
    sums = _loop(builder, core, rows, chunks)
    count = builder.cast(chunks.averaged, _FLOAT)
    return builder.op("Div", [sums, count], Made("column_means", _FLOAT, dims(sums) or ()))


def _static_chunks(builder: GraphBuilder, rows: QueryRange, chunk: int, queries: ir.Value) -> _Chunks:
    averaged = int(rows.count or 0)
    return _Chunks(
        queries=queries,
        averaged=builder.ints("averaged", [averaged]),
        chunk=builder.ints("chunk", [chunk]),
        trips=builder.ints("chunks", [-(-averaged // chunk)]),
        steps=builder.ints("chunk_steps", list(range(chunk))),
        size=chunk,
    )


def _dynamic_chunks(builder: GraphBuilder, rows: QueryRange, queries: ir.Value, per_image: int) -> _Chunks:
    """The longest chunk that fits is per_image / Q queries; then chunks are made equal."""

    def int64(op_type: str, name: str, left: ir.Value, right: ir.Value) -> ir.Value:
        return builder.op(op_type, [left, right], Made(name, _INT64, (1,)))

    def ceil_div(name: str, left: ir.Value, right: ir.Value) -> ir.Value:
        return int64("Div", name, int64("Sub", name, int64("Add", name, left, right), one), right)

    one = builder.ints("one", [1])
    averaged = queries
    if rows.start:
        averaged = int64("Sub", "averaged", queries, builder.ints("start", [rows.start]))
    longest = int64("Div", "longest", builder.ints("chunk_limit", [per_image]), queries)
    longest = int64("Min", "longest", int64("Max", "longest", longest, one), averaged)
    trips = ceil_div("chunks", averaged, longest)
    chunk = ceil_div("chunk", averaged, trips)
    end = builder.op("Squeeze", [chunk, builder.ints("axis", [0])], Made("chunk_end", _INT64, ()))
    bounds = [builder.scalar("zero", 0), end, builder.scalar("one", 1)]
    steps = builder.op("Range", bounds, Made("chunk_steps", _INT64, (None,)))
    return _Chunks(queries, averaged, chunk, trips, steps, None)


def _loop(builder: GraphBuilder, core: AttentionCore, rows: QueryRange, chunks: _Chunks) -> ir.Value:
    """float32 [B, H, 1, Q]: sums over the averaged queries."""
    body = LoopBody(builder, "score")
    start = body.op("Mul", [body.step, chunks.chunk], Made("chunk_start", _INT64, (1,)))
    every = body.op("Add", [start, chunks.steps], Made("chunk_queries", _INT64, (chunks.size,)))
    taken = _ChunkRows(builder, body, rows, every, chunks)
    result = probabilities(core, Site(builder, body, taken))
    images, heads, _, keys = dims(result) or (None,) * 4
    made = Made("chunk_sums", _FLOAT, (images, heads, 1, keys))
    state = body.state(_zeros(builder, core, made.dims, chunks), Made("sums_so_far", _FLOAT, made.dims))
    sums = body.op("MatMul", [taken.weights(), result], made)
    total = body.op("Add", [state, sums], Made("sums", _FLOAT, made.dims))
    trips = builder.op("Squeeze", [chunks.trips, builder.ints("axis", [0])], Made("chunks", _INT64, ()))
    return body.run(trips, [total])[0]


def _zeros(builder: GraphBuilder, core: AttentionCore, sizes: tuple[Dim, ...], chunks: _Chunks) -> ir.Value:
    keys, _ = key_operand(core)
    middle = builder.ints("heads", [int(sizes[1] or 0), 1])
    parts = [_size(builder, sizes[0], keys, 0), middle, chunks.queries]
    shape = builder.op("Concat", parts, Made("sums_shape", _INT64, (4,)), {"axis": 0})
    return builder.op("ConstantOfShape", [shape], Made("no_sums", _FLOAT, sizes))


def _size(builder: GraphBuilder, size: Dim, value: ir.Value, axis: int) -> ir.Value:
    """int64 [1]: a size, read at run time where it varies."""
    return builder.ints("size", [size]) if isinstance(size, int) else builder.size_1d(value, axis)


class _ChunkRows:
    """Rows of one chunk, by Gather inside the loop."""

    def __init__(
        self, builder: GraphBuilder, body: GraphBuilder, rows: QueryRange, every: ir.Value, chunks: _Chunks
    ) -> None:
        self._builder = builder
        self._body = body
        self._rows = rows
        self._every = every
        self._chunks = chunks
        if rows.start:
            offset = builder.ints("offset", [rows.start])
            every = body.op("Add", [every, offset], Made("chunk_rows", _INT64, (chunks.size,)))
        self._positions = self._clamped(every, chunks.queries)

    @property
    def count(self) -> Dim:
        return self._chunks.size

    def take(self, value: ir.Value, axis: int) -> ir.Value:
        sizes = list(dims(value) or ())
        if sizes[axis] == 1:
            return value
        positions = self._positions
        if not same(sizes[axis], self._rows.queries):  # a mask whose one row may stand for all
            positions = self._clamped(positions, self._builder.size_1d(value, axis))
        sizes[axis] = self.count
        made = Made("score_rows", value.dtype or _FLOAT, tuple(sizes))
        return self._body.op("Gather", [value, positions], made, {"axis": axis})

    def weights(self) -> ir.Value:
        """float32 [1, chunk]: 1 for a query, 0 for a repetition of the last one."""
        made = Made("is_query", ir.DataType.BOOL, (self.count,))
        flags = self._body.op("Less", [self._every, self._chunks.averaged], made)
        numbers = self._body.cast(flags, _FLOAT)
        axis = self._builder.ints("axis", [0])
        return self._body.op("Unsqueeze", [numbers, axis], Made("weights", _FLOAT, (1, self.count)))

    def _clamped(self, positions: ir.Value, size: ir.Value) -> ir.Value:
        last = self._builder.op("Sub", [size, self._builder.ints("one", [1])], Made("last", _INT64, (1,)))
        return self._body.op("Min", [positions, last], Made("clamped", _INT64, (self.count,)))
