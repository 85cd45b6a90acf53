"""Rules about quantised tensors, and about element types that the chips of a target do not compute in."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import MappingProxyType

import numpy as np
import onnx_ir as ir

from fopru_graph.lint.graph import GraphView, Site
from fopru_graph.lint.registry import Hit, rule
from fopru_graph.lint.targets import PRECISION_CHIPS, Target
from fopru_graph.shapes import dims

__all__: list[str] = []

_PRECISION_OF: Mapping[ir.DataType, str] = MappingProxyType(
    {
        ir.DataType.BFLOAT16: "bf16",
        ir.DataType.FLOAT8E4M3FN: "fp8",
        ir.DataType.INT4: "int4",
    }
)
_QUANTIZED = (ir.DataType.INT8, ir.DataType.FLOAT8E4M3FN, ir.DataType.INT4, ir.DataType.FLOAT4E2M1)
_SMALL = 4096  # zero points that are read; there are as many as scales, which can be weights


@rule(
    "chip-precision",
    "element type that no chip of the target computes in",
    tensorrt="error",
    rtx="error",
)
def chip_precision(view: GraphView, target: Target) -> Iterator[Hit]:
    for dtype, site in _first_uses(view).items():
        precision = _PRECISION_OF.get(dtype)
        lacking = target.lacking(precision) if precision is not None else ()
        if precision is None or not lacking:
            continue
        chips = ", ".join(f"SM{sm}" for sm in lacking)
        fix = f"build for SM{PRECISION_CHIPS[precision]} or newer, or export in float16"
        if lacking == target.sms:
            yield Hit(
                f"{precision} is computed from SM{PRECISION_CHIPS[precision]} on, not by {chips}", fix, site
            )
        else:
            yield Hit(f"{precision} is not computed by {chips}, other chips do", fix, site, "note")


@rule(
    "quantize-linear",
    "QuantizeLinear or DequantizeLinear with uint8, a zero point that is not 0, or int4 of odd length",
    tensorrt="error",
    rtx="error",
)
def quantize_linear(view: GraphView, target: Target) -> Iterator[Hit]:
    strict = target.family == "tensorrt"  # [run] TensorRT for RTX builds uint8, and int4 of odd length
    for site in view.of("QuantizeLinear", "DequantizeLinear"):
        stored = site.node.outputs[0] if site.node.op_type == "QuantizeLinear" else site.node.inputs[0]
        kind = stored.dtype if stored is not None else None
        if strict and kind is not None and kind not in _QUANTIZED:
            yield Hit(
                f"it quantises to {kind.name.lower()}, the parser takes int8, float8e4m3fn and int4",
                "quantise symmetrically to int8",
                site,
            )
            continue
        zero = site.node.inputs[2] if len(site.node.inputs) > 2 else None
        if zero is not None and kind != ir.DataType.FLOAT8E4M3FN and _is_not_zero(zero):
            yield Hit(
                "its zero point is not 0, the parser takes symmetric quantisation",
                "use symmetric scales",
                site,
            )
        sizes = dims(stored)
        if strict and kind == ir.DataType.INT4 and sizes and isinstance(sizes[-1], int) and sizes[-1] % 2:
            yield Hit(
                f"its last axis has {sizes[-1]} elements, and the parser packs int4 in pairs",
                "leave this weight in float16",
                site,
            )


def _first_uses(view: GraphView) -> dict[ir.DataType, Site]:
    found: dict[ir.DataType, Site] = {}
    for site in view.sites:
        for value in (*site.node.inputs, *site.node.outputs):
            if value is not None and value.dtype is not None:
                found.setdefault(value.dtype, site)
    return found


def _is_not_zero(value: ir.Value) -> bool:
    """Whether a constant is known to have an element that is not 0."""
    tensor = ir.convenience.get_const_tensor(value)
    if tensor is None or isinstance(tensor, ir.ExternalTensor) or tensor.size > _SMALL:
        return False
    return bool(np.asarray(tensor.numpy()).astype(np.float32).any())
