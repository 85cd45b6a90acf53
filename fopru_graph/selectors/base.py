"""What a selector in the graph gets, and what it gives back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol

import numpy as np
import onnx_ir as ir

from fopru_graph.builder import GraphBuilder, Made
from fopru_graph.shapes import Dim

__all__ = ["SelectContext", "Selector", "count_up", "every_token", "highest", "same_for_all", "seen"]

_INT64 = ir.DataType.INT64
_FLOAT = ir.DataType.FLOAT


@dataclass(frozen=True)
class SelectContext:
    """What a selector may build on.

    Attributes:
        builder: adds nodes.
        scores: float32 [images, N], or None for a selector with `needs_scores = False`.
        num_keep: K, int64 [1]; 1 <= K <= N is the host's duty.
        images, tokens: B and N; names where they vary.
        keys: a tensor that has B on axis 0 and N * merge^2 + `first` rows on `key_axis`, and stays whole.
        grid: (R, C) with R * C = N; a graph input int64 [2] where the image size varies; or None.
        rows: float [images, N, D], the rows to compare, for a selector with `needs_rows = True`, else None.
        seed: >= 0.
        merge: s, where N tokens are made of s x s patches each.
        mask: bool [images, N], False for a token that must not be kept, for a selector with
            `takes_mask = True`; None: all may be.
    """

    builder: GraphBuilder
    scores: ir.Value | None
    num_keep: ir.Value
    images: Dim
    tokens: Dim
    keys: ir.Value
    key_axis: int
    first: int
    grid: tuple[int, int] | ir.Value | None
    rows: ir.Value | None
    seed: int
    merge: int = 1
    mask: ir.Value | None = None

    def count_images(self) -> ir.Value:
        """B as int64 [1]."""
        if isinstance(self.images, int):
            return self.builder.ints("images", [self.images])
        return self.builder.size_1d(self.keys, 0)

    def count_tokens(self) -> ir.Value:
        """N as int64 [1]."""
        builder = self.builder
        if isinstance(self.tokens, int):
            return builder.ints("tokens", [self.tokens])
        rows = builder.size_1d(self.keys, self.key_axis)
        made = Made("tokens", _INT64, (1,))
        if self.first:
            rows = builder.op("Sub", [rows, builder.ints("first", [self.first])], made)
        if self.merge == 1:
            return rows
        return builder.op("Div", [rows, builder.ints("patches_per_token", [self.merge**2])], made)


class Selector(Protocol):
    """One way to choose K of N tokens inside the graph: a file in this folder, an entry in `SELECTORS`.

    Attributes:
        name: what `--strategy` takes.
        source: the paper or the rule, in one line.
        needs_scores, needs_grid, needs_rows: what of the context it reads.
        takes_mask: whether it leaves out tokens that a mask hides.
        topk: what its TopK chooses from, for runtimes that limit it: tokens, grid rows, or no TopK at all.
    """

    name: ClassVar[str]
    source: ClassVar[str]
    needs_scores: ClassVar[bool]
    needs_grid: ClassVar[bool]
    needs_rows: ClassVar[bool]
    takes_mask: ClassVar[bool]
    topk: ClassVar[Literal["tokens", "rows", "none"]]

    def aggregation(self, special_tokens: int) -> str:
        """The aggregation it is published with, for an encoder with that many special tokens.

        Raises:
            OptionError: it means nothing for such an encoder.
        """

    def select(self, context: SelectContext) -> ir.Value:
        """int64 [images, K]: strictly increasing positions in 0..N-1."""


def seen(context: SelectContext, scores: ir.Value) -> ir.Value:
    """float32 [images, N]: the scores, and -1 where a mask hides a token; attention is never below 0."""
    if context.mask is None:
        return scores
    hidden = context.builder.constant("hidden", np.asarray(-1, dtype=np.float32))
    made = Made("seen_scores", _FLOAT, (context.images, context.tokens))
    return context.builder.op("Where", [context.mask, scores, hidden], made)


def highest(builder: GraphBuilder, scores: ir.Value, count: ir.Value, sizes: tuple[Dim, ...]) -> ir.Value:
    """int64 [images, count]: positions of the highest scores, ascending; ties to the lower position."""
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


def count_up(builder: GraphBuilder, count: ir.Value, hint: str) -> ir.Value:
    """int64 [count]: 0, 1, 2, ... for a count given as int64 [1]."""
    end = builder.op("Squeeze", [count, builder.ints("axis", [0])], Made(f"{hint}_end", _INT64, ()))
    bounds = [builder.scalar("zero", 0), end, builder.scalar("one", 1)]
    return builder.op("Range", bounds, Made(hint, _INT64, (None,)))


def every_token(context: SelectContext) -> ir.Value:
    """int64 [N]: 0..N-1, a constant where N is one."""
    if isinstance(context.tokens, int):
        return context.builder.constant("positions", np.arange(context.tokens, dtype=np.int64))
    return count_up(context.builder, context.count_tokens(), "positions")


def same_for_all(context: SelectContext, positions: ir.Value) -> ir.Value:
    """int64 [images, K]: positions int64 [K], repeated for every image."""
    builder = context.builder
    shape = builder.op(
        "Concat",
        [context.count_images(), builder.ints("one", [1])],
        Made("repeats", _INT64, (2,)),
        {"axis": 0},
    )
    return builder.op("Expand", [positions, shape], Made("chosen", _INT64, (context.images, "kept")))
