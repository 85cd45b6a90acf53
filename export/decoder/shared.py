"""Cache kind `shared`: ONNX Runtime's GroupQueryAttention over one buffer that is past and present.

The operator writes the new rows behind the valid ones when both names are bound to the same memory, so
nothing is copied or allocated per token; bound to different buffers, it is the concatenation that other
hosts expect.
Source: contrib operator `com.microsoft.GroupQueryAttention` of ONNX Runtime.
"""

from __future__ import annotations

import onnx_ir as ir

from export.decoder.fuse import fuse_around_attention
from export.decoder.lowering import Attention, Builder, attentions, finish, put_in_place
from runtime import contract

__all__ = ["lower_shared"]

_DOMAIN = "com.microsoft"


def lower_shared(model: ir.Model, table: contract.GraphContract) -> None:
    """Replace every open attention in place; `table` is the contract of the finished graph."""
    graph = model.graph
    mask = next(value for value in graph.inputs if value.name == contract.ATTENTION_MASK)
    build = Builder(graph, "lengths")
    lengths = build.op("ReduceSum", mask, build.ints(1), keepdims=0)
    # The operator counts from the last valid key, and wants int32.
    last = build.op("Cast", build.op("Sub", lengths, build.ints(1)), to=ir.DataType.INT32)
    total = build.op("Cast", build.op("Squeeze", build.size(mask, 1)), to=ir.DataType.INT32)
    build.insert_before(graph[0])
    for attention in attentions(model):
        _lower(graph, attention, last, total)
    model.opset_imports[_DOMAIN] = 1
    fuse_around_attention(model)
    finish(model, table)


def _lower(graph: ir.Graph, attention: Attention, last: ir.Value, total: ir.Value) -> None:
    build = Builder(graph, f"attention_{attention.layer}")
    rows = build.ints(0, 0, -1)
    flat = [
        build.op("Reshape", build.op("Transpose", states, perm=[0, 2, 1, 3]), rows)
        for states in attention.states
    ]
    out, *present = build.ops(
        "GroupQueryAttention",
        *(*flat, *attention.past, last, total),
        outputs=3,
        domain=_DOMAIN,
        num_heads=attention.heads,
        kv_num_heads=attention.kv_heads,
        scale=attention.scale,
        softcap=attention.softcap,
        local_window_size=attention.window or -1,
    )
    out = build.op("Reshape", out, build.ints(0, 0, attention.heads, attention.head_dim))
    build.insert_before(attention.node)
    put_in_place(graph, attention, out, (present[0], present[1]))
