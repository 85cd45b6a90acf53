"""Rules of single operators: which rows of which inputs they need, or why nobody can tell."""

# ruff: noqa: E501  (one operator per line)
from __future__ import annotations

import re

import onnx_ir as ir
import pytest

from fopru_graph.tokenwise import Demand, Refusal, demands_of

X = "float[B,7,8] x"

ANSWERS = {
    "offset grows": (f"({X}) => (float[B,5,8] y) {{ y = Slice(x, s, e, a) }}", Demand(1, 1), ((0, Demand(1, 3)),)),
    "weights over the last axis": (f"({X}, float[8] w) => (float[B,7,8] y) {{ y = Add(w, x) }}", Demand(1, 0), ((1, Demand(1, 0)),)),
    "two carriers": (f"({X}, float[B,7,1] w) => (float[B,7,8] y) {{ y = Mul(w, x) }}", Demand(1, 2), ((0, Demand(1, 2)), (1, Demand(1, 2)))),
    "one row for all": (f"({X}, float[B,1,8] m) => (float[B,7,8] y) {{ y = Sub(x, m) }}", Demand(1, 0), ((0, Demand(1, 0)),)),
    "tokens move": ("(float[B,2,7,4] x) => (float[B,7,2,4] y) { y = Transpose<perm=[0,2,1,3]>(x) }", Demand(1, 1), ((0, Demand(2, 1)),)),
    "heads merge": ("(float[B,7,2,4] x, int64[3] shape) => (float[B,7,8] y) { y = Reshape(x, shape) }", Demand(1, 0), ((0, Demand(1, 0)),)),
    "reduced axis before tokens": ("(float[B,2,7,8] x) => (float[B,7,8] y) { y = ReduceMax<keepdims=0, axes=[1]>(x) }", Demand(1, 0), ((0, Demand(2, 0)),)),
    "tokens are a batch axis of the left side": ("(float[B,7,2,4] x, float[4,4] w) => (float[B,7,2,4] y) { y = MatMul(x, w) }", Demand(1, 0), ((0, Demand(1, 0)),)),
    "operator with one mask row": ("(float[B,2,7,4] q, float[B,2,7,4] k, float[B,1,1,7] m) => (float[B,2,7,4] y) { y = Attention(q, k, k, m) }", Demand(2, 0), ((0, Demand(2, 0)),)),
    "operator with a mask row per query": ("(float[B,2,7,4] q, float[B,2,7,4] k, float[B,1,7,7] m) => (float[B,2,7,4] y) { y = Attention(q, k, k, m) }", Demand(2, 1), ((0, Demand(2, 1)), (3, Demand(2, 1)))),
    "no axes and no reduction": (f"({X}) => (float[B,7,8] y) {{ y = ReduceMean<noop_with_empty_axes=1>(x, n) }}", Demand(1, 2), ((0, Demand(1, 2)),)),
    "norm with a scale per feature": (f"({X}, float[1,8] w, float[8] b) => (float[B,7,8] y) {{ y = LayerNormalization(x, w, b) }}", Demand(1, 0), ((0, Demand(1, 0)),)),
    "softmax over keys": ("(float[B,2,7,7] x) => (float[B,2,7,7] y) { y = Softmax(x) }", Demand(2, 0), ((0, Demand(2, 0)),)),
}  # fmt: skip

REFUSALS = {
    "this operator is not known": (f"({X}) => (float[B,7,8] y) {{ y = CumSum(x, x) }}", Demand(1, 0)),
    "the shape of one of its tensors is unknown": (f"({X}) => (float[B,7,8] y) {{ z = Neg(x) y = Add(x, z) }}", Demand(1, 0)),
    "none of its inputs has a token axis": (f"({X}) => (float[B,7,8] y) {{ y = Neg(x) }}", Demand(0, 0)),
    "an axis between images and tokens has no fixed size": ("(float[B,H,7,8] x) => (float[B,H,7,8] y) { y = Neg(x) }", Demand(2, 0)),
    "varies along tokens, not along images or heads": (f"({X}, float[7,1] w) => (float[B,7,8] y) {{ y = Mul(x, w) }}", Demand(1, 0)),
    "its operand 'm' varies along tokens": ("(float[B,2,7,7] x, float[B,1,7,7] m) => (float[B,2,7,7] y) { y = Add(x, m) }", Demand(2, 0)),
    "tokens are the columns of its result": ("(float[B,8,4] x, float[4,7] w) => (float[B,8,7] y) { y = MatMul(x, w) }", Demand(2, 0)),
    "tokens are a batch axis of both of its operands": ("(float[B,7,2,4] x, float[B,7,4,4] w) => (float[B,7,2,4] y) { y = MatMul(x, w) }", Demand(1, 0)),
    "its left operand is shared by images or heads": ("(float[7,4] x, float[B,4,4] w) => (float[B,7,4] y) { y = MatMul(x, w) }", Demand(1, 0)),
    "it normalises over axis 1 and later ones": (f"({X}, float[7,8] w) => (float[B,7,8] y) {{ y = LayerNormalization<axis=1>(x, w) }}", Demand(1, 0)),
    "it normalises over tokens": (f"({X}) => (float[B,7,8] y) {{ y = Softmax<axis=1>(x) }}", Demand(1, 0)),
    "the axes it reduces are not constant": (f"({X}, int64[1] axes) => (float[B,7,1] y) {{ y = ReduceMean(x, axes) }}", Demand(1, 0)),
    "it reduces over tokens": (f"({X}) => (float[B,1,8] y) {{ y = ReduceMean<axes=[1]>(x) }}", Demand(1, 0)),
    "it reduces over": (f"({X}) => (float[1,1,1] y) {{ y = ReduceMean(x, n) }}", Demand(1, 0)),
    "it reduces": (f"({X}) => (float[1,1,1] y) {{ y = ReduceMean<noop_with_empty_axes=0>(x) }}", Demand(1, 0)),
    "its operand 'w' has N tokens and its result 7, so that one may stand for all": (f"({X}, float[B,N,8] w) => (float[B,7,8] y) {{ y = Mul(x, w) }}", Demand(1, 0)),
    "its operand 'w' has None tokens and its result 7, so that one may stand for all": (f"({X}, float[B,?,8] w) => (float[B,7,8] y) {{ y = Mul(x, w) }}", Demand(1, 0)),
    "its weight 'w' varies along tokens": (f"({X}, float[7,8] w) => (float[B,7,8] y) {{ y = LayerNormalization(x, w) }}", Demand(1, 0)),
    "its weight 'b' varies along tokens": (f"({X}, float[8] w, float[7,8] b) => (float[B,7,8] y) {{ y = LayerNormalization(x, w, b) }}", Demand(1, 0)),
    "it moves the images axis": ("(float[7,B,8] x) => (float[B,7,8] y) { y = Transpose<perm=[1,0,2]>(x) }", Demand(1, 0)),
    "it moves the images axis (perm [2, 1, 0])": ("(float[8,7,B] x) => (float[B,7,8] y) { y = Transpose(x) }", Demand(1, 0)),
    "which mixes tokens with other axes": ("(float[B,14,4] x, int64[3] shape) => (float[B,7,8] y) { y = Reshape(x, shape) }", Demand(1, 0)),
    "the axes after the tokens are not fixed": ("(float[B,7,D] x, int64[3] shape) => (float[B,7,8] y) { y = Reshape(x, shape) }", Demand(1, 0)),
    "it counts tokens from the end, or skips some": (f"({X}) => (float[B,4,8] y) {{ y = Slice(x, s, e, a, t) }}", Demand(1, 0)),
    "it concatenates along tokens": (f"({X}) => (float[B,14,8] y) {{ y = Concat<axis=1>(x, x) }}", Demand(1, 0)),
    "it splits tokens": ("(float[B,14,8] x) => (float[B,7,8] y) { y, z = Split<axis=1, num_outputs=2>(x) }", Demand(1, 0)),
    "tokens are not its queries": ("(float[B,2,7,4] q, float[B,2,7,4] k) => (float[B,2,7,4] y) { y = Attention(q, k, k) }", Demand(1, 0)),
    "a second output of it is in use": ("(float[B,2,7,4] q) => (float[B,2,7,4] y, float[B,2,7,4] c) { y, c, d = Attention(q, q, q) }", Demand(2, 0)),
    "it is causal": ("(float[B,2,7,4] q) => (float[B,2,7,4] y) { y = Attention<is_causal=1>(q, q, q) }", Demand(2, 0)),
    "its mask 'm' has a row per query and is shared by images": ("(float[B,2,7,4] q, float[7,7] m) => (float[B,2,7,4] y) { y = Attention(q, q, q, m) }", Demand(2, 0)),
}  # fmt: skip


CONSTANTS = "<int64[1] s = {2}, int64[1] e = {1000}, int64[1] a = {1}, int64[1] t = {2}, int64[0] n = {}>"


def last_node(text: str) -> ir.Node:
    """The last node of `(inputs) => (outputs) { … }`; s, e, a, t, n are a start, an end, axis 1, step 2, no axes."""
    signature, body = text.split("{ ", 1)
    model = ir.from_onnx_text(f'<ir_version: 11, opset_import: ["" : 23]> g {signature}{CONSTANTS} {{ {body}')
    return list(model.graph)[-1]


@pytest.mark.parametrize("name", ANSWERS)
def test_rows_an_operator_needs(name: str) -> None:
    text, demand, answer = ANSWERS[name]
    assert demands_of(last_node(text), demand) == answer


@pytest.mark.parametrize("reason", REFUSALS)
def test_operators_that_are_refused(reason: str) -> None:
    text, demand = REFUSALS[reason]
    answer = demands_of(last_node(text), demand)
    assert isinstance(answer, Refusal)
    assert re.search(re.escape(reason), answer.reason)
