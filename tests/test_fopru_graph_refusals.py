"""Graphs whose rows look right by their number, and are of another token, another image, or of no patch."""

# ruff: noqa: E501  (one line of ONNX text per case reads better than a broken one)
from __future__ import annotations

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest

from fopru_graph import LocateError, PruneOptions, prune
from fopru_graph.attention import is_causal, reads
from fopru_graph.lineage import follow
from fopru_graph.passes import PreparePass
from fopru_graph.shapes import dims
from fopru_graph.specials import special_rows, trailing_rows
from tests.toy_encoders import text_encoder

ATTEND = "l = Mul(s, half) p = Softmax<axis=-1>(l) a = MatMul(p, v)"
PAST = np.where(np.tri(7, dtype=bool), 0, -1e9).astype(np.float32).reshape(1, 1, 7, 7)


def test_keys_in_another_order_are_refused() -> None:
    model = text_encoder(
        attention=f"kr = Gather<axis=3>(k, order) s = MatMul(q, kr) {ATTEND}",
        more=", int64[7] order = {6, 5, 4, 3, 2, 1, 0}",
    )
    with pytest.raises(
        LocateError, match="cannot tell that keys and queries of attention 'Softmax_13' are the same tokens"
    ):
        prune(model)
    vouched = text_encoder(
        attention=f"kr = Gather<axis=3>(k, order) s = MatMul(q, kr) {ATTEND}",
        more=", int64[7] order = {6, 5, 4, 3, 2, 1, 0}",
    )
    assert prune(vouched, PruneOptions(tap="p")).locator == "tensor"


def test_keys_joined_from_the_same_parts_as_queries_are_taken() -> None:
    # Rotary positions turn the patches and leave the class token: both sides are joined again from two parts.
    turn = (
        "{x}c = Slice({x}0, zero, one, one) {x}p = Slice({x}0, one, many, one) {x}t = Mul({x}p, scale) {x}j = Concat<axis=1>({x}c, {x}t) "
        "{x}h = Reshape({x}j, heads) {x}r = Transpose<perm=[0,{perm},3]>({x}h) "
    )
    both = turn.format(x="q", perm="2,1") + turn.format(x="k", perm="2,1")
    report = prune(
        text_encoder(attention=f"{both} kx = Transpose<perm=[0,1,3,2]>(kr) s = MatMul(qr, kx) {ATTEND}")
    )
    assert (report.gather, report.tokens) == ("early", 6)
    other = both.replace("kj = Concat<axis=1>(kc, kt)", "kj = Concat<axis=1>(kt, kc)")
    with pytest.raises(LocateError, match="cannot tell that keys and queries"):
        prune(
            text_encoder(attention=f"{other} kx = Transpose<perm=[0,1,3,2]>(kr) s = MatMul(qr, kx) {ATTEND}")
        )


IMAGES = {
    "it picks images": "n = Shape<start=0, end=1>(y) i = Sub(n, one) t = Gather<axis=0>(y, i)",
    "it concatenates images": "t = Concat<axis=0>(y, y)",
    "it picks images, or may do so": "t = Slice(y, one, many, zero)",
}


@pytest.mark.parametrize("reason", IMAGES)
def test_rows_of_other_images_are_refused(reason: str) -> None:
    model = text_encoder(tail=f"{IMAGES[reason]} image_features = Slice(t, one, many, one)")
    with pytest.raises(LocateError, match=f"cannot tell which of the 7 rows .* stopped at .*{reason}"):
        prune(model)


def test_fewer_images_than_the_attention_has_are_refused() -> None:
    model = text_encoder(
        tail="t = ReduceMean<keepdims=1>(y, zero) image_features = Slice(t, one, many, one)", images=2
    )
    model.graph.outputs[0].shape = ir.Shape([1, 6, 8])
    with pytest.raises(LocateError, match="'image_features' has 1 images and attention 'Softmax_12' 2"):
        prune(model)


@pytest.mark.parametrize("form", [
    {"attention": "s = MatMul(q, k) l = Add(s, mask) p = Softmax<axis=-1>(l) a = MatMul(p, v)"},
    {"attention": "kt = Transpose<perm=[0,1,3,2]>(k) a = Attention(q, kt, v, mask)", "opset": 23},
])  # fmt: skip
def test_a_constant_causal_mask_is_a_near_miss(form: dict[str, object]) -> None:
    model = text_encoder(**form, more=", float[1,1,7,7] mask", tensors={"mask": PAST})  # type: ignore[arg-type]
    with pytest.raises(LocateError, match="its mask is causal, and a causal layer gives early tokens no say"):
        prune(model)


def value_of(array: np.ndarray) -> ir.Value:
    return ir.Value(name="mask", const_value=ir.tensor(array))


def test_which_masks_are_causal() -> None:
    tri = np.tri(5, dtype=bool)
    for mask in (PAST, tri, ~tri, np.where(tri, 1.5, -np.inf).astype(np.float32)):
        assert is_causal(value_of(np.asarray(mask)))
    for mask in (
        np.zeros((5, 5), np.float32),
        tri[:, :4],
        tri.T & tri,
        np.ones((1, 1), bool),
        np.zeros(5, np.float32),
    ):
        assert not is_causal(value_of(np.asarray(mask)))
    assert not is_causal(None)


def test_rows_behind_the_patches_are_noted() -> None:
    header = '<ir_version: 9, opset_import: ["" : 17]> g (float[2,48] x) => (float[2,8,8] y) <int64[3] flat = {0,8,6}, int64[3] b = {2,2,8}, float[1,2,8] late>'
    body = "{ p0 = Reshape(x, flat) p = Transpose<perm=[0,2,1]>(p0) c = Expand(late, b) y = Concat<axis=1>(p, c) }"
    model = ir.from_onnx_text(
        f"{header} {body}", initializers=[ir.tensor(np.ones((1, 2, 8), np.float32), name="late")]
    )
    PreparePass().run(model)
    lineage = follow(model.graph.outputs[0], 1)
    assert (special_rows(lineage, 0), trailing_rows(lineage)) == (0, 2)


def test_bodies_read_values_from_around_them() -> None:
    text = """<ir_version: 9, opset_import: ["" : 17]> g (float[B,6,8] x, bool c) => (float[B,6,8] y) {
        t = Tanh(x)  y = If(c) <then_branch = a () => (float[B,6,8] u) { u = Neg(t) }, else_branch = b () => (float[B,6,8] w) { w = Add(t, x) }> }"""
    graph = ir.from_onnx_text(text).graph
    node = next(node for node in graph if node.op_type == "If")
    assert {value.name for value in reads(node)} == {"c", "t", "x"}


def test_attention_inside_a_body_is_named() -> None:
    text = """<ir_version: 9, opset_import: ["" : 17]> g (float[B,6,8] x, bool c) => (float[B,6,8] image_features) {
        image_features = If(c) <then_branch = a () => (float[B,6,8] u) { u = Softmax(x) }, else_branch = b () => (float[B,6,8] w) { w = Neg(x) }> }"""
    model = ir.from_onnx_text(text)
    next(iter(model.graph)).name = "branch"
    with pytest.raises(
        LocateError, match="no attention found outside of If 'branch', whose body is not looked into"
    ):
        prune(model)


def test_windows_are_named_as_such() -> None:
    model = text_encoder(tail="t = Concat<axis=1>(y, y) image_features = Gelu(t)", kept=14)
    with pytest.raises(
        LocateError,
        match=r"attention 'Softmax_12' has 7 rows, fewer than the 14 of 'image_features': it looks at windows",
    ):
        prune(model)


def test_a_name_for_two_sizes_is_not_trusted() -> None:
    # height and width share a name here, and the width is read off a tensor in between
    text = """<ir_version: 9, opset_import: ["" : 17]> g (float[B,1,size,size] x) => (float[B,1,h,w] y)
        <int64 third = {3}, int64[1] zero = {0}, int64[1] minus = {-1}> {
        t = Tanh(x) s = Shape(t) n = Gather<axis=0>(s, third) k = Unsqueeze(n, zero) b = Shape<start=0, end=2>(x) shape = Concat<axis=0>(b, minus, k) y = Reshape(t, shape) }"""
    model = ir.from_onnx_text(text)
    PreparePass().run(model)
    x = np.arange(6, dtype=np.float32).reshape(1, 1, 2, 3)
    session = ort.InferenceSession(ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"])
    # the same numbers in the same places; one rounding of tanh between the two libraries
    assert np.allclose(session.run(None, {"x": x})[0], np.tanh(x), rtol=0, atol=2e-7)


def test_names_of_outputs_give_way_to_what_is_inferred() -> None:
    text = """<ir_version: 9, opset_import: ["" : 17]> g (float[batch,rows,8] x) => (float[b,rows,8] y, float[batch,rows,8] z)
        <int64[1] one = {1}, int64[1] end = {9223372036854775807}> { y = Tanh(x) z = Slice(x, one, end, one) }"""
    model = ir.from_onnx_text(text)
    PreparePass().run(model)
    first, second = (dims(value) for value in model.graph.outputs)
    assert first == ("batch", "rows", 8)
    assert second is not None
    assert second[1] != "rows"
