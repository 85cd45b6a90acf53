"""Finds attention in a graph by its structure, and says where each candidate stopped looking like it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from fopru_graph.shapes import attribute_int, constant_scalar, dims, same

__all__ = [
    "AttentionCore",
    "CoreSearch",
    "NearMiss",
    "find_cores",
    "key_operand",
    "logits_product",
    "query_operand",
    "reads",
    "upstream_nodes",
    "value_product",
]

ONNX_DOMAINS = ("", "ai.onnx")
_FUSED = frozenset(
    {
        "Attention",
        "DecoderMaskedMultiHeadAttention",
        "GroupQueryAttention",
        "MultiHeadAttention",
        "PackedAttention",
        "PackedMultiHeadAttention",
        "QAttention",
        "QOrderedAttention",
    }
)
# What may stand between the probabilities and the product with V: no arithmetic, except the repair of fully
# masked rows.
_PASS_THROUGH = frozenset({"Cast", "Identity", "Dropout", "Where"})
_MOST_MASKED = 1 << 26  # elements of a mask that is looked at
_HIDDEN = -1e3  # what is added to a logit to hide a key is at most this
_MAX_CHAIN = 8  # nodes between QK^T and Softmax: scale, mask, cast; longer chains are something else


@dataclass(frozen=True)
class AttentionCore:
    """One attention: softmax(Q K^T) V.

    Attributes:
        form: `softmax` (MatMul, Softmax, MatMul) or `attention_op` (the ONNX operator).
        node: the Softmax or the Attention node; its layer is named by its name or metadata.
        product: the node whose output is the attention result (the Attention node itself in its form).
    """

    form: str
    node: ir.Node
    product: ir.Node

    @property
    def anchor(self) -> ir.Value:
        """The tensor whose rows are followed: probabilities [B, H, Q, K], or the operator's output."""
        return self.node.outputs[0]

    @property
    def query_axis(self) -> int:
        """The axis of `anchor` that counts queries."""
        return len(dims(self.anchor) or ()) - 2


@dataclass(frozen=True)
class NearMiss:
    """A node that began to look like attention; `steps` counts how far it got."""

    node: ir.Node
    steps: int
    reason: str


@dataclass(frozen=True)
class CoreSearch:
    """All attentions in topological order, the near misses, and nodes of a vendor's fused attention."""

    cores: tuple[AttentionCore, ...]
    near_misses: tuple[NearMiss, ...]
    fused: tuple[ir.Node, ...]


def reads(node: ir.Node) -> list[ir.Value]:
    """Values that a node depends on: its inputs, and what the bodies of If and Loop read from around them."""
    found = [value for value in node.inputs if value is not None]
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            found += _read_from_around(attribute.as_graph())
    return found


def _read_from_around(body: ir.Graph) -> list[ir.Value]:
    inner = {*body.inputs, *body.initializers.values()}
    used = list(body.outputs)
    for node in body:
        inner.update(node.outputs)
        used += reads(node)
    return [value for value in used if value not in inner]


def upstream_nodes(value: ir.Value) -> set[ir.Node]:
    """Every node that the value depends on."""
    found: set[ir.Node] = set()
    pending = [value.producer()]
    while pending:
        node = pending.pop()
        if node is not None and node not in found:
            found.add(node)
            pending.extend(source.producer() for source in reads(node))
    return found


def find_cores(nodes: Iterable[ir.Node]) -> CoreSearch:
    """Look at each node, in the order given (topological)."""
    cores: list[AttentionCore] = []
    misses: list[NearMiss] = []
    fused: list[ir.Node] = []
    for node in nodes:
        if node.domain not in ONNX_DOMAINS:
            if node.op_type in _FUSED:
                fused.append(node)
            continue
        if node.op_type == "Softmax":
            match = _match_softmax(node)
        elif node.op_type == "Attention":
            match = _match_operator(node)
        else:
            continue
        if isinstance(match, AttentionCore):
            cores.append(match)
        else:
            misses.append(match)
    return CoreSearch(tuple(cores), tuple(misses), tuple(fused))


def _match_softmax(node: ir.Node) -> AttentionCore | NearMiss:
    """MatMul → (scale, mask) → Softmax over keys → MatMul, with heads on an axis of their own."""
    sizes = dims(node.outputs[0])
    rank = len(sizes) if sizes is not None else None
    if rank != 4:
        return NearMiss(
            node, 0, f"its result has rank {rank}, but probabilities are [images, heads, queries, keys]"
        )
    if attribute_int(node, "axis", -1) not in (-1, 3):
        return NearMiss(node, 1, f"it normalises axis {attribute_int(node, 'axis', -1)}, not the last one")
    if logits_product(node.inputs[0]) is None:
        return NearMiss(
            node, 2, "its input does not come from a MatMul of queries and keys through a scale and a mask"
        )
    if _masks_the_future(node.inputs[0]):
        return NearMiss(
            node, 3, "its mask is causal, and a causal layer gives early tokens no say in the score"
        )
    product = value_product(node.outputs[0])
    if product is None:
        users = sorted({use.node.op_type for use in node.outputs[0].uses()}) or ["nothing"]
        return NearMiss(
            node, 3, f"its result feeds {', '.join(users)}, not the left side of a MatMul with the values"
        )
    return AttentionCore("softmax", node, product)


def logits_product(value: ir.Value | None, left: int = _MAX_CHAIN) -> ir.Node | None:
    """The MatMul(Q, K^T) behind a chain of scale, mask and cast, of at most `left` nodes."""
    node = value.producer() if value is not None else None
    if node is None or left == 0 or node.domain not in ONNX_DOMAINS:
        return None
    if node.op_type == "MatMul":
        both_vary = all(source is not None and not source.is_initializer() for source in node.inputs)
        return node if both_vary else None
    if node.op_type in ("Cast", "Identity"):
        return logits_product(node.inputs[0], left - 1)
    if node.op_type in ("Mul", "Div"):
        if constant_scalar(node.inputs[1]) is not None:
            return logits_product(node.inputs[0], left - 1)
        return (
            logits_product(node.inputs[1], left - 1) if constant_scalar(node.inputs[0]) is not None else None
        )
    if node.op_type in ("Add", "Where"):
        products = [logits_product(source, left - 1) for source in node.inputs]
        found = [product for product in products if product is not None]
        # A relative position may be a MatMul too, of queries and a table that has no images.
        return next((product for product in found if _is_per_image(product)), found[0] if found else None)
    return None


def _is_per_image(product: ir.Node) -> bool:
    left, right = (dims(value) or () for value in product.inputs)
    return len(left) == len(right) == 4 and same(left[0], right[0])


def _masks_the_future(logits: ir.Value | None) -> bool:
    """Whether a constant mask on the way from QK^T to Softmax hides every later key."""
    product, value = logits_product(logits), logits
    while value is not None and product is not None:
        node = value.producer()
        if node is None or node is product:
            return False
        if node.op_type in ("Add", "Where") and any(is_causal(other) for other in node.inputs):
            return True
        value = next((other for other in node.inputs if logits_product(other) is product), None)
    return False


def is_causal(mask: ir.Value | None) -> bool:
    """Whether a mask is a constant that lets each query see keys up to its own position, and no later one."""
    tensor = ir.convenience.get_const_tensor(mask) if mask is not None else None
    if tensor is None or len(tensor.shape) < 2 or not 1 < tensor.size <= _MOST_MASKED:
        return False
    table = np.asarray(tensor.numpy())
    rows, columns = table.shape[-2:]
    if rows != columns or rows < 2:
        return False
    table = table.reshape(-1, rows, columns)[0]
    past = np.tri(rows, dtype=np.bool_)
    if table.dtype == np.bool_:  # True for a key that takes part, or for one that is hidden
        return bool((table == past).all() or (table != past).all())
    return bool(((table.astype(np.float64) > _HIDDEN) == past).all())


def value_product(probabilities: ir.Value) -> ir.Node | None:
    """The MatMul(P, V) that the probabilities feed."""
    pending, seen = [probabilities], {probabilities}
    while pending:
        value = pending.pop()
        for use in value.uses():
            if use.node.op_type == "MatMul" and use.idx == 0 and not _is_weight(use.node.inputs[1]):
                return use.node
            if use.node.op_type in _PASS_THROUGH and use.node.outputs[0] not in seen:
                seen.add(use.node.outputs[0])
                pending.append(use.node.outputs[0])
    return None


def key_operand(core: AttentionCore) -> tuple[ir.Value, int]:
    """A tensor that stays whole when queries are selected, and its axis of keys; axis 0 is images."""
    if core.form == "attention_op":
        keys = core.node.inputs[1]
        if keys is not None:
            return keys, len(dims(keys) or ()) - 2
    product = logits_product(core.node.inputs[0]) if core.node.op_type == "Softmax" else None
    keys = product.inputs[1] if product is not None else None
    if keys is not None:
        return keys, len(dims(keys) or ()) - 1
    return core.anchor, len(dims(core.anchor) or ()) - 1


def query_operand(core: AttentionCore) -> tuple[ir.Value, int]:
    """A tensor that has one row per query, and its axis of queries."""
    if core.form == "attention_op":
        queries = core.node.inputs[0]
    else:
        product = logits_product(core.node.inputs[0]) if core.node.op_type == "Softmax" else None
        queries = product.inputs[0] if product is not None else None
    if queries is None:
        return core.anchor, core.query_axis
    return queries, len(dims(queries) or ()) - 2


def _is_weight(value: ir.Value | None) -> bool:
    return value is None or value.is_initializer()


def _match_operator(node: ir.Node) -> AttentionCore | NearMiss:
    """The ONNX operator, as a vision encoder uses it: every query may look at every key, no cache."""
    query, key = dims(node.inputs[0]), dims(node.inputs[1])
    if query is None or key is None or len(query) != len(key) or len(query) not in (3, 4):
        return NearMiss(
            node, 0, f"its query and key have dims {query} and {key}, but both must have rank 3 or 4"
        )
    if dims(node.outputs[0]) is None:
        return NearMiss(node, 0, "the shape of its result is unknown")
    if "scale" not in node.attributes and not isinstance(query[-1], int):
        return NearMiss(node, 0, f"its query has dims {query}, and the width of a head must be fixed")
    if attribute_int(node, "is_causal", 0):
        return NearMiss(node, 1, "it is causal, and a causal layer gives early tokens no say in the score")
    windows = [attribute_int(node, f"{side}_window_size", -1) for side in ("left", "right")]
    if windows != [-1, -1]:
        return NearMiss(
            node, 2, f"its queries look {windows[0]} keys back and {windows[1]} ahead, not at every key"
        )
    if any(source is not None for source in node.inputs[4:]):
        return NearMiss(node, 3, "it reads a key/value cache, which a vision encoder has not")
    heads = (
        (query[1], key[1])
        if len(query) == 4
        else tuple(attribute_int(node, f"{x}_num_heads", 0) for x in ("q", "kv"))
    )
    fixed = [size for size in heads if isinstance(size, int) and size > 0]
    grouped = len(fixed) == 2 and fixed[0] % fixed[1] == 0
    if 0 in heads or not (grouped or same(*heads)):
        return NearMiss(
            node,
            4,
            f"it has {heads[0]} query heads and {heads[1]} key heads, and the one must be a multiple of the "
            "other",
        )
    if len(node.inputs) > 3 and is_causal(node.inputs[3]):
        return NearMiss(
            node, 1, "its mask is causal, and a causal layer gives early tokens no say in the score"
        )
    mask = dims(node.inputs[3]) if len(node.inputs) > 3 and node.inputs[3] is not None else (key[-2],)
    if mask is None or (isinstance(mask[-1], int) and isinstance(key[-2], int) and mask[-1] != key[-2]):
        return NearMiss(
            node, 5, f"its mask has dims {mask} for {key[-2]} keys, and must have one column each"
        )
    return AttentionCore("attention_op", node, node)
