"""Follows the values of an attention from what it results in back to the product that makes them."""

from __future__ import annotations

import re
from collections.abc import Callable

import onnx_ir as ir

__all__ = ["attention_values"]

_CACHED = re.compile(r"(?:past_key_values|present)\.(\d+)\.value")
# Inputs whose channels come out scaled where they go in scaled.
_MOVES = ("Reshape", "Transpose", "Unsqueeze", "Squeeze", "Expand", "Identity")
_VALUES: dict[tuple[str, str], tuple[int, ...]] = {
    ("", "MatMul"): (1,),  # behind probabilities
    ("", "Add"): (0, 1),  # of what is in the cache and what is new
    ("", "Attention"): (2, 5),
    ("com.microsoft", "GroupQueryAttention"): (2, 4),
    ("com.microsoft", "MultiHeadAttention"): (2, 7),
}
_CACHE_OUTPUT = {"Attention": 2, "GroupQueryAttention": 2, "MultiHeadAttention": 2}


def attention_values(result: ir.Value, is_made: Callable[[ir.Value], bool]) -> ir.Value | None:
    """The one value that `is_made` and that an attention's result is linear in, apart from its own cache.

    None where there is none, or where anything else but that result and that cache depends on it.
    """
    above, ends = _above(result, is_made)
    made = [value for value in ends if is_made(value)]
    caches = {str(value.name) for value in ends if not is_made(value)}
    if len(made) != 1:
        return None
    found = _below(made[0], result, above)
    layers = {_layer(name) for name in (caches | found if found is not None else {""})}
    return made[0] if None not in layers and len(layers) <= 1 else None


def _layer(name: str) -> str | None:
    match = _CACHED.fullmatch(name)
    return match[1] if match else None


def _above(result: ir.Value, is_made: Callable[[ir.Value], bool]) -> tuple[set[ir.Value], list[ir.Value]]:
    """Values on the way up, and where the ways end."""
    seen, ends, pending = {result}, list[ir.Value](), [result]
    while pending:
        value = pending.pop()
        node = value.producer()
        places = None if is_made(value) or node is None else _places(node, value)
        if node is None or not places:
            ends.append(value)
            continue
        for place in places:
            source = node.inputs[place] if place < len(node.inputs) else None
            if source is not None and source not in seen:
                seen.add(source)
                pending.append(source)
    return seen, ends


def _below(made: ir.Value, result: ir.Value, above: set[ir.Value]) -> set[str] | None:
    """Names of the graph outputs that depend on a value; None where something else does."""
    outputs, seen, pending = set[str](), {made}, [made]
    while pending:
        value = pending.pop()
        if value.is_graph_output():
            outputs.add(str(value.name))
        if value is result:
            continue
        for use in value.uses():
            places = _places(use.node, use.node.outputs[0])
            if use.node.op_type == "Shape":
                continue
            if places is None or use.idx not in places:
                return None
            if use.node.op_type in ("Add", "Concat") and not all(each in above for each in use.node.inputs):
                return None
            for made_of in _scaled_outputs(use.node):
                if made_of not in seen:
                    seen.add(made_of)
                    pending.append(made_of)
    return outputs


def _places(node: ir.Node, output: ir.Value) -> tuple[int, ...] | None:
    """Inputs whose scale an output takes over, None for nodes that are no part of an attention."""
    if output not in _scaled_outputs(node):
        return None
    if node.domain == "" and node.op_type in _MOVES:
        return (0,)
    if node.domain == "" and node.op_type == "Concat":
        return tuple(range(len(node.inputs)))
    if node.op_type == "MultiHeadAttention" and len(node.inputs) > 3 and node.inputs[3] is not None:
        return None  # a bias of its own, that of values with it
    return _VALUES.get((node.domain, node.op_type))


def _scaled_outputs(node: ir.Node) -> tuple[ir.Value, ...]:
    cache = _CACHE_OUTPUT.get(node.op_type)
    if cache is None:
        return tuple(node.outputs)
    return (node.outputs[0], *node.outputs[cache : cache + 1])
