"""`random`: a seeded subset, the same on every runtime."""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np
import onnx_ir as ir

from fopru_graph.builder import GraphBuilder, Made
from fopru_graph.selectors.base import SelectContext, every_token, highest, same_for_all

__all__ = ["MODULUS", "Random"]

_INT64 = ir.DataType.INT64
_FLOAT = ir.DataType.FLOAT

MODULUS = 16777199
"""The largest prime below 2^24 that is 2 modulo 3: float32 holds every residue, and cubing permutes them."""
ROUNDS = 4


class Random:
    """The K positions with the highest keys; a key is a permutation of 0..MODULUS-1 made from the seed.

    x <- (x + c)^3 modulo MODULUS, four rounds, the constants c drawn from the seed when the graph is made. It
    permutes, so that no two tokens have one key. Integers stay below 2^50: exact in int64. The pattern
    depends on seed, N and K only: every image of a batch has the same.
    """

    name: ClassVar[str] = "random"
    source: ClassVar[str] = "baseline: a seeded subset, the same for every image"
    needs_scores: ClassVar[bool] = False
    needs_grid: ClassVar[bool] = False
    needs_rows: ClassVar[bool] = False
    takes_mask: ClassVar[bool] = False
    topk: ClassVar[Literal["tokens", "rows", "none"]] = "tokens"

    def aggregation(self, special_tokens: int) -> str:
        del special_tokens
        return "col_mean"

    def select(self, context: SelectContext) -> ir.Value:
        builder = context.builder
        constants = _constants(context.seed)
        keys = every_token(context)
        for constant in constants:
            keys = _round(builder, keys, constant, context)
        numbers = builder.cast(keys, _FLOAT)
        axis = builder.ints("axis", [0])
        scores = builder.op("Unsqueeze", [numbers, axis], Made("keys", _FLOAT, (1, context.tokens)))
        return same_for_all(context, highest(builder, scores, context.num_keep, (1, "kept")))


def _constants(seed: int) -> list[int]:
    words = np.random.SeedSequence(seed).generate_state(ROUNDS, dtype=np.uint64)
    return [int(word % np.uint64(MODULUS)) for word in words]


def _round(builder: GraphBuilder, keys: ir.Value, constant: int, context: SelectContext) -> ir.Value:
    def int64(op_type: str, left: ir.Value, right: ir.Value) -> ir.Value:
        return builder.op(op_type, [left, right], Made(op_type.lower(), _INT64, (context.tokens,)))

    modulus = builder.ints("modulus", [MODULUS])
    moved = int64("Add", keys, builder.ints("round_constant", [constant]))
    squared = int64("Mod", int64("Mul", moved, moved), modulus)
    return int64("Mod", int64("Mul", squared, moved), modulus)
