"""Scales that are folded into a decoder change nothing but the last bits of its logits."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from calib.awq.folds import Fold, folds_of, shared_folds
from calib.awq.places import Readers
from tests.awq_graphs import ATTENTION, HEADS, NORMS, decoder, random_scales, run, scaled

# Of the largest output: each weight is multiplied by up to 4 and divided again, a rounding of 2^-24 each, and
# sums of 16 or 64 terms are rounded at other places; a wrong fold is off by a factor.
ROUNDING = 1e-5
QKV = "q = MatMul(h, w16x8_q) k = MatMul(h, w16x8_k) qb = Add(q, v8_q) y = Concat <axis = -1> (qb, k)"


def close(one: np.ndarray, other: np.ndarray) -> bool:
    return bool(np.abs(one - other).max() < ROUNDING * np.abs(other).max())


def only(model: ir.Model) -> Fold:
    folds, notes = folds_of(model, HEADS)
    assert notes == ()
    assert len(folds) == 1
    return folds[0]


@pytest.mark.parametrize("norm", NORMS)
def test_the_gain_of_a_norm(norm: str) -> None:
    model = decoder(f"{NORMS[norm]} {QKV}")
    before = run(model)["y"]
    fold = only(model)
    assert fold.name == "w16x8_q.input"
    betas = [name for name in model.graph.initializers if name == "v16_beta"]
    bias = scaled(model, "v8_q")
    assert random_scales((fold,)).apply(model) == 3 + len(betas)
    after = run(model)["y"]
    assert close(after, before)
    assert not np.array_equal(after, before)
    assert np.array_equal(scaled(model, "v8_q"), bias)  # behind the sum


@pytest.mark.parametrize(
    "products",
    [
        "g = MatMul(x, w16x24_gate) u0 = MatMul(x, w16x24_up) u = Add(v24_up, u0) m = Mul(g1, u)"
        " y = MatMul(m, w24x16_down)",
        "r = Reshape(x, rows) u = Gemm <transB = 1> (r, w24x16_up, v24_up) g = Gemm (r, w16x24_gate)"
        " m = Mul(u, g1) y0 = Gemm <transB = 1> (m, w16x24_down) y = Identity(y0)",
    ],
    ids=["MatMul", "Gemm"],
)
def test_up_is_scaled_for_down(products: str) -> None:
    products = products.replace(" m =", " e = Sigmoid(g) g1 = Mul(g, e) m =").replace("rows", "two_dims")
    body = f"two_dims = Constant <value_ints = [-1, 16]> () {products}"
    model = decoder(body, outputs="float[b, s, n] y" if "Gemm" not in products else "float[b, n] y")
    folds, notes = folds_of(model, HEADS)
    assert [fold.name for fold in folds] == [
        "w24x16_down.output" if "Gemm" not in products else "w16x24_down.output"
    ]
    assert len(notes) == 1
    before = run(model)["y"]
    assert random_scales(folds).apply(model) == 3  # up, its bias, down; the gate goes through a sigmoid
    after = run(model)["y"]
    assert close(after, before)
    assert not np.array_equal(after, before)


def test_values_are_scaled_for_the_output_with_grouped_queries_and_their_cache() -> None:
    model = decoder(
        ATTENTION,
        "float[b, s, n] y, float[b, 2, t, 4] present_0_value",
        "float[b, s, 16] x, float[b, 2, p, 4] past_key_values_0_value",
    )
    past = np.random.default_rng(1).standard_normal((2, 2, 1, 4)).astype(np.float32)
    before = run(model, **{"past_key_values.0.value": past})
    folds, _ = folds_of(model, HEADS)
    assert [fold.name for fold in folds] == ["w16x16_o.output"]
    scale = np.exp2(np.random.default_rng(2).uniform(-2, 2, 8)).astype(np.float32)
    wide = folds[0].spread(scale).reshape(2, 2, 4)
    assert np.array_equal(wide[:, 0], wide[:, 1])  # both heads of queries that read a head of values
    scales = random_scales(folds)
    assert scales.apply(model) == 3
    side = next(each for each in folds[0].divided if each.axis == 1)
    cached = next(each.values for each in scales.factors[side.tensor]).reshape(1, 2, 1, 4)
    after = run(model, **{"past_key_values.0.value": past * cached})
    assert close(after["y"], before["y"])
    assert close(after["present.0.value"], before["present.0.value"] * cached)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (
            "y = MatMul(o, w16x16_o)",
            "y0 = MatMul(o, w16x16_o) y = Add(y0, o)",
        ),  # the result is read elsewhere
        ("y = MatMul(o, w16x16_o)", "y0 = MatMul(o, w16x16_o) e = Relu(vr) s = ReduceSum(e) y = Add(y0, s)"),
        ("past_key_values_0_value, rows", "past_key_values_1_value, rows"),  # another layer's cache
        ("past_key_values_0_value, rows", "past_key_values_0_key, rows"),
        ("values = Reshape(each, four)", "v1 = Reshape(each, four) values = Relu(v1)"),
        ("vb = Add(v, v8_v)", "v1 = Add(v, v8_v) vb = Relu(v1)"),
        (
            "present_0_value = Concat <axis = 2> (past_key_values_0_value, rows)\n"
            "    apart = Unsqueeze(present",
            "cached = Concat <axis = 2> (past_key_values_0_value, rows) present_0_value = Add(cached, two)"
            " present2_0_value = Identity(cached) apart = Unsqueeze(present2",
        ),
        ("found = MatMul(p, values)", "f = MatMul(p, values) found = Add(f, q)"),  # not the values' alone
    ],
)
def test_values_that_are_read_in_another_way_stay(old: str, new: str) -> None:
    assert old in ATTENTION
    cache = new.partition(",")[0] if new.startswith("past") else "past_key_values_0_value"
    model = decoder(
        ATTENTION.replace(old, new),
        "float[b, s, n] y, float[b, 2, t, 4] present_0_value",
        f"float[b, s, 16] x, float[b, 2, p, 4] {cache}",
    )
    folds, notes = folds_of(model, HEADS)
    assert folds == ()
    assert any(note.startswith("w16x16_o is not scaled: ") for note in notes)


GAIN = NORMS["one operator"]
REFUSED = {
    "no gain": (
        "sq = Pow(x, two) r = Sqrt(sq) h = Div(x, r) y = MatMul(h, w16x8_q)",
        "w16x8_q is not scaled: what makes its input is neither a norm, a gate nor an attention",
    ),
    "no gain, two products": (
        f"sq = Pow(x, two) r = Sqrt(sq) h = Div(x, r) {QKV}",
        "w16x8_q is not scaled: its input is made by Div, which has no gain",
    ),
    "a gain made on the way": (
        f"one = Add(v16_gain, eps) h = SimplifiedLayerNormalization <axis = -1> (x, one) {QKV}",
        "the norm in front has no constant gain",
    ),
    "a gain made on the way, written out": (
        f"n = Sqrt(x) one = Add(v16_gain, eps) h = Mul(n, one) {QKV}",
        "neither side of the product in front is linear or a constant gain",
    ),
    "a gain of two norms": (
        f"{GAIN} k2 = Mul(x, v16_gain) {QKV} z = Relu(k2)",
        "v16_gain is read elsewhere too",
    ),
    "a weight of two products": (
        f"{GAIN} q = MatMul(h, w16x8_q) k = MatMul(x, w16x8_q) y = Concat <axis = -1> (q, k)",
        "w16x8_q is read elsewhere too",
    ),
    "an input that others read": (f"{GAIN} {QKV} z = Relu(h)", "its input is read by more than products"),
    "the graph's own input": ("y = MatMul(x, w16x8_q)", "its input is an input of the graph"),
    "a square": (
        "u = MatMul(x, w16x24_up) m = Mul(u, u) y = MatMul(m, w24x16_down)",
        "w24x16_down is not scaled: neither side of the product in front is linear",
    ),
    "a gate that is read elsewhere": (
        "u = MatMul(x, w16x24_up) g = Sigmoid(u) m = Mul(u, g) y = MatMul(m, w24x16_down)",
        "w24x16_down is not scaled: neither side of the product in front is linear",
    ),
    "an odd number of heads": (
        "e = Relu(x) h = Gather <axis = 2> (e, some) y = MatMul(h, w9x8_q)",
        "its input has 9 channels, no multiple of the 8 of values",
    ),
    "the sum of a norm": (
        "a, b, c, h = com.microsoft.SkipSimplifiedLayerNormalization (x, x, v16_gain)"
        " y0 = MatMul(h, w16x8_q) y = Identity(y0)",
        "its input is not the norm that SkipSimplifiedLayerNormalization makes",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_scaled_and_why(name: str) -> None:
    body, reason = REFUSED[name]
    model = decoder(body.replace("some", "last"))
    folds, notes = folds_of(model, HEADS)
    assert folds == ()
    assert any(reason in note for note in notes), notes


def test_a_graph_output_is_read_by_the_host() -> None:
    model = decoder(f"{GAIN} {QKV}", "float[b, s, n] y, float[b, s, 16] h")
    assert folds_of(model, HEADS) == (
        (),
        ("w16x8_q is not scaled: its input is read by more than products",),
    )


FUSED = """
    q = MatMul(x, w16x8_q) k = MatMul(x, w16x8_k) v = MatMul(x, w16x8_v)
    o = com.microsoft.MultiHeadAttention <num_heads = 2> (q, k, v BIAS) y = MatMul(o, w8x16_o)
"""


def test_values_of_a_fused_attention() -> None:
    model = decoder(FUSED.replace("BIAS", ""))
    before = run(model)["y"]
    folds, _ = folds_of(model, HEADS)
    assert [fold.name for fold in folds] == ["w8x16_o.output"]
    assert random_scales(folds).apply(model) == 2
    assert close(run(model)["y"], before)


def test_values_with_a_bias_inside_a_fused_attention_stay() -> None:
    folds, notes = folds_of(decoder(FUSED.replace("BIAS", ", v24_bias")), HEADS)
    assert folds == ()
    assert any(note.startswith("w8x16_o is not scaled: ") for note in notes)


def external(model: ir.Model, name: str, place: tuple[int, int], shape: tuple[int, ...]) -> None:
    """Let a weight lie in a file that several graphs read."""
    model.graph.initializers[name].const_value = ir.ExternalTensor(
        "all.onnx_data", *place, ir.DataType.FLOAT, shape=ir.Shape(shape), name=name, base_dir="/nowhere"
    )


@pytest.mark.parametrize("place", [(0, 512), (256, 1024)], ids=["the same bytes", "bytes in common"])
def test_a_table_tied_to_a_product_is_never_scaled(place: tuple[int, int]) -> None:
    head = decoder(f"{GAIN} y = MatMul(h, w16x8_head)")
    external(head, "w16x8_head", (0, 512), (16, 8))
    folds, _ = folds_of(head, HEADS)
    table = decoder("flat_ids = Cast <to = 7> (x) y = Gather(w8x16_table, flat_ids)")
    external(table, "w8x16_table", place, (place[1] // 64, 16))
    apart = decoder("flat_ids = Cast <to = 7> (x) y = Gather(w8x16_table, flat_ids)")
    external(apart, "w8x16_table", (4096, 512), (8, 16))
    assert shared_folds(folds, [(Readers.of(apart, "embed"), ())]) == (folds, ())
    assert shared_folds(folds, [(Readers.of(table, "embed"), ())]) == (
        (),
        ("w16x8_head.input is not scaled: the graph embed reads its weights in another way",),
    )


def test_a_fold_that_the_other_decoder_has_too_is_kept() -> None:
    models = [decoder(f"{NORMS[norm]} {QKV}") for norm in ("written out", "one operator")]
    (one, _), (other, _) = (folds_of(model, HEADS) for model in models)
    assert shared_folds(one, [(Readers.of(models[1], "portable"), other)]) == (one, ())
    assert shared_folds(one, [(Readers.of(models[1], "portable"), ())])[0] == ()


def test_two_names_of_the_same_bytes() -> None:
    model = decoder(f"{GAIN} {QKV}")
    for name in ("w16x8_q", "w16x8_k"):
        external(model, name, (0, 512), (16, 8))
    assert folds_of(model, HEADS)[1] == ("w16x8_q is not scaled: two of its weights are the same tensor",)
