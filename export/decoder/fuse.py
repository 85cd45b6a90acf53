"""Norms, skip connections and rotary embeddings as ONNX Runtime's own operators, by transformers' fusions."""

from __future__ import annotations

import onnx_ir as ir

__all__ = ["fuse_around_attention"]


def fuse_around_attention(model: ir.Model) -> None:
    """Fuse in place what lies around the attention of a decoder graph.

    Source: `transformers.exporters.onnxruntime_fusions.fuse_for_onnxruntime`, which also packs products with
    the same input into one. That would write most weights a second time, for this graph alone, and the other
    decoder reads the same file: so weights are shown to it as inputs, which it cannot pack.
    """
    try:
        from transformers.exporters.onnxruntime_fusions import fuse_for_onnxruntime
    except ImportError:  # older transformers: the same numbers, a token takes 8 % longer
        return
    graph = model.graph
    weights = {
        value: value.const_value
        for value in list(graph.initializers.values())
        if isinstance(value.const_value, ir.ExternalTensor) and len(value.const_value.shape) > 1
    }
    for value in weights:
        del graph.initializers[str(value.name)]
        value.const_value = None
        graph.inputs.append(value)
    try:
        fuse_for_onnxruntime(model, "cpu")
    finally:
        for value, tensor in weights.items():
            graph.inputs.remove(value)
            value.const_value = tensor
            graph.register_initializer(value)
    _join_heads_once(graph)


def _join_heads_once(graph: ir.Graph) -> None:
    """Drop what splits [batch, rows, width] into heads only to join them again.

    Models split them for their attention, fused operators take them joined: seven pairs in a layer, each as
    costly for a single token as a small product.
    """
    for join in [node for node in graph if node.op_type == "Reshape"]:
        joined, split = join.outputs[0], join.inputs[0].producer() if join.inputs[0] is not None else None
        if split is None or split.op_type != "Reshape":
            continue
        source, heads = split.inputs[0], split.outputs[0]
        if source is not None and _is_split(source, heads) and _last(joined, 3) == _last(source, 3):
            joined.replace_all_uses_with(source)
            graph.remove(join, safe=True)


def _is_split(source: ir.Value, heads: ir.Value) -> bool:
    """Whether the last axis of `source`, of three, became two."""
    width, size = _last(source, 3), _last(heads, 4)
    count = None if heads.shape is None or size is None else heads.shape[2]
    return width is not None and size is not None and isinstance(count, int) and width == count * size


def _last(value: ir.Value, rank: int) -> int | None:
    """Size of the last of `rank` axes; None where it is not known."""
    if value.shape is None or len(value.shape) != rank:
        return None
    size = value.shape[rank - 1]
    return size if isinstance(size, int) else None
