"""Probabilities once more, in float32, from the Q, K, scale and mask that an attention has."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import onnx_ir as ir

from fopru_graph.attention import AttentionCore, logits_product
from fopru_graph.builder import GraphBuilder, Made
from fopru_graph.errors import RewriteError
from fopru_graph.scoring.rows import Rows
from fopru_graph.scoring.tap import nan_guard
from fopru_graph.shapes import attribute_int, constant_scalar, dims

__all__ = ["Site", "probabilities"]

_FLOAT = ir.DataType.FLOAT
_Found = TypeVar("_Found")


@dataclass(frozen=True)
class Site:
    """Where nodes go: `once` what all queries share (K, the scale), `each` what is done for `rows` of them.

    Both are the same graph unless queries are worked off in a loop.
    """

    once: GraphBuilder
    each: GraphBuilder
    rows: Rows

    def operand(self, value: ir.Value) -> tuple[ir.Value, GraphBuilder]:
        """The averaged queries' rows of Q, a scale or a mask, and where to go on with them."""
        axis = len(dims(value) or ()) - 2
        taken = self.rows.take(value, axis) if axis >= 0 else value
        return taken, self.once if taken is value else self.each


def probabilities(core: AttentionCore, site: Site) -> ir.Value:
    """softmax(Q K^T * scale + mask) in float32, [B, H, rows, K].

    A guard against NaN is repeated. What else a row of NaN or Inf does is up to the runtime.
    """
    if core.form == "attention_op":
        logits = _operator_logits(core.node, site)
    else:
        product = _required(logits_product(core.node.inputs[0]), core.node)
        logits = _logits_again(core.node.inputs[0], product, site)
    made = Made("probabilities", _FLOAT, dims(logits) or ())
    result = site.each.op("Softmax", [logits], made, {"axis": -1})
    guard = nan_guard(core.anchor) if core.form == "softmax" else None
    if guard is None:
        return result
    instead = site.once.constant("guarded", np.asarray(constant_scalar(guard.inputs[1]), np.float32))
    bad = site.each.op("IsNaN", [result], Made("is_nan", ir.DataType.BOOL, made.dims))
    return site.each.op("Where", [bad, instead, result], Made("probabilities_guarded", _FLOAT, made.dims))


def _logits_again(value: ir.Value | None, product: ir.Node, site: Site) -> ir.Value:
    """The logits behind a chain of scale, mask and cast; conditions stay boolean, all else is float32.

    A relative position, which is a product of the queries too, is made again like Q K^T itself.
    """
    value = _required(value, product)
    node = value.producer()
    again = logits_product(value)
    if node is None or again is None:
        rows, builder = site.operand(value)
        return rows if rows.dtype == ir.DataType.BOOL else builder.cast(rows, _FLOAT)
    if node.op_type in ("Cast", "Identity"):
        return _logits_again(node.inputs[0], product, site)
    sizes = dims(value) or ()
    made = Made("logits", _FLOAT, (*sizes[:-2], site.rows.count, *sizes[-1:]))
    if node is again:
        query, key = (_required(source, node) for source in node.inputs)
        rows, builder = site.operand(query)
        factors = [builder.cast(rows, _FLOAT), site.once.cast(key, _FLOAT)]
        return site.each.op("MatMul", factors, made)
    return site.each.op(node.op_type, [_logits_again(source, product, site) for source in node.inputs], made)


def _operator_logits(node: ir.Node, site: Site) -> ir.Value:
    """Q K^T * scale, then a cap, then the mask: the order of the ONNX operator."""
    query_heads, key_heads = (_heads(node, index) for index in (0, 1))
    query, key = (_required(source, node) for source in node.inputs[:2])
    rows, builder = site.operand(query)
    rows = builder.cast(_split_heads(builder, rows, query_heads), _FLOAT)
    key = site.once.cast(_split_heads(site.once, key, key_heads), _FLOAT)
    images, _, count, width = dims(rows) or (None, None, None, None)
    keys = (dims(key) or (None,) * 4)[2]
    scale = node.attributes.get("scale")
    factor = scale.as_float() if scale is not None else 1.0 / math.sqrt(float(width or 0))
    rows = _scaled(builder, "Mul", rows, factor)
    columns = site.once.op(
        "Transpose",
        [key],
        Made("key_transposed", _FLOAT, (images, key_heads, width, keys)),
        {"perm": [0, 1, 3, 2]},
    )
    if query_heads == key_heads:
        logits = site.each.op(
            "MatMul", [rows, columns], Made("logits", _FLOAT, (images, query_heads, count, keys))
        )
    else:
        logits = _grouped(site, rows, columns, key_heads)
    cap = node.attributes.get("softcap")
    if cap is not None and cap.as_float() != 0.0:
        ratio = _scaled(site.each, "Div", logits, cap.as_float())
        bent = site.each.op("Tanh", [ratio], Made("logits_bent", _FLOAT, dims(logits) or ()))
        logits = _scaled(site.each, "Mul", bent, cap.as_float())
    mask = node.inputs[3] if len(node.inputs) > 3 else None
    if mask is None:
        return logits
    made = Made("logits_masked", _FLOAT, dims(logits) or ())
    return site.each.op("Add", [logits, _bias(mask, site)], made)


def _grouped(site: Site, rows: ir.Value, columns: ir.Value, key_heads: int) -> ir.Value:
    """QK^T where several query heads in a row share a key head: they are stacked as rows, K is not copied."""
    each = site.each
    images, heads, count, width = dims(rows) or (None, None, None, None)
    keys = (dims(columns) or ())[-1]
    stacked = each.op(
        "Reshape",
        [rows, site.once.ints("stack_heads", [0, key_heads, -1, int(width or 0)])],
        Made("query_stacked", _FLOAT, (images, key_heads, None, width)),
    )
    logits = each.op(
        "MatMul", [stacked, columns], Made("logits_stacked", _FLOAT, (images, key_heads, None, keys))
    )
    target = site.once.ints("unstack_heads", [0, int(heads or 0), -1, keys if isinstance(keys, int) else 0])
    return each.op("Reshape", [logits, target], Made("logits", _FLOAT, (images, heads, count, keys)))


def _heads(node: ir.Node, index: int) -> int:
    """Heads of input 0 or 1: an attribute where heads have no axis of their own."""
    sizes = dims(node.inputs[index]) or ()
    heads = sizes[1] if len(sizes) == 4 else attribute_int(node, ("q_num_heads", "kv_num_heads")[index], 0)
    return int(heads or 0)  # the locate pass saw that it is a number


def _required(found: _Found | None, node: ir.Node) -> _Found:
    if found is None:
        raise RewriteError(f"QK^T of '{node.name}' cannot be repeated: an operand of it is missing")
    return found


def _split_heads(builder: GraphBuilder, value: ir.Value, heads: int) -> ir.Value:
    """[B, H, rows, d]; a value of rank 3 is [B, rows, H * d]."""
    sizes = dims(value) or ()
    if len(sizes) == 4:
        return value
    width = int(sizes[2] or 0) // heads
    dtype = value.dtype or _FLOAT
    target = builder.ints("split_heads", [0, 0, heads, width])
    split = builder.op("Reshape", [value, target], Made("split", dtype, (*sizes[:2], heads, width)))
    made = Made("heads", dtype, (sizes[0], heads, sizes[1], width))
    return builder.op("Transpose", [split], made, {"perm": [0, 2, 1, 3]})


def _scaled(builder: GraphBuilder, op_type: str, value: ir.Value, factor: float) -> ir.Value:
    constant = builder.constant("scale", np.asarray(factor, np.float32))
    return builder.op(op_type, [value, constant], Made("scaled", _FLOAT, dims(value) or ()))


def _bias(mask: ir.Value, site: Site) -> ir.Value:
    """A mask as a float32 term of the logits: a boolean one is True where a key takes part."""
    rows, builder = site.operand(mask)
    if mask.dtype != ir.DataType.BOOL:
        return builder.cast(rows, _FLOAT)
    zero, never = (
        builder.constant(name, np.asarray(at, np.float32)) for name, at in (("zero", 0.0), ("never", -np.inf))
    )
    return builder.op("Where", [rows, zero, never], Made("bias", _FLOAT, dims(rows) or ()))
