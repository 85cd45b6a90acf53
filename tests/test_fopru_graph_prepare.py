"""Shapes that exporters write in roundabout ways are written plainly, and nothing else changes."""

# ruff: noqa: E501  (one line of ONNX text per case reads better than a broken one)
from __future__ import annotations

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx_ir.passes.common import RemoveUnusedNodesPass

from fopru_graph import LocateError, PruneOptions, UnsupportedGraphError, prune
from fopru_graph.builder import STAMP, GraphBuilder
from fopru_graph.lineage import follow
from fopru_graph.passes import PreparePass
from fopru_graph.plain_shapes import fold_integers, reroute_sizes, rewrite_expands
from fopru_graph.shapes import dims
from fopru_graph.specials import special_rows
from tests.toy_encoders import text_encoder

HEAD = '<ir_version: 9, opset_import: ["" : 17]> g (float[B,6,8] x) => (float[{dims}] y)'
EXPAND = (
    "<float[1,1,8] cls = {0,1,2,3,4,5,6,7}, int64[1] one = {1}, int64[1] minus = {-1}, int64[1] zero = {0}, int64 first = {0}, int64 unit = {-1}> "
    "{ d0 = ReduceMax<keepdims=0>(x) d1 = Cast<to=7>(d0) d = Unsqueeze(d1, zero) shape = Shape(x) b0 = Gather<axis=0>(shape, first) b = Unsqueeze(b0, zero) s0 = Concat<axis=0>(b, LIST) s = Reshape(s0, minus) "
    "n = Shape(s) ones = ConstantOfShape<value=int64[1] {1}>(n) less = Mul(ones, unit) e = Equal(s, OTHER) w = Where(e, ones, s) c = Expand(cls, w) y = Concat<axis=1>(c, x) }"
)


def model_of(text: str, sizes: str = "B,7,8") -> ir.Model:
    return ir.from_onnx_text(HEAD.format(dims=sizes) + text)


def outputs(model: ir.Model, images: int) -> list[np.ndarray]:
    x = np.random.default_rng(0).standard_normal((images, 6, 8), dtype=np.float32)
    session = ort.InferenceSession(ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"])
    return list(session.run(None, {session.get_inputs()[0].name: x}))


def expand(parts: str = "one, minus", other: str = "less") -> ir.Model:
    return model_of(EXPAND.replace("LIST", parts).replace("OTHER", other))


def test_torchscript_expand_is_written_without_a_where() -> None:
    before, model = outputs(expand(), 3), expand()
    assert rewrite_expands(model.graph, GraphBuilder(model.graph, "prepare")) == 1
    PreparePass().run(model)
    joined = next(node.outputs[0] for node in model.graph if node.op_type == "Expand")
    assert dims(joined) == ("B", 1, 8)
    assert before[0].tobytes() == outputs(model, 3)[0].tobytes()
    assert [node for node in model.graph if node.metadata_props.get(STAMP) == "prepare"]


@pytest.mark.parametrize(
    "case",
    {
        "ones for ones": expand(other="ones"),
        "a number that pixels make": expand(parts="one, d"),
        "no Where": model_of("{ y = Concat<axis=1>(x, x) }", "B,12,8"),
    }.values(),
)
def test_another_where_stays(case: ir.Model) -> None:
    before = [node.op_type for node in case.graph]
    assert rewrite_expands(case.graph, GraphBuilder(case.graph, "prepare")) == 0
    assert [node.op_type for node in case.graph] == before


def test_integer_arithmetic_on_constants_is_done() -> None:
    text = (
        "<int64[1] seven = {7}, int64[1] five = {5}, int64[1] minus = {-1}> "
        "{ r = Mod(seven, five) m = Reshape(r, minus) a = Mul(m, seven) rest = Sub(a, seven) one = Div(rest, seven) y = Slice(x, one, a, one) }"
    )
    before, model = outputs(model_of(text, "B,5,8"), 2), model_of(text, "B,5,8")
    assert fold_integers(model.graph, GraphBuilder(model.graph, "prepare")) == 5
    assert [node.op_type for node in model.graph] == ["Slice"]
    assert before[0].tobytes() == outputs(model, 2)[0].tobytes()


def test_arithmetic_on_anything_else_stays() -> None:
    text = "<float[1] half = {0.5}, int64[1] one = {1}> { h = Mul(half, half) n = Size(x) k = Add(n, one) f = Cast<to=1>(k) a = Mul(x, h) y = Add(a, f) }"
    model = model_of(text, "B,6,8")
    assert fold_integers(model.graph, GraphBuilder(model.graph, "prepare")) == 0


def test_sizes_are_read_off_inputs_or_known() -> None:
    text = (
        "<int64 first = {0}, int64[1] second = {1}, int64[1] minus = {-1}, int64[1] zero = {0}> "
        "{ t = Tanh(x) s = Shape(t) b0 = Gather<axis=0>(s, first) b = Unsqueeze(b0, zero) n = Gather<axis=0>(s, second) w = Shape<start=2, end=3>(t) "
        "shape = Concat<axis=0>(b, n, w) y = Reshape(t, shape) }"
    )
    before, model = outputs(model_of(text, "B,6,8"), 2), model_of(text, "B,6,8")
    result = PreparePass().run(model)
    assert (result.findings.sizes, result.findings.folded, result.modified) == (3, 0, True)
    RemoveUnusedNodesPass()(model)
    readers = [
        node.inputs[0].name for node in model.graph if node.op_type == "Shape" and node.outputs[0].uses()
    ]
    assert readers == ["x"]
    assert before[0].tobytes() == outputs(model, 2)[0].tobytes()


def test_sizes_that_nobody_named_stay() -> None:
    text = "<int64 first = {0}> { t = NonZero(x) s = Shape(t) n = Gather<axis=0>(s, first) m = Shape(x) k = Gather<axis=0>(m, first) f = Cast<to=1>(n) g = Cast<to=1>(k) a = Add(x, f) y = Mul(a, g) }"
    model = model_of(text, "B,6,8")
    for value in [value for node in model.graph for value in node.outputs]:
        assert value.shape is None or value.is_graph_output()
    assert reroute_sizes(model.graph, GraphBuilder(model.graph, "prepare")) == 0


def test_a_local_function_is_inlined() -> None:
    text = (
        '<ir_version: 9, opset_import: ["" : 17, "own" : 1]> g (float[B,6,8] x) => (float[B,6,8] y) { y = own.twice(x) }\n'
        '<domain: "own", opset_import: ["" : 17]> twice (a) => (b) { b = Add(a, a) }'
    )
    model = ir.from_onnx_text(text)
    assert PreparePass().run(model).findings.functions == 1
    assert [node.op_type for node in model.graph] == ["Add"]


def test_nothing_to_do_is_reported_as_nothing() -> None:
    model = text_encoder()
    before = [node.op_type for node in model.graph]
    result = PreparePass().run(model)
    assert (result.modified, result.count) == (False, 0)
    assert [node.op_type for node in model.graph] == before


# ---- rows that are not patches

PATCHES = "p0 = Reshape(x, flat) p = Transpose<perm=[0,2,1]>(p0)"
TOKENS = "<int64[3] flat = {0,8,6}, LEARNT int64[1] zero = {0}, int64[1] one = {1}, int64[1] end = {1000}, int64[3] b = {2,1,8}, int64[3] b4 = {2,4,8}>"
SPECIAL = {
    "patches alone": ("y = Tanh(p)", 6, 0),
    "a class token": ("c = Expand(cls, b) t = Concat<axis=1>(c, p) y = Add(t, position)", 7, 1),
    "behind a norm and a cast": ("c = Expand(cls, b) t = Concat<axis=1>(c, p) u = Mul(t, cls) v = Tanh(u) y = Add(v, position)", 7, 1),
    "registers between": (
        "c = Expand(cls, b) r = Expand(registers, b4) t0 = Concat<axis=1>(c, p) t = Add(t0, position) "
        "h = Slice(t, zero, one, one) o = Slice(t, one, end, one) y = Concat<axis=1>(h, r, o)", 11, 5,
    ),
    "a row made from pixels": ("m = ReduceMean<axes=[1], keepdims=1>(p) t = Concat<axis=1>(m, p) y = Add(t, position)", 7, None),
    "patches before the class token": ("c = Expand(cls, b) y = Concat<axis=1>(p, c)", 7, 0),
}  # fmt: skip


@pytest.mark.parametrize("case", SPECIAL)
def test_rows_that_no_pixel_reaches_are_counted(case: str) -> None:
    nodes, rows, expected = SPECIAL[case]
    header = f'<ir_version: 9, opset_import: ["" : 17]> g (float[2,48] x) => (float[2,{rows},8] y)'
    arrays = {"cls": (1, 1, 8), "registers": (1, 4, 8), "position": (1, 7, 8)}
    used = {name: shape for name, shape in arrays.items() if name in nodes}
    learnt = "".join(f"float[{','.join(map(str, shape))}] {name}, " for name, shape in used.items())
    tensors = [ir.tensor(np.ones(shape, np.float32), name=name) for name, shape in used.items()]
    text = f"{header} {TOKENS.replace('LEARNT ', learnt)} {{ {PATCHES} {nodes} }}"
    model = ir.from_onnx_text(text, initializers=tensors)
    PreparePass().run(model)
    assert special_rows(follow(model.graph.outputs[0], 1), 0) == expected


def test_rows_that_are_an_input_hide_nothing() -> None:
    model = text_encoder()
    PreparePass().run(model)
    assert special_rows(follow(model.graph.outputs[0], 1), 1) == 1


HIDDEN = "m = ReduceMean<axes=[1], keepdims=1>(x) c = Tanh(m) j = Concat<axis=1>(c, x) u0 = Add(j, bias)"


def test_special_rows_that_cannot_be_told_are_refused_or_noted() -> None:
    # the row in front is made from pixels: nobody can say that it is no patch
    def model(tail: str, kept: int) -> ir.Model:
        made = text_encoder(tail=tail, kept=kept, opset=17)
        text = ir.from_onnx_text(
            '<ir_version: 10, opset_import: ["" : 20]> g (float[images,6,8] x, float[8] bias) => (float[images,7,8] u0) { '
            + HIDDEN
            + " }"
        )
        first = made.graph.inputs[0]
        first.name, first.shape = "x_rows", ir.Shape(["images", 7, 8])
        made.graph.inputs.remove(first)
        for value in list(text.graph.inputs):
            text.graph.inputs.remove(value)
            if value.name == "x":
                value.shape = ir.Shape(["images", 6, 8])
                made.graph.inputs.append(value)
            else:
                value.replace_all_uses_with(made.graph.initializers["bias"])
        nodes = list(text.graph)
        joined = nodes[-1].outputs[0]
        text.graph.outputs.clear()
        for position, node in enumerate(nodes):
            text.graph.remove(node)
            node.name = f"front_{position}"
            made.graph.append(node)
        first.replace_all_uses_with(joined)
        made.graph.sort()
        return made

    with pytest.raises(
        LocateError, match="cannot tell how many of the first rows of 'image_features' are no"
    ):
        prune(model("image_features = MatMul(y, wo)", 7))
    assert (
        prune(model("image_features = MatMul(y, wo)", 7), PruneOptions(special_tokens=1)).prefix_tokens == 1
    )
    report = prune(model("image_features = Slice(y, one, many, one, one)", 6))
    assert report.notes[0].startswith("special tokens cannot be seen in the graph: taken as 1")


@pytest.mark.parametrize("images", [1, 2])
def test_torchscript_expand_with_a_frozen_number_of_images(images: int) -> None:
    text = (
        "<float[1,1,8] cls = {0,1,2,3,4,5,6,7}, int64[3] s = {IMAGES,-1,-1}, int64[3] less = {-1,-1,-1}, int64[3] ones = {1,1,1}> "
        "{ e = Equal(s, less) w = Where(e, ones, s) c = Expand(cls, w) y = Concat<axis=1>(c, x) }"
    ).replace("IMAGES", str(images))
    model = model_of(text, "?,?,8")
    PreparePass().run(model)
    assert next(dims(node.outputs[0]) for node in model.graph if node.op_type == "Expand") == (images, 1, 8)


def test_a_node_that_is_no_onnx_is_refused() -> None:
    model = text_encoder()
    softmax = next(node for node in model.graph if node.op_type == "Softmax")
    softmax.attributes["axis"] = ir.AttrString("axis", "last")
    with pytest.raises(
        UnsupportedGraphError, match=r"the graph is not valid ONNX \(.*axis.*\): export it again"
    ):
        prune(model)
