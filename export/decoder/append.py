"""Cache kind `append`: standard operators, and only the new rows as outputs.

The cache is time-major, [batch, past, kv_heads, head_dim], so what the graph returns belongs right behind
what it was given: the host binds the output there, and no row is ever moved. Scores of past and new keys are
computed apart and joined before the softmax, which makes a copy of [queries, total] scores and none of the
cache. Query heads of one key/value head are folded into rows of one matrix product instead of repeating the
keys for each of them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from export.decoder.lowering import Attention, Builder, attentions, finish, put_in_place
from runtime import contract

__all__ = ["lower_append"]

_NEVER = np.finfo(np.float32).min  # not -inf: a row without a key to look at stays a number


@dataclass(frozen=True)
class _Lengths:
    """What every layer needs once: int64 [1] each, and int64 [2] of both parts."""

    seq: ir.Value
    total: ir.Value
    parts: ir.Value


def lower_append(model: ir.Model, table: contract.GraphContract) -> None:
    """Replace every open attention in place; `table` is the contract of the finished graph."""
    graph = model.graph
    inputs = {value.name: value for value in graph.inputs}
    open_attentions = list(attentions(model))
    build = Builder(graph, "mask")
    seq = build.size(inputs[contract.INPUTS_EMBEDS], 1)
    total = build.size(inputs[contract.ATTENTION_MASK], 1)
    past = build.op("Sub", total, seq)
    lengths = _Lengths(seq, total, build.op("Concat", past, seq, axis=0))
    columns = build.op("Range", *(build.op("Squeeze", end) for end in (build.ints(0), total, build.ints(1))))
    rows = build.op(
        "Unsqueeze",
        build.op("Range", *(build.op("Squeeze", end) for end in (past, total, build.ints(1)))),
        build.ints(1),
    )
    real = build.op("Greater", inputs[contract.ATTENTION_MASK], build.constant(np.array(0, np.int64)))
    real = build.op("Unsqueeze", real, build.ints(1, 2, 3))  # [batch, 1, 1, 1, total]
    causal = build.op("And", build.op("LessOrEqual", columns, rows), real)
    masks = {
        window: _mask(build, causal, columns, rows, window)
        for window in sorted({a.window for a in open_attentions})
    }
    build.insert_before(graph[0])
    for attention in open_attentions:
        _lower(graph, attention, lengths, masks[attention.window])
    finish(model, table)


def _mask(build: Builder, causal: ir.Value, columns: ir.Value, rows: ir.Value, window: int) -> ir.Value:
    """What is added to the scores, float32 [batch, 1, 1, seq, total]; `window` 0 looks back without end."""
    if window:
        near = build.op("Greater", columns, build.op("Sub", rows, build.ints(window)))
        causal = build.op("And", causal, near)
    return build.op("Where", causal, build.constant(np.float32(0)), build.constant(np.float32(_NEVER)))


def _lower(graph: ir.Graph, attention: Attention, lengths: _Lengths, mask: ir.Value) -> None:
    build = Builder(graph, f"attention_{attention.layer}")
    (query, key, value), (past_key, past_value) = attention.states, attention.past
    heads, kv_heads = attention.heads, attention.kv_heads
    groups = heads // kv_heads

    query = build.op("Mul", query, build.constant(np.float32(attention.scale)))
    query = build.op("Reshape", query, build.ints(0, kv_heads, -1, attention.head_dim))  # rows: group x seq
    seen = build.op("MatMul", query, build.op("Transpose", past_key, perm=[0, 2, 3, 1]))
    new = build.op("MatMul", query, build.op("Transpose", key, perm=[0, 1, 3, 2]))
    scores = build.op("Concat", seen, new, axis=-1)
    if attention.softcap:
        cap = build.constant(np.float32(attention.softcap))
        scores = build.op("Mul", build.op("Tanh", build.op("Div", scores, cap)), cap)
    split = build.op("Concat", build.ints(0, kv_heads, groups), lengths.seq, lengths.total, axis=0)
    scores = build.op("Add", build.op("Reshape", scores, split), mask)
    weights = build.op("Softmax", scores, axis=-1)
    fold = build.op("Concat", build.ints(0, kv_heads, -1), lengths.total, axis=0)
    seen, new = build.ops("Split", build.op("Reshape", weights, fold), lengths.parts, outputs=2, axis=-1)
    seen = build.op("MatMul", seen, build.op("Transpose", past_value, perm=[0, 2, 1, 3]))
    out = build.op("Add", seen, build.op("MatMul", new, value))
    unfold = build.op("Concat", build.ints(0, heads), lengths.seq, build.ints(attention.head_dim), axis=0)
    out = build.op("Transpose", build.op("Reshape", out, unfold), perm=[0, 2, 1, 3])
    present = [build.op("Transpose", states, perm=[0, 2, 1, 3]) for states in (key, value)]
    build.insert_before(attention.node)
    put_in_place(graph, attention, out, (present[0], present[1]))
