"""Weights that another graph's file already holds: a tied LM head reads the embedding table where it lies."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

__all__ = ["StoredWeight", "read_from_other_graph"]


@dataclass(frozen=True)
class StoredWeight:
    """A torch tensor that graph `graph`, written to the same folder before, holds in its weight file."""

    tensor: Any
    graph: str


def read_from_other_graph(model: ir.Model, stored: StoredWeight, folder: Path) -> bool:
    """Point the initializer of `stored.tensor` to the other graph's file; True if the model has it.

    A head is traced as the product with the transposed table. Transposing would make a second table, on disk
    or in the runtime, so the product becomes a Gemm that reads the table row by row.
    """
    weight = next((value for value in model.graph.initializers.values() if _is(value, stored.tensor)), None)
    there = ir.load(folder / f"{stored.graph}.onnx").graph.initializers.values()
    tables = [value.const_value for value in there if isinstance(value.const_value, ir.ExternalTensor)]
    table = next((found for found in tables if tuple(found.shape) == tuple(stored.tensor.shape)), None)
    if weight is None or table is None:
        return False
    weight.const_value = ir.ExternalTensor(
        location=table.location,
        offset=table.offset,
        length=table.length,
        dtype=table.dtype,
        shape=table.shape,
        name=str(weight.name),
        base_dir=folder,
    )
    for transpose in [use.node for use in weight.uses() if use.node.op_type == "Transpose"]:
        for product in [use.node for use in transpose.outputs[0].uses() if use.node.op_type == "MatMul"]:
            _make_gemm(model.graph, product, weight)
    RemoveUnusedNodesPass()(model)
    return True


def _is(value: ir.Value, tensor: Any) -> bool:
    raw = getattr(value.const_value, "raw", None)
    return raw is not None and hasattr(raw, "data_ptr") and raw.data_ptr() == tensor.data_ptr()


def _make_gemm(graph: ir.Graph, product: ir.Node, weight: ir.Value) -> None:
    """MatMul(x [batch, rows, D], W^T) → Gemm over [batch * rows, D], which is two-dimensional."""
    states, out = product.inputs[0], product.outputs[0]
    assert states is not None
    assert weight.shape is not None
    vocabulary, width = (int(dim) for dim in weight.shape)  # type: ignore[arg-type]

    def vector(name: str, *values: int) -> ir.Value:
        constant = ir.Value(name=name, const_value=ir.tensor(np.array(values, np.int64), name=name))
        constant.dtype, constant.shape = ir.DataType.INT64, ir.Shape([len(values)])
        graph.register_initializer(constant)
        return constant

    tape = ir.tape.Tape()
    flat = tape.op("Reshape", [states, vector("lm_head.flat", -1, width)])
    logits = tape.op("Gemm", [flat, weight], {"transB": 1})
    batch = tape.op("Shape", [states], {"start": 0, "end": 1})
    shape = tape.op("Concat", [batch, vector("lm_head.rows", -1, vocabulary)], {"axis": 0})
    new = tape.op("Reshape", [logits, shape])
    new.type, new.shape = out.type, out.shape
    graph.insert_before(product, list(tape.nodes))
    out.replace_all_uses_with(new, replace_graph_outputs=True)
    graph.remove(product, safe=True)
