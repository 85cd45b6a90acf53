"""The decoder as most exporters write it: present = concat(past, new), a new tensor at every step.

What bundles of formats 1 and 2 held; kept here so that `bench.decoder` can tell what writing in place saves.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir

from export.checkpoint import load_model, load_processor, open_checkpoint
from export.decoder.lowering import Attention, Builder, attentions, finish, put_in_place
from export.pipeline import write_subgraph
from runtime import contract

__all__ = ["CONCAT_GRAPH", "write_concat_decoder"]

CONCAT_GRAPH = contract.DECODER


def write_concat_decoder(checkpoint: Path, root: Path, opset: int = 20) -> Path:
    """Write the decoder of a checkpoint to `root/onnx`, with weights of its own; returns the graph's path."""
    target = root / contract.graph_file(CONCAT_GRAPH)
    if target.is_file():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    opened = open_checkpoint(str(checkpoint))
    model, family = load_model(opened), opened.family
    info = family.decoder_info(model)
    layout = family.layout(model.config, load_processor(opened))
    graphs = family.subgraphs(model, layout, info)
    traced = next(graph for graph in graphs if graph.name == contract.DECODER)
    table = contract.decoder_contract(info, contract.CONCAT)
    lowered = {CONCAT_GRAPH: lambda graph: _lower_concat(graph, table)}
    write_subgraph(replace(traced, stored=(), lowered=lowered), root, opset)
    return target


def _lower_concat(model: ir.Model, table: contract.GraphContract) -> None:
    graph = model.graph
    inputs = {value.name: value for value in graph.inputs}
    build = Builder(graph, "mask")
    seq, total = build.size(inputs[contract.INPUTS_EMBEDS], 1), build.size(inputs[contract.ATTENTION_MASK], 1)
    columns = _counted(build, build.ints(0), total)
    rows = build.op("Unsqueeze", _counted(build, build.op("Sub", total, seq), total), build.ints(1))
    hidden = build.constant(np.float32(np.finfo(np.float32).min))
    mask = build.op("Where", build.op("LessOrEqual", columns, rows), build.constant(np.float32(0)), hidden)
    build.insert_before(graph[0])
    for attention in attentions(model):
        _lower(graph, attention, mask)
    finish(model, table)


def _counted(build: Builder, start: ir.Value, end: ir.Value) -> ir.Value:
    return build.op("Range", *(build.op("Squeeze", value) for value in (start, end, build.ints(1))))


def _lower(graph: ir.Graph, attention: Attention, mask: ir.Value) -> None:
    """Plain attention over all keys, which are repeated for the query heads that share them."""
    build = Builder(graph, f"attention_{attention.layer}")
    query, *new = attention.states
    present = [build.op("Concat", past, rows, axis=2) for past, rows in zip(attention.past, new, strict=True)]
    groups = attention.heads // attention.kv_heads
    key, value = (_repeated(build, states, attention, groups) for states in present)
    scores = build.op("MatMul", query, build.op("Transpose", key, perm=[0, 1, 3, 2]))
    scores = build.op("Mul", scores, build.constant(np.float32(attention.scale)))
    weights = build.op("Softmax", build.op("Add", scores, mask), axis=-1)
    out = build.op("Transpose", build.op("MatMul", weights, value), perm=[0, 2, 1, 3])
    build.insert_before(attention.node)
    put_in_place(graph, attention, out, (present[0], present[1]))


def _repeated(build: Builder, states: ir.Value, attention: Attention, groups: int) -> ir.Value:
    if groups == 1:
        return states
    wide = build.op("Unsqueeze", states, build.ints(2))
    wide = build.op("Expand", wide, build.ints(1, 1, groups, 1, 1))
    return build.op("Reshape", wide, build.ints(0, attention.heads, -1, attention.head_dim))
