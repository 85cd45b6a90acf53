"""Which row of one tensor is which row of another, through layouts that a gather cannot cross."""

# ruff: noqa: E501  (one operator per line)
from __future__ import annotations

import onnx_ir as ir
import pytest

from fopru_graph.lineage import follow, row_offset
from fopru_graph.tokenwise import Demand

CASES = {
    "tokens come first": ("(float[B,7,8] x) => (float[7,B,8] y) { y = Transpose<perm=[1,0,2]>(x) }", 0, Demand(1, 0)),
    "all axes turned round": ("(float[8,7,B] x) => (float[B,7,8] y) { y = Transpose(x) }", 1, Demand(1, 0)),
    "images and heads merge behind the tokens": ("(float[7,B,8] x, int64[3] s) => (float[7,M,4] y) { y = Reshape(x, s) }", 0, Demand(0, 0)),
    "images and heads split before the tokens": ('(float["4*B",7,8] x, int64[4] s) => (float[B,4,7,8] y) { y = Reshape(x, s) }', 2, Demand(1, 0)),
    "an operand shared by images": ("(float[B,7,8] x, float[1,7,8] e) => (float[B,7,8] y) { y = Add(x, e) }", 1, Demand(1, 0)),
    "a linear layer with tokens first": ("(float[7,B,8] x, float[8,4] w) => (float[7,B,4] y) { y = MatMul(x, w) }", 0, Demand(0, 0)),
    "a norm with tokens first": ("(float[7,B,8] x, float[8] w) => (float[7,B,8] y) { y = LayerNormalization(x, w) }", 0, Demand(0, 0)),
    "a softmax with tokens first": ("(float[7,B,8] x) => (float[7,B,8] y) { y = Softmax(x) }", 0, Demand(0, 0)),
    "one of three packed projections": ("(float[3,7,B,8] x, int64 i) => (float[7,B,8] y) { y = Gather<axis=0>(x, i) }", 0, Demand(1, 0)),
    "picked behind the tokens": ("(float[7,B,8] x, int64[2] i) => (float[7,B,2] y) { y = Gather<axis=2>(x, i) }", 0, Demand(0, 0)),
    "an axis of one goes": ("(float[1,7,B,8] x, int64[1] zero) => (float[7,B,8] y) { y = Squeeze(x, zero) }", 0, Demand(1, 0)),
    "every axis of one goes": ("(float[1,7,B,8] x) => (float[7,B,8] y) { y = Squeeze(x) }", 0, Demand(1, 0)),
    "one of three packed parts": ("(float[3,B,7,8] x, int64[1] zero) => (float[B,7,8] y) <float[1,B,7,8] a> { a, b, c = Split<axis=0, num_outputs=3>(x) y = Squeeze(a, zero) }", 1, Demand(2, 0)),
    "an axis of one comes": ("(float[7,B,8] x, int64[1] zero) => (float[1,7,B,8] y) { y = Unsqueeze(x, zero) }", 1, Demand(0, 0)),
}  # fmt: skip

STOPS = {
    "it mixes tokens": ("(float[14,B,4] x, int64[3] s) => (float[7,B,8] y) { y = Reshape(x, s) }", 0),
    "an unnamed size may be any": ("(float[?,7,8] x, int64[4] s) => (float[B,4,7,?] y) { y = Reshape(x, s) }", 2),
    "tokens are picked": ("(float[9,B,8] x, int64[7] i) => (float[7,B,8] y) { y = Gather<axis=0>(x, i) }", 0),
    "tokens are an index": ("(float[9,8] x, int64[7,B] i) => (float[7,B,8] y) { y = Gather<axis=0>(x, i) }", 0),
    "tokens are normalised away": ("(float[B,8,7] x) => (float[B,8,7] y) { y = Softmax(x) }", 2),
    "tokens are summed over": ("(float[7,B,8] x, float[7,8,4] w) => (float[7,B,4] y) { y = MatMul(x, w) }", 0),
    "parts of the tokens": ("(float[14,B,8] x) => (float[7,B,8] y) { y, z = Split<axis=0, num_outputs=2>(x) }", 0),
    "the new axis": ("(float[B,8] x, int64[1] one) => (float[B,1,8] y) { y = Unsqueeze(x, one) }", 1),
    "one row stands for all": ("(float[7,B,8] x, float[N,B,8] w) => (float[7,B,8] y) { y = Mul(x, w) }", 0),
}  # fmt: skip


def graph_of(text: str) -> ir.Graph:
    tensors = [ir.tensor([at], name=name) for name, at in (("zero", 0), ("one", 1)) if f" {name})" in text]
    declared = text.replace(", int64[1] zero", "").replace(", int64[1] one", "")
    header = '<ir_version: 10, opset_import: ["" : 20]>'
    return ir.from_onnx_text(f"{header} g {declared}", initializers=tensors).graph


@pytest.mark.parametrize("case", CASES)
def test_rows_are_followed_through_a_layout(case: str) -> None:
    text, axis, expected = CASES[case]
    graph = graph_of(text)
    lineage = follow(graph.outputs[0], axis)
    assert lineage.reached[graph.inputs[0]] == {expected}
    assert lineage.stops == ()


@pytest.mark.parametrize("case", STOPS)
def test_a_near_miss_stops(case: str) -> None:
    text, axis = STOPS[case]
    graph = graph_of(text)
    lineage = follow(graph.outputs[0], axis)
    assert graph.inputs[0] not in lineage.reached
    assert [stop.node.op_type for stop in lineage.stops] == [graph[0].op_type]


def test_two_tensors_meet_in_a_common_one() -> None:
    graph = graph_of(
        "(float[B,7,8] x, int64[1] s, int64[1] e) => (float[B,6,8] y, float[7,B,8] q)"
        "<int64[1] start = {1}, int64[1] end = {1000}> "
        "{ y = Slice(x, start, end, start) q = Transpose<perm=[1,0,2]>(x) }"
    )
    features, attention = graph.outputs
    assert row_offset(follow(features, 1), attention, 0) == 1
    # the other way round row 0 would be row -1
    assert row_offset(follow(attention, 0), features, 1) is None
    assert row_offset(follow(features, 1), attention, 1) is None
