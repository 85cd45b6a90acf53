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
