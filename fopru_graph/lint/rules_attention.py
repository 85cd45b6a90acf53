"""Rules about Attention, normalisation and rotary embedding."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from fopru_graph.lint.graph import GraphView, used_outputs
from fopru_graph.lint.registry import Hit, rule
from fopru_graph.lint.targets import ONE_OUTPUT_ONLY, OP_RELEASES, Target
from fopru_graph.shapes import attribute_int, dims

__all__: list[str] = []

_PAST_KEY, _PAST_VALUE, _NONPAD = 4, 5, 6
_POSITION_IDS = 3
# [run] float16 and bfloat16 build with heads of 12 to 256, not with 8 and less or 264 and more
_HEAD_SIZES = (12, 256)
_OPERANDS = ("Q", "K", "V", "attn_mask")


@rule(
    "attention-outputs", "Attention with more than one output", tensorrt="error", rtx="error", ort="warning"
)
def attention_outputs(view: GraphView, target: Target) -> Iterator[Hit]:
    for site in view.of("Attention"):
        node, used = site.node, used_outputs(site.node)
        if target.family == "ort":
            mode = attribute_int(node, "qk_matmul_output_mode", 0)
            if 3 in used and mode != 0:
                yield Hit(
                    f"it puts out QK^T in mode {mode}, but on CUDA only mode 0 is implemented",
                    "score by a side branch from Q and K, or by a Softmax behind mode 0",
                    site,
                )
        elif len(node.outputs) > 1:
            if len(used) > 1:
                fix = "score by a side branch from Q and K, and grow the cache by Concat"
            else:
                fix = "leave the unused outputs out of the node"
            yield Hit(f"the parser takes Attention with one output, it has {len(node.outputs)}", fix, site)


@rule("attention-rank", "Attention whose Q, K, V or mask has not four dimensions", tensorrt="error")
def attention_rank(view: GraphView, target: Target) -> Iterator[Hit]:
    del target
    for site in view.of("Attention"):
        for name, value in zip(_OPERANDS, site.node.inputs, strict=False):
            sizes = dims(value)
            if sizes is not None and len(sizes) != 4:
                yield Hit(
                    f"the parser documents {name} as [batch, heads, rows, size], it has {len(sizes)} dims",
                    "split the heads with Reshape and Transpose before it",
                    site,
                )


@rule("attention-cache", "Attention with a cache of its own", tensorrt="error", rtx="error")
def attention_cache(view: GraphView, target: Target) -> Iterator[Hit]:
    del target
    for site in view.of("Attention"):
        if _given(site.node, _PAST_KEY) or _given(site.node, _PAST_VALUE):
            yield Hit(
                "the parser takes no past_key and past_value", "grow the cache by Concat before it", site
            )


@rule("attention-nonpad", "Attention with nonpad_kv_seqlen", tensorrt="error")
def attention_nonpad(view: GraphView, target: Target) -> Iterator[Hit]:
    del target
    for site in view.of("Attention"):
        if _given(site.node, _NONPAD):
            yield Hit("the parser documents no nonpad_kv_seqlen", "mask the padding with attn_mask", site)


@rule("attention-softcap", "Attention with softcap", tensorrt="error", rtx="error")
def attention_softcap(view: GraphView, target: Target) -> Iterator[Hit]:
    del target
    for site in view.of("Attention"):
        attribute = site.node.attributes.get("softcap")
        if attribute is not None and attribute.as_float() != 0.0:
            yield Hit("the parser takes no softcap", "export with opset 20, which writes it with Tanh", site)


@rule(
    "attention-kernel",
    "Attention in float32, or with very small or large heads",
    tensorrt="warning",
    rtx="error",
)
def attention_kernel(view: GraphView, target: Target) -> Iterator[Hit]:
    if target.before(*OP_RELEASES["Attention"]):
        return  # too young there anyway
    seen = "TensorRT for RTX builds none" if target.family == "tensorrt" else "none is built"
    for site in view.of("Attention"):
        query, key = site.node.inputs[:2]
        sizes = dims(query)
        size = sizes[-1] if sizes is not None and len(sizes) == 4 else None
        if query is not None and query.dtype == ir.DataType.FLOAT:
            yield Hit(
                f"it is float32, and there is no kernel for it: {seen}",
                "export Q, K and V in float16 or bfloat16, or with opset 20, which writes MatMul and Softmax",
                site,
            )
        elif query is key and target.family == "tensorrt-rtx":
            yield Hit("Q and K are one tensor, at which the builder dies", "project them apart", site)
        elif isinstance(size, int) and not _HEAD_SIZES[0] <= size <= _HEAD_SIZES[1]:
            yield Hit(
                f"its heads have size {size}, and kernels were found from {_HEAD_SIZES[0]} to "
                f"{_HEAD_SIZES[1]}: {seen}",
                "export with opset 20, which writes MatMul and Softmax",
                site,
            )


@rule(
    "rotary-positions",
    "RotaryEmbedding whose position_ids are not int64",
    tensorrt="error",
    rtx="warning",
    ort="error",
)
def rotary_positions(view: GraphView, target: Target) -> Iterator[Hit]:
    del target
    for site in view.of("RotaryEmbedding"):
        value = site.node.inputs[_POSITION_IDS] if _given(site.node, _POSITION_IDS) else None
        if value is not None and value.dtype not in (None, ir.DataType.INT64):
            yield Hit(
                f"position_ids are {_name(value.dtype)}, but ONNX and the parser say int64",
                "cast them to int64 before it",
                site,
            )


@rule("tensor-scatter", "TensorScatter of another rank or axis", tensorrt="error", rtx="error")
def tensor_scatter(view: GraphView, target: Target) -> Iterator[Hit]:
    del target
    for site in view.of("TensorScatter"):
        sizes = dims(site.node.inputs[0])
        axis = attribute_int(site.node, "axis", -2)
        if sizes is not None and (len(sizes) != 4 or axis % 4 != 2):
            yield Hit(
                f"the parser takes a cache of four dims and axis -2, it has {len(sizes)} and axis {axis}",
                "keep the cache as [batch, heads, rows, size]",
                site,
            )


@rule(
    "one-output",
    "LayerNormalization or MaxPool with more than its first output",
    tensorrt="error",
    rtx="error",
)
def one_output(view: GraphView, target: Target) -> Iterator[Hit]:
    del target
    for site in view.of(*ONE_OUTPUT_ONLY):
        if len(site.node.outputs) > 1:
            used = len(used_outputs(site.node)) > 1
            fix = "compute the others with ReduceMean" if used else "leave the unused outputs out of the node"
            if site.node.op_type == "MaxPool" and used:
                fix = "leave the indices out"
            yield Hit(f"the parser takes its first output only, it has {len(site.node.outputs)}", fix, site)


def _given(node: ir.Node, position: int) -> bool:
    return len(node.inputs) > position and node.inputs[position] is not None


def _name(dtype: ir.DataType | None) -> str:
    return dtype.name.lower() if dtype is not None else "unknown"
