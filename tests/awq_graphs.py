"""Small decoders as text for tests of AWQ: one block each, with random weights."""

from __future__ import annotations

import re

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort

from calib.awq.folds import Fold, Heads
from calib.awq.scales import AwqScales, factors_of

__all__ = ["ATTENTION", "HEADS", "NORMS", "decoder", "random_scales", "run", "scaled"]

HEADS = Heads(2, 4)
"""Two heads of four channels, read by four heads of queries."""

_RMS = "sq = Pow(x, two) ms = ReduceMean(sq, last) me = Add(ms, eps) root = Sqrt(me) n = Div(x, root)"
NORMS = {
    "written out": f"{_RMS} h = Mul(v16_gain, n)",
    "one operator": "h = SimplifiedLayerNormalization <axis = -1> (x, v16_gain)",
    "with the residual": "h, a, b, sum = com.microsoft.SkipSimplifiedLayerNormalization (x, x, v16_gain)",
    "LayerNorm": "h = LayerNormalization <axis = -1> (x, v16_gain, v16_beta)",
    "LayerNorm with the residual": (
        "h, a, b, sum = com.microsoft.SkipLayerNormalization (x, x, v16_gain, v16_beta)"
    ),
}

# Grouped queries with a cache: keys are the rows themselves, so that only values and output are products.
ATTENTION = """
    v = MatMul(x, w16x8_v) vb = Add(v, v8_v) vr = Reshape(vb, kv)
    rows = Transpose <perm = [0, 2, 1, 3]> (vr)
    present_0_value = Concat <axis = 2> (past_key_values_0_value, rows)
    apart = Unsqueeze(present_0_value, two_axes) each = Expand(apart, wide) values = Reshape(each, four)
    xr = Reshape(x, heads) q = Transpose <perm = [0, 2, 1, 3]> (xr) k = Transpose <perm = [0, 2, 3, 1]> (xr)
    logits = MatMul(q, k) seen = Softmax(logits) p = Pad(seen, pads, two)
    found = MatMul(p, values) back = Transpose <perm = [0, 2, 1, 3]> (found) o = Reshape(back, flat)
    y = MatMul(o, w16x16_o)
"""
_CONSTANTS = """
    <float eps = {0.00001}, float two = {2.0}, int64[1] last = {-1}, int64[1] two_axes = {2},
     int64[4] heads = {0, 0, 4, 4}, int64[4] kv = {0, 0, 2, 4}, int64[3] flat = {0, 0, 16},
     int64[5] wide = {1, 1, 2, 1, 1}, int64[4] four = {0, 4, -1, 4}, int64[8] pads = {0, 0, 0, 1, 0, 0, 0, 0}>
"""


def decoder(
    body: str, outputs: str = "float[b, s, n] y", inputs: str = "float[b, s, 16] x", seed: int = 5
) -> ir.Model:
    """A graph of `x` [b, s, 16]. Names say what is constant: `w16x8_q` is a matrix [16, 8], `v8_q` a vector.
    Those of a cache get their dots."""
    made = ir.from_proto(
        onnx.parser.parse_model(
            f'<ir_version: 10, opset_import: ["" : 20, "com.microsoft" : 1]>\n'
            f"g ({inputs}) => ({outputs}) {_CONSTANTS} {{ {body} }}"
        )
    )
    rng = np.random.default_rng(seed)
    named = {str(value.name): value for node in made.graph for value in node.inputs if value is not None}
    for value in [*made.graph.inputs, *(value for node in made.graph for value in node.outputs)]:
        value.name = re.sub(r"(past_key_values|present)_(\d)_(\w+)", r"\1.\2.\3", str(value.name))
    for name, value in named.items():
        match = re.fullmatch(r"[wv](\d+)(?:x(\d+))?_\w+", name)
        if match and value.producer() is None:
            shape = tuple(int(size) for size in match.groups() if size)
            array = (rng.standard_normal(shape) / 4 + (len(shape) == 1)).astype(np.float32)
            value.const_value, value.shape = ir.tensor(array, name=name), ir.Shape(shape)
            value.type = ir.TensorType(ir.DataType.FLOAT)
            made.graph.register_initializer(value)
    return made


def random_scales(folds: tuple[Fold, ...], seed: int = 3) -> AwqScales:
    """Scales from a quarter to four, for every fold."""
    rng, made = np.random.default_rng(seed), []
    for fold in folds:
        size = fold.channels if fold.heads is None else fold.heads.keys * fold.heads.size
        made.append((fold, np.exp2(rng.uniform(-2, 2, size)).astype(np.float32)))
    return AwqScales((), (), factors_of(made))


def scaled(model: ir.Model, name: str) -> np.ndarray:
    """A weight as it is now."""
    tensor = model.graph.initializers[name].const_value
    assert tensor is not None
    return np.array(tensor.numpy())


def run(model: ir.Model, **more: np.ndarray) -> dict[str, np.ndarray]:
    """All outputs for a random `x` [2, 3, 16]."""
    feeds = {"x": np.random.default_rng(7).standard_normal((2, 3, 16)).astype(np.float32), **more}
    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(
        ir.to_proto(model).SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(None, feeds), strict=True))
