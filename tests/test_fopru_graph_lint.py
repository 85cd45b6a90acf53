"""Lint: every rule on a graph it is about and on a near miss, for every kind of target; pruned graphs are clean."""

# ruff: noqa: E501  (one case per line)
from __future__ import annotations

import re
from dataclasses import FrozenInstanceError, dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from fopru_graph import GraphFileError, OptionError, UnsupportedGraphError, load_graph, prune
from fopru_graph.lint import RULES, SEVERITIES, TARGETS, Finding, LintReport, lint, lint_file
from fopru_graph.lint.rtx import BUILD_RULES
from tests.toy_encoders import Toy, export

DOCS = Path(__file__).resolve().parent.parent / "docs" / "lint.md"
KINDS = ("jetpack6", "tensorrt11", "tensorrt-rtx", "ort")
E, W, N = "error", "warning", "note"
X, Y = "float[b,n,64] x", "float[b,n,64] y"
HEADS, HEADS_OUT = ", ".join(f"float16[b,2,n,16] {name}" for name in "xkv"), "float16[b,2,n,16] y"


def graph(body: str, inputs: str = X, outputs: str = Y, init: str = "", opset: int = 20) -> ir.Model:
    weights = f"<{init}>" if init else ""
    text = f'<ir_version: 10, opset_import: ["" : {opset}, "com.microsoft" : 1, "mine" : 1]> g ({inputs}) => ({outputs}) {weights} {{ {body} }}'
    model = ir.from_onnx_text(text)
    for position, node in enumerate(model.graph):
        node.name = f"{node.op_type}_{position}"
    return model


@dataclass(frozen=True)
class Case:
    """`fires` breaks a rule for the four kinds of targets as gravely as `severities` says (None: not at all); `near` does not."""

    rule: str
    severities: tuple[str | None, str | None, str | None, str | None]
    fires: ir.Model
    near: ir.Model
    match: str = ""


_LOOP = "last, y = Loop(t, c, x) <body = b (int64 i, bool ci, float[b,n,64] s) => (bool co, float[b,n,64] o, float[b,n,64] r) {{ {condition} o = Add(s, s) r = Identity(o) }}>"
_GOES_ON, _STOPS = "co = Identity(ci)", "m = ReduceMax<keepdims=0>(s) co = Less(m, h)"
_BRANCH = "m = ReduceMax<keepdims=0>(x) c = Greater(m, h) y = If(c) <then_branch = t () => (float[b,n,64] p) {{ p = Relu(x) }}, else_branch = e () => (float[b,n,64] {other}) {{ {other} = Neg(x) }}>"
_ONE, _K8 = "int64[1] one = {1}", "int64[1] k = {8}"
_K_OF_DATA = "m = ReduceMax<keepdims=0>(x) mi = Cast<to=7>(m) k = Reshape(mi, one) "
_INT8 = "q = QuantizeLinear(x, s, z) y = DequantizeLinear(q, s, z)"
_FP8 = "z = Cast<to=17>(zero) " + _INT8
_INT8_ZERO, _FP8_ZERO = "float s = {0.1}, int8 z = {0}", "float s = {0.1}, float zero = {0}"
_TOPK, _V = "y, i = TopK<axis=1>(x, k)", "float[b,k,64] y"


def topk(size: int, k: str, body: str = _TOPK, given: str = "") -> ir.Model:
    return graph(body, f"float[b,{size},4] x{given}", "float[b,m,4] y", k)


def half_scores(softmax: str, kind: str = "float16") -> ir.Model:
    body = f"a = MatMul(x, t) {softmax} s = ReduceMean<keepdims=0>(q, one) v, y = TopK<axis=1>(s, k)"
    return graph(
        "t = Transpose<perm=[0,2,1]>(x) " + body, f"{kind}[b,n,64] x", "int64[b,m] y", f"{_ONE}, {_K8}"
    )


def attention(body: str, inputs: str = HEADS, outputs: str = HEADS_OUT, opset: int = 24) -> ir.Model:
    return graph(body, inputs, outputs, opset=opset)


PLAIN = attention("y = Attention(x, k, v)")
RELU = graph("y = Relu(x)")
CASES = [
    Case("opset", (E, E, W, None), graph("y = Relu(x)", opset=25), RELU, "the graph has opset 25, the range is 9 to "),
    Case("opset", (E, None, None, None), graph("y = Relu(x)", opset=21), RELU, "opset 20 or earlier"),
    Case("opset", (E, E, W, None), graph("y = Relu(x)", opset=8), graph("y = Relu(x)", opset=9), "opset 9 or later"),
    Case("invalid-node", (E, E, E, E), graph("y = Attention(x, x, x)"), PLAIN, "ONNX has no operator Attention at opset 20"),
    Case("invalid-node", (E, E, E, E), graph("y = Relu(x, x)"), RELU, "it has 2 inputs, ONNX says 1$|it has 2 inputs, ONNX says 1;"),
    Case("invalid-node", (E, E, E, E), graph("y = MatMul(x, )"), RELU, "it has 1 inputs, ONNX says 2|its input 'B' is missing"),
    Case("invalid-node", (E, E, E, E), graph("y, z = Relu(x)"), RELU, "it has 2 outputs, ONNX says 1"),
    Case("invalid-node", (E, E, E, E), graph("y = Softmax<axes=1>(x)"), graph("y = Softmax<axis=1>(x)"), "no attribute 'axes'"),
    Case("invalid-node", (E, E, E, E), graph("y = Softmax<axis=1.5>(x)"), RELU, "'axis' is FLOAT, ONNX says INT"),
    Case("invalid-node", (E, E, E, E), graph("y = Cast(x)"), graph("y = Cast<to=1>(x)"), "its attribute 'to' is missing"),
    Case("op-too-young", (E, None, None, None), PLAIN, RELU, r"takes Attention from TensorRT 10\.14 on, here it is 10\.3; export with opset 20"),
    Case("op-too-young", (E, None, None, None), graph("y = BlackmanWindow(n)", "int32 n", "float[m] y"), RELU, "write it with older operators"),
    Case("op-unsupported", (E, E, E, None), graph("y = BitwiseNot(x)", "int64[n] x", "int64[n] y"), graph("y = Not(x)", "bool[n] x", "bool[n] y")),
    Case("custom-domain", (E, E, E, None), graph("y = com.microsoft.Gelu(x)"), graph("y = Gelu(x)"), "com.microsoft"),
    Case("custom-domain", (E, E, E, E), graph("y = mine.Gelu(x)"), graph("y = Gelu(x)"), "mine"),
    Case("custom-domain", (E, E, E, None), graph("y = com.microsoft.Attention(x)"), PLAIN),
    Case("selects-by-data", (W, W, E, N), graph("y = NonZero(x)", outputs="int64[r,m] y"), RELU),
    Case("selects-by-data", (E, E, E, N), graph("y = Compress<axis=0>(x, c)", f"{X}, bool[b] c"), RELU, "select with TopK"),
    Case("selects-by-data", (E, E, E, N), graph("y = Unique<sorted=1>(x)", outputs="float[m] y"), RELU),
    Case("dynamic-quantize", (E, E, E, None), graph("y, s, z = DynamicQuantizeLinear(x)", outputs="uint8[b,n,64] y"), RELU),
    Case("attention-outputs", (E, E, E, W), attention("y, , , p = Attention<qk_matmul_output_mode=3>(x, k, v)", outputs=HEADS_OUT + ", float16[b,2,n,n] p"), PLAIN),
    Case("attention-outputs", (E, E, E, None), attention("y, a, c, p = Attention(x, k, v)"), PLAIN, "leave the unused outputs out"),
    Case("attention-rank", (E, E, None, None), attention("y = Attention<q_num_heads=2, kv_num_heads=2>(x, k, v)", "float16[b,n,32] x, float16[b,n,32] k, float16[b,n,32] v", "float16[b,n,32] y"), PLAIN, "documents Q as"),
    Case("attention-cache", (E, E, E, None), attention("y = Attention(x, k, v, , k, v)"), PLAIN),
    Case("attention-nonpad", (E, E, None, None), attention("y = Attention(x, k, v, , , , n)", HEADS + ", int64[b] n"), PLAIN),
    Case("attention-softcap", (E, E, E, None), attention("y = Attention<softcap=2.0>(x, k, v)"), attention("y = Attention<softcap=0.0>(x, k, v)")),
    Case("attention-kernel", (None, W, E, None), attention("y = Attention(x, k, v)", HEADS.replace("float16", "float"), HEADS_OUT.replace("float16", "float")), PLAIN, "float32"),
    Case("attention-kernel", (None, W, E, None), attention("y = Attention(x, k, v)", HEADS.replace("16]", "8]"), "float16[b,2,n,8] y"), PLAIN, "size 8, and kernels were found from 12 to 256"),
    Case("rotary-positions", (E, E, W, E), attention("y = RotaryEmbedding(x, c, c, p)", HEADS + ", float16[m,8] c, int32[b,n] p"), attention("y = RotaryEmbedding(x, c, c, p)", HEADS + ", float16[m,8] c, int64[b,n] p"), "position_ids are int32"),
    Case("tensor-scatter", (E, E, E, None), attention("y = TensorScatter<axis=1>(x, u)", "float16[b,64,8] x, float16[b,n,8] u", "float16[b,64,8] y"), attention("y = TensorScatter<axis=-2>(x, u)", "float16[b,2,64,8] x, float16[b,2,n,8] u", "float16[b,2,64,8] y")),
    Case("one-output", (E, E, E, None), graph("y, m = LayerNormalization(x, w)", f"{X}, float[64] w", Y + ", float[b,n,1] m"), graph("y = LayerNormalization(x, w)", f"{X}, float[64] w"), "ReduceMean"),
    Case("one-output", (E, E, E, None), graph("y, m = MaxPool<kernel_shape=[2]>(x)"), graph("y = MaxPool<kernel_shape=[2]>(x)"), "leave the unused outputs out"),
    Case("one-output", (E, E, E, None), graph("y, m = MaxPool<kernel_shape=[2]>(x)", outputs=Y + ", int64[b,n,m] m"), RELU, "leave the indices out"),
    Case("topk-unsorted", (E, E, W, W), graph("y, i = TopK<axis=1, sorted=0>(x, k)", init=_K8), graph("y, i = TopK<axis=1>(x, k)", init=_K8)),
    Case("topk-limit", (E, E, None, None), topk(4000, "int64[1] k = {3840}"), topk(4000, "int64[1] k = {3839}"), "at most 3839 is taken; keep no more than 3839"),
    Case("topk-limit", (E, E, E, None), topk(4000, "int64[1] k = {3841}"), topk(4000, "int64[1] k = {3839}")),
    Case("topk-limit", (W, W, W, None), topk(4096, "", given=", int64[1] k"), topk(3839, "", given=", int64[1] k"), "among 4096 elements"),
    Case("topk-limit", (W, W, W, None), graph(_TOPK, X + ", int64[1] k", _V), topk(4096, "int64[1] most = {3839}", "least = Min(k, most) y, i = TopK<axis=1>(x, least)", ", int64[1] k"), "an unknown number of"),
    Case("topk-limit", (W, W, W, None), topk(4096, "int64 most = {4000}", "least = Clip(k, , most) y, i = TopK<axis=1>(x, least)", ", int64[1] k"), topk(4096, "int64 most = {100}", "least = Clip(k, , most) y, i = TopK<axis=1>(x, least)", ", int64[1] k")),
    Case("topk-beyond-axis", (E, E, E, E), topk(6, _K8), topk(8, _K8), "K is 8, but the axis has 6"),
    Case("topk-beyond-axis", (N, N, N, N), graph(_TOPK, init=_K8, outputs=_V), graph(_TOPK, init="int64[1] k = {1}", outputs=_V), "whatever the axis 'n' has"),
    Case("half-scores", (W, W, W, W), half_scores("q = Softmax(a)"), half_scores("f = Cast<to=1>(a) q = Softmax(f)"), "compares float16 numbers"),
    Case("half-scores", (W, W, W, W), half_scores("h = Softmax(a) q = Cast<to=1>(h)"), half_scores("q = Softmax(a)", "float"), "from Softmax 'Softmax_2'"),
    Case("half-softmax", (N, N, N, N), graph("a = Softmax(x) y = Softmax(a)", "bfloat16[b,n,64] x", "bfloat16[b,n,64] y"), graph("y = Softmax(x)"), "and 1 more"),
    Case("shape-from-data", (W, W, W, N), graph(_K_OF_DATA + _TOPK, outputs=_V, init=_ONE), graph("s = Shape<start=1, end=2>(x) k = Div(s, two) " + _TOPK, outputs=_V, init="int64[1] two = {2}"), "content of 'x'"),
    Case("shape-from-data", (W, W, W, N), graph(_K_OF_DATA + "y = Expand(one, k)", outputs="int64[m] y", init=_ONE), graph("y = Expand(one, k)", "int64[1] k", "int64[m] y", _ONE)),
    Case("shape-from-data", (W, W, W, N), graph(_K_OF_DATA + "y = Slice(x, one, k, one)", init=_ONE), graph("y = Slice(x, one, k, one)", X + ", int64[1] k", init=_ONE)),
    Case("shape-from-data", (W, W, W, N), graph(_K_OF_DATA + "s = Concat<axis=0>(k, one) y = Reshape(x, s)", outputs="float[a,c] y", init=_ONE), graph("z = NonZero(x) s = Shape<start=1, end=2>(z) y = Expand(one, s)", outputs="int64[m] y", init=_ONE)),
    Case("shape-from-data", (W, W, W, N), graph("m = ReduceMax<keepdims=0>(x) y = Range(zero, m, step)", outputs="float[m] y", init="float zero = {0}, float step = {1}"), graph("y = Range(zero, m, step)", "int64 m", "int64[m] y", "int64 zero = {0}, int64 step = {1}")),
    Case("constant-input", (E, E, E, None), graph("y = ReduceSum(x, a)", X + ", int64[1] a"), graph("a = Constant<value_ints=[1]>() y = ReduceSum(x, a)"), "takes axes only as a constant;"),
    Case("constant-input", (E, E, E, None), graph("y = Unsqueeze(x, a)", X + ", int64[1] a", "float[b,n,64,m] y"), graph("y = Unsqueeze(x, one)", outputs="float[b,m,n,64] y", init=_ONE)),
    Case("constant-input", (E, None, None, None), graph("y = CumSum(x, a)", X + ", int64 a"), graph("y = CumSum(x, a)", init="int64 a = {1}"), r"axis only as a constant before TensorRT 10\.8"),
    Case("constant-input", (E, None, None, None), graph("y = Pad(x, p, v, a)", X + ", int64[1] a", init="int64[2] p = {1, 1}, float v = {0}"), graph("y = Slice(x, one, one, a)", X + ", int64[1] a", init=_ONE), r"before TensorRT 10\.4"),
    Case("dtype", (E, E, E, None), graph("y = Add(x, x)", "uint16[n] x", "uint16[n] y"), graph("y = Add(x, x)", "int64[n] x", "int64[n] y"), "'x' is uint16"),
    Case("dtype", (E, E, E, None), graph("a = Cast<to=5>(x) y = Cast<to=1>(a)"), graph("a = Cast<to=6>(x) y = Cast<to=1>(a)"), "'a' is int16"),
    Case("dtype", (W, W, W, None), graph("a = Cast<to=11>(x) y = Cast<to=1>(a)"), RELU, "float64, which the parser turns into float32"),
    Case("dtype", (E, E, E, None), graph("y = Add(x, x)", "uint8[n] x", "uint8[n] y"), graph("y = Cast<to=1>(x)", "uint8[n] x", "float[n] y"), "uint8 as input and output"),
    Case("integer-math", (E, E, E, None), graph("y = MatMul(x, x)", "int64[4,4] x", "int64[4,4] y"), graph("y = Add(x, x)", "int64[4,4] x", "int64[4,4] y"), "refuses int64"),
    Case("integer-math", (W, W, None, None), graph("y = CumSum(x, a)", "int64[n] x", "int64[n] y", "int64 a = {0}"), graph("y = CumSum(x, a)", init="int64 a = {0}"), "for floats only"),
    Case("integer-math", (E, None, None, None), graph("y = Pow(x, e)", init="int64 e = {2}"), graph("y = Pow(x, e)", init="float e = {2}"), r"integer exponent from TensorRT 10\.8"),
    Case("integer-math", (E, None, None, None), graph("y = Pow(x, x)", "int64[n] x", "int64[n] y"), RELU, r"integer base from TensorRT 10\.12"),
    Case("scatter-reduction", (E, E, E, None), graph('y = ScatterND<reduction="add">(x, i, u)', f"{X}, int64[m,1] i, float[m,n,64] u"), graph("y = ScatterND(x, i, u)", f"{X}, int64[m,1] i, float[m,n,64] u"), "it is 'add'"),
    Case("scatter-reduction", (E, None, None, None), graph('y = ScatterND<reduction="none">(x, i, u)', f"{X}, int64[m,1] i, float[m,n,64] u"), RELU, "leave the attribute reduction out"),
    Case("scatter-reduction", (None, None, E, None), graph('y = ScatterElements<reduction="add">(x, i, u)', f"{X}, int64[b,n,64] i, float[b,n,64] u"), graph('y = ScatterElements<reduction="none">(x, i, u)', f"{X}, int64[b,n,64] i, float[b,n,64] u")),
    Case("loop-outputs", (E, E, W, None), graph(_LOOP.format(condition=_STOPS), outputs="float[k,b,n,64] y", init="int64 t = {3}, bool c = {1}, float h = {5}"), graph(_LOOP.format(condition=_GOES_ON), outputs="float[k,b,n,64] y", init="int64 t = {3}, bool c = {1}"), "how many is not constant"),
    Case("loop-outputs", (E, E, E, None), graph(_LOOP.format(condition=_STOPS).replace("(t, c", "(, c"), outputs="float[k,b,n,64] y", init="bool c = {1}, float h = {5}"), graph(_LOOP.format(condition=_STOPS).replace(", float[b,n,64] r)", ")").replace("last, y =", "y =").replace(" r = Identity(o)", ""), init="int64 t = {3}, bool c = {1}, float h = {5}"), "no trip count"),
    Case("if-names", (W, W, None, None), graph(_BRANCH.format(other="p"), init="float h = {0.5}"), graph(_BRANCH.format(other="q"), init="float h = {0.5}"), "output 'p'"),
    Case("resize-antialias", (E, E, E, None), graph('y = Resize<mode="linear", antialias=1>(x, , s)', init="float[3] s = {1, 1, 0.5}"), graph('y = Resize<mode="cubic">(x, , s)', init="float[3] s = {1, 1, 0.5}")),
    Case("resize-antialias", (E, E, E, None), graph('y = Resize<keep_aspect_ratio_policy="not_larger">(x, , , s)', init="int64[3] s = {1, 2, 3}"), graph('y = Resize<keep_aspect_ratio_policy="stretch">(x, , , s)', init="int64[3] s = {1, 2, 3}"), "policy 'not_larger'"),
    Case("attention-kernel", (None, None, E, None), attention("y = Attention(x, x, v)"), PLAIN, "Q and K are one tensor"),
    Case("slice-axes", (E, E, E, None), graph("y = Slice(x, one, two)", init=f"{_ONE}, int64[1] two = {{2}}"), graph("y = Slice(x, one, two, one)", init=f"{_ONE}, int64[1] two = {{2}}"), "no axes and 1 starts for 3 dims"),
    Case("slice-axes", (E, E, E, None), graph("y = Slice(x, one, two)", init=f"{_ONE}, int64[1] two = {{2}}"), graph("y = Slice(x, zero, two)", init="int64[3] zero = {0, 0, 0}, int64[3] two = {1, 1, 2}"), "name the axes"),
    Case("gather-range", (E, E, E, E), graph("y = Gather<axis=2>(x, k)", init="int64[1] k = {64}"), graph("y = Gather<axis=2>(x, k)", init="int64[2] k = {63, -64}"), "index 64 is beyond the axis of 64"),
    Case("custom-domain", (E, E, E, None), graph("y = SimplifiedLayerNormalization(x, w)", f"{X}, float[64] w"), graph("y = LayerNormalization(x, w)", f"{X}, float[64] w"), "an operator of ONNX Runtime"),
    Case("chip-precision", (E, N, N, None), graph(_FP8, init=_FP8_ZERO), graph(_INT8, init=_INT8_ZERO), r"fp8 is (computed from SM89 on, not by SM87; build for SM89|not computed by)"),
    Case("chip-precision", (None, N, N, None), graph("y = Relu(x)", "bfloat16[n] x", "bfloat16[n] y"), graph("y = Relu(x)", "float16[n] x", "float16[n] y"), "bf16 is not computed by SM75, other chips do"),
    Case("quantize-linear", (E, E, None, None), graph("q = QuantizeLinear(x, s, z) y = DequantizeLinear(q, s, z)", init="float s = {0.1}, uint8 z = {0}"), graph(_INT8, init=_INT8_ZERO), "quantises to uint8"),
    Case("quantize-linear", (E, E, None, None), graph("y = DequantizeLinear(q, s)", "int4[4,7] q, float s", "float[4,7] y", opset=21), graph("y = DequantizeLinear(q, s)", "int4[4,8] q, float s", "float[4,8] y", opset=21), "last axis has 7 elements"),
    Case("quantize-linear", (E, E, E, None), graph("q = QuantizeLinear(x, s, z) y = DequantizeLinear(q, s, z)", init="float s = {0.1}, int8 z = {3}"), graph(_INT8, init=_INT8_ZERO), "zero point is not 0"),
    Case("gathernd-capture", (None, None, None, N), graph("y = GatherND(x, i)", X + ", int64[m,1] i"), graph("y = Gather(x, i)", X + ", int64[m] i")),
]  # fmt: skip


def worst(report: LintReport, rule: str) -> str | None:
    return next((finding.severity for finding in report.findings if finding.rule == rule), None)


@pytest.mark.parametrize("target", KINDS)
@pytest.mark.parametrize("case", CASES, ids=[f"{at}-{case.rule}" for at, case in enumerate(CASES)])
def test_rule(case: Case, target: str) -> None:
    expected = case.severities[KINDS.index(target)]
    report = lint(case.fires, target)
    assert worst(report, case.rule) == expected, report
    hit = next((finding for finding in report.findings if finding.rule == case.rule), None)
    if hit is not None and target != "ort":  # which has words of its own
        assert re.search(case.match, f"{hit.message}; {hit.fix}")
    assert worst(lint(case.near, target), case.rule) is None


def test_every_rule_has_a_case() -> None:
    elsewhere = {"ir-version", "duplicate-names", "external-data"}  # below: no text spells these
    assert {case.rule for case in CASES} | elsewhere == set(RULES)


def test_ir_version() -> None:
    model = graph("y = Relu(x)")
    model.ir_version = 14
    assert [worst(lint(model, target), "ir-version") for target in KINDS] == [None, None, None, E]
    model.ir_version = 13
    assert worst(lint(model, "ort"), "ir-version") is None


def test_two_tensors_of_one_name() -> None:
    model = graph("y, i = TopK(x, k)  z = Relu(y)", outputs=Y + ", float[b,n,64] z", init=_K8)
    assert worst(lint(model, "tensorrt-rtx"), "duplicate-names") is None
    for value in model.graph.outputs:
        value.name = "_"
    (finding,) = [f for f in lint(model, "tensorrt-rtx").findings if f.rule == "duplicate-names"]
    assert finding.message == "'_' is the name of two tensors, and one hides the other"


def test_weight_files(tmp_path: Path) -> None:
    path = tmp_path / "encoder.onnx"
    weights = ir.tensor(np.arange(64, dtype=np.float32), name="w")
    text = '<ir_version: 10, opset_import: ["" : 20]> g (float[n,64] x) => (float[n,64] y) <float[64] w> { y = Add(x, w) }'
    model = ir.from_onnx_text(text, initializers=[weights])
    ir.save(model, path, external_data="encoder.onnx.data", size_threshold_bytes=0)
    assert worst(lint_file(path, "ort"), "external-data") is None
    path.rename(tmp_path / "pruned.onnx")
    report = lint_file(tmp_path / "pruned.onnx", "jetpack6")
    assert worst(report, "external-data") == N
    assert "named after another graph; ship both together" in str(report.findings[0])
    loaded = load_graph(tmp_path / "pruned.onnx")
    (tmp_path / "encoder.onnx.data").unlink()
    assert worst(lint(loaded, "jetpack6"), "external-data") == E
    with pytest.raises(GraphFileError, match=r"weight file '.*encoder\.onnx\.data' of '.*' is missing"):
        lint_file(tmp_path / "pruned.onnx", "jetpack6")
    outside = ir.ExternalTensor(
        "../w.data", 0, 256, ir.DataType.FLOAT, shape=ir.Shape([64]), name="w", base_dir=tmp_path
    )
    loaded.graph.initializers["w"].const_value = outside
    assert "outside the folder of the graph" in str(lint(loaded, "ort").of("error")[0])


def test_bodies_and_functions_are_walked() -> None:
    branch = "m = ReduceMax<keepdims=0>(x) c = Greater(m, h) y = If(c) <then_branch = t () => (float[b,n,64] p) { p = Relu(x) }, else_branch = e () => (float[b,n,64] q) { q = com.microsoft.Gelu(x) }>"
    (finding,) = lint(graph(branch, init="float h = {0.5}"), "jetpack6").of("error")
    assert (finding.rule, finding.op_type, finding.node, finding.where) == (
        "custom-domain",
        "Gelu",
        "q",
        "else_branch of If 'If_2'",
    )
    function = '<ir_version: 10, opset_import: ["" : 20, "mine" : 1]> g (float[n] x) => (int64[r,m] y) { y = mine.Kept(x) } <domain: "mine", opset_import: ["" : 20]> Kept (a) => (r) { t = Relu(a) r = NonZero(t) }'
    model = ir.from_onnx_text(function)
    report = lint(model, "tensorrt-rtx")
    assert [finding.rule for finding in report.findings] == ["selects-by-data"]
    assert len(model.functions) == 1  # linted on a copy


def test_what_sizes_depend_on_goes_through_bodies() -> None:
    body = "c = Greater(m, h) k = If(c) <then_branch = t () => (int64[1] p) { p = Identity(one) }, else_branch = e () => (int64[1] q) { q = Identity(j) }> y, i = TopK<axis=1>(x, k)"
    given = f"{X}, float m, int64[1] j"
    report = lint(graph(body, given, _V, f"float h = {{0.5}}, {_ONE}"), "tensorrt-rtx")
    (finding,) = [f for f in report.findings if f.rule == "shape-from-data"]
    assert "content of 'm'" in finding.message


def test_one_selection_by_data_is_one_finding() -> None:
    body = "z = NonZero(x) s = Shape(z) y = ConstantOfShape(s)"
    report = lint(graph(body, outputs="float[r,m] y"), "tensorrt11")
    assert [finding.rule for finding in report.findings] == ["selects-by-data"]


def test_nonzero_of_a_constant_has_a_known_size() -> None:
    reports = [lint(graph("c = NonZero(k) y = Relu(x)", init=_K8), target) for target in KINDS]
    assert [worst(report, "selects-by-data") for report in reports] == [None, None, E, None]


def test_the_second_topk_is_bounded_by_the_first() -> None:
    body = "v, i = TopK<axis=1>(x, k) f = Cast<to=6>(i) y, o = TopK<axis=1, largest=0>(f, k)"
    assert lint(graph(body, "float[b,576] x, int64[1] k", "int32[b,m] y"), "jetpack6").findings == ()


@pytest.mark.parametrize(("toy", "targets"), [
    (Toy(), ("jetpack6", "jetpack7", "tensorrt10", "tensorrt11", "tensorrt-rtx", "ort")),
    (Toy(opset=23), ("tensorrt11", "ort")),
])  # fmt: skip
def test_pruned_encoders_are_clean(toy: Toy, targets: tuple[str, ...]) -> None:
    model = load_graph(export(toy))
    prune(model)
    for target in targets:
        report = lint(model, target)
        assert report.ok, report
        assert {finding.rule for finding in report.findings} <= {"attention-kernel"}


def test_an_encoder_of_opset_23_is_refused_for_jetpack_6() -> None:
    model = load_graph(export(Toy(opset=23)))
    prune(model)
    report = lint(model, "jetpack6")
    assert not report.ok
    young = [finding for finding in report.of("error") if finding.rule == "op-too-young"]
    assert {finding.op_type for finding in young} == {"Attention"}
    assert young[0].node == "node_scaled_dot_product_attention"
    assert (
        worst(lint(model, "tensorrt-rtx"), "attention-kernel") == E
    )  # float32: no kernel, seen when building


def test_a_damaged_graph_is_a_sentence() -> None:
    model = graph("a = Relu(x) y = Relu(a)")
    model.graph.remove(model.graph[0])  # its reader stays
    with pytest.raises(UnsupportedGraphError, match=r"the graph is not valid ONNX \(.*\): export it again"):
        lint(model, "ort")


def test_the_model_stays_as_it_is() -> None:
    model = graph("a = Relu(x) y = Relu(a)")
    before = ir.to_proto(model).SerializeToString()
    lint(model, "jetpack6")
    assert ir.to_proto(model).SerializeToString() == before


def test_the_report() -> None:
    report = lint(graph("a = Cast<to=11>(x) y = com.microsoft.Gelu(a)"), "jetpack6")
    assert [finding.severity for finding in report.findings] == [E, W]
    assert report.to_dict()["counts"] == {E: 1, W: 1, N: 0}
    assert report.to_dict()["findings"][0]["rule"] == "custom-domain"
    assert not report.to_dict()["ok"]
    assert str(report.findings[0]).startswith(
        "error [custom-domain] Gelu 'Gelu_1': 'com.microsoft' is no domain"
    )
    assert str(Finding("opset", "error", "", "", "", "old", "new")) == "error [opset] old; new"
    with pytest.raises(FrozenInstanceError):
        report.findings[0].rule = "other"  # type: ignore[misc]


def test_an_unknown_target_is_refused() -> None:
    with pytest.raises(
        OptionError, match=r"target is 'xavier', but it is one of jetpack6, jetpack7, .*, ort$"
    ):
        lint(RELU, "xavier")
    with pytest.raises(OptionError, match="target is 'xavier'"):
        lint_file("none.onnx", "xavier")


def test_targets() -> None:
    assert list(TARGETS) == ["jetpack6", "jetpack7", "tensorrt10", "tensorrt11", "tensorrt-rtx", "ort"]
    assert all(name == target.name for name, target in TARGETS.items())
    with pytest.raises(TypeError):
        TARGETS["xavier"] = TARGETS["ort"]  # type: ignore[index]


def test_which_chips_compute_what() -> None:
    orin, both, rtx, ort = (TARGETS[name] for name in ("jetpack6", "jetpack7", "tensorrt-rtx", "ort"))
    assert orin.precisions == ("fp32", "fp16", "int8", "bf16", "int4")
    assert both.precisions == (*orin.precisions, "fp8") == rtx.precisions
    assert (orin.lacking("fp8"), both.lacking("fp8"), both.lacking("bf16")) == ((87,), (87,), ())
    assert rtx.lacking("bf16") == (75,)
    assert (orin.precision, ort.precision, ort.workspace) == ("fp16", "fp32", 0)
    # Of an 8 GB board no more than an eighth.
    assert 0 < orin.workspace <= 1 << 30


def test_jetpack_7_is_lenient_about_an_opset_nobody_documents() -> None:
    assert worst(lint(graph("y = Relu(x)", opset=24), "jetpack7"), "opset") == W
    assert worst(lint(graph("y = Relu(x)", opset=23), "jetpack7"), "opset") is None


def test_the_docs_list_every_rule_and_target() -> None:
    text = DOCS.read_text()
    rows = dict(re.findall(r"^\| `([\w-]+)` \|(.*)$", text, re.MULTILINE))
    assert set(rows) == set(RULES) | set(BUILD_RULES) | set(TARGETS)
    for name, rule in RULES.items():
        cells = [cell.strip() for cell in rows[name].split("|")][1:4]
        assert cells == [rule.severities.get(family, "") for family in ("tensorrt", "tensorrt-rtx", "ort")], (
            name
        )
    for name, target in TARGETS.items():
        assert f"{target.min_opset} to {target.max_opset}" in rows[name]
    assert all(severity in text for severity in SEVERITIES)
