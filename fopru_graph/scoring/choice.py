"""Decides how an attention is scored, by its form, its precision and the memory that scoring may hold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import onnx_ir as ir

from fopru_graph.attention import AttentionCore, logits_product
from fopru_graph.errors import OptionError
from fopru_graph.scoring.rows import QueryRange
from fopru_graph.scoring.tap import nan_guard
from fopru_graph.shapes import attribute_int, dims

if TYPE_CHECKING:
    from fopru_graph.passes.locate import Located

__all__ = ["Choice", "choose"]

_FLOAT = 4  # bytes
_SHORT = frozenset({ir.DataType.FLOAT16, ir.DataType.BFLOAT16})


@dataclass(frozen=True)
class Choice:
    """One path.

    Attributes:
        path: `one_pass`, `side_branch`, `cls_row` or `chunked`.
        bytes: of the float32 probabilities of one image that the plain path holds; None where Q varies.
        chunk: queries in a chunk; None where the graph computes it, and for paths other than `chunked`.
        query_bytes: what one query takes in a chunk, per key.
        note: precision or memory, in words, or empty.
    """

    path: str
    bytes: int | None
    chunk: int | None = None
    query_bytes: int = 0
    note: str = ""


def choose(located: Located, core: AttentionCore, rows: QueryRange, budget: int | None) -> Choice:
    """The path for one attention, of which the queries `rows` are averaged.

    Probabilities that the graph has in float32 are tapped. Else they are made again, for the class token
    alone (`cls_row`) or for all averaged queries (`side_branch`). If that takes more than `budget` bytes per
    image, or Q varies and nobody can tell, queries are worked off in chunks; one query is no work for chunks.

    Raises:
        OptionError: not even one query fits the budget; or nothing but a tensor that the user named gives
            probabilities, and they do not fit.
    """
    heads = located.heads
    can_tap, repeatable = _forms(core)
    held = rows.queries if can_tap else rows.count
    size = _product(_FLOAT * heads, held, rows.queries)
    again = "cls_row" if rows.count == 1 else "side_branch"
    if budget is None or (size is not None and size <= budget):
        return Choice("one_pass", size, note=_short_note(core)) if can_tap else Choice(again, size)
    whole = f"{size} bytes" if size is not None else "an unknown number of bytes"
    if not repeatable:
        raise OptionError(
            f"score_memory is {budget}, but '{core.anchor.name}' is named by tap and takes {whole} per image "
            "as it is: score a layer with QK^T and Softmax, or leave score_memory at None"
        )
    query_bytes = _query_bytes(core, heads)
    one = _product(query_bytes, 1, rows.queries)
    if one is not None and one > budget:
        raise OptionError(
            f"score_memory is {budget}, but one query of {heads} heads and {rows.queries} keys takes {one} "
            f"bytes: give at least {one}, or None"
        )
    if again == "cls_row":
        return Choice(again, size)
    if one is None or not isinstance(rows.count, int):
        note = (
            f"the number of queries varies: scores are added up over chunks of them in at most {budget} bytes"
        )
        return Choice("chunked", size, None, query_bytes, note)
    chunks = -(-rows.count // (budget // one))
    chunk = -(-rows.count // chunks)
    note = (
        f"attention of one image takes {size} bytes, and score_memory is {budget}: scores are added up over "
        f"{chunks} chunks of {chunk} queries"
    )
    return Choice("chunked", size, chunk, query_bytes, note)


def _forms(core: AttentionCore) -> tuple[bool, bool]:
    """Whether probabilities are there to be tapped, and whether they can be made again."""
    if core.form == "attention_op":
        return False, True
    node = core.node
    softmax = node.op_type == "Softmax" and attribute_int(node, "axis", -1) in (-1, 3)
    product = logits_product(node.inputs[0]) if softmax else None
    if product is None:
        return True, False
    return not {core.anchor.dtype, product.outputs[0].dtype} & _SHORT, True


def _short_note(core: AttentionCore) -> str:
    if core.anchor.dtype not in _SHORT:
        return ""
    return f"scores are made from {core.anchor.dtype} probabilities: '{core.anchor.name}' is tapped"


def _query_bytes(core: AttentionCore, heads: int) -> int:
    """Bytes per key that one query takes: its logits and probabilities, the guard's flag, rows of a mask."""
    flag = heads if core.form == "softmax" and nan_guard(core.anchor) is not None else 0
    return 2 * _FLOAT * (heads + _mask_heads(core, heads)) + flag


def _mask_heads(core: AttentionCore, heads: int) -> int:
    """Heads of all masks with a row per query, which stand beside the logits while they are added."""
    masks = core.node.inputs[3:4] if core.form == "attention_op" else _chain_operands(core.node.inputs[0])
    count = 0
    for mask in masks:
        sizes = dims(mask) or ()
        if len(sizes) >= 2 and sizes[-2] != 1:
            count += heads if len(sizes) >= 3 and sizes[-3] != 1 else 1
    return count


def _chain_operands(value: ir.Value | None) -> Sequence[ir.Value | None]:
    """What is added to, or chosen instead of, the logits on their way to the Softmax."""
    node = value.producer() if value is not None else None
    if node is None or node.op_type == "MatMul":
        return []
    found: list[ir.Value | None] = []
    for source in node.inputs:
        found += _chain_operands(source) if logits_product(source) is not None else [source]
    return found


def _product(*factors: int | str | None) -> int | None:
    result = 1
    for factor in factors:
        if not isinstance(factor, int):
            return None
        result *= factor
    return result
