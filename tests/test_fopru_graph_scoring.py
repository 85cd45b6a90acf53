"""Scores by every path equal a float64 reference: in chunks, of one row, over layers, beside any attention."""

# ruff: noqa: E501  (one line of ONNX text per case reads better than a broken one)
from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest

from fopru_graph import LocateError, OptionError, PruneOptions, PruneReport, RewriteError, load_graph, prune
from fopru_graph.attention import AttentionCore
from fopru_graph.builder import STAMP, GraphBuilder
from fopru_graph.passes import LocatePass, PreparePass, ScorePass
from fopru_graph.passes.score import Scored
from fopru_graph.scoring import Site, SlicedRows, probabilities, query_range
from tests.toy_encoders import Toy, export, pixels, reference, select_rank, text_encoder

HEADS, ROWS = 2, 7
X = np.random.default_rng(7).standard_normal((3, ROWS, 8), dtype=np.float32)
QUERIES = {"col_mean": slice(0, None), "col_mean_patch": slice(1, None), "cls": slice(0, 1)}
# Float32 rounding against float64: one part in 1e5 of the mean score 1/Q (FoPru specification, test 10).
PART = 1e-5


class Runner:
    """One session for many calls; `num_keep` is 2 unless told."""

    def __init__(self, model: ir.Model) -> None:
        proto = ir.to_proto(model).SerializeToString()
        self._session = ort.InferenceSession(proto, providers=["CPUExecutionProvider"])

    def __call__(self, **feeds: np.ndarray) -> dict[str, np.ndarray]:
        given = {"num_keep": np.array([2], np.int64), **feeds}
        wanted = {value.name: given[value.name] for value in self._session.get_inputs()}
        names = [output.name for output in self._session.get_outputs()]
        return dict(zip(names, self._session.run(None, wanted), strict=True))


def run(model: ir.Model, **feeds: np.ndarray) -> dict[str, np.ndarray]:
    return Runner(model)(**feeds)


def softmax(logits: np.ndarray) -> np.ndarray:
    exponents = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return np.asarray(exponents / exponents.sum(axis=-1, keepdims=True))


def queries_and_keys(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Q and K [B, 2, rows, 4] of the text encoder in float64."""
    weights = {value.name: value.const_value for value in text_encoder().graph.initializers.values()}
    wq, wk = (weights[name].numpy().astype(np.float64) for name in ("wq", "wk"))  # type: ignore[union-attr]
    u = x - x.mean(axis=2, keepdims=True)
    u = u / np.sqrt((u**2).mean(axis=2, keepdims=True) + 1e-5)
    q, k = ((u @ w).reshape(*x.shape[:2], HEADS, 4).transpose(0, 2, 1, 3) for w in (wq, wk))
    return q, k


def attention_of(x: np.ndarray, scale: float, bias: np.ndarray | float = 0.0) -> np.ndarray:
    q, k = queries_and_keys(x)
    return softmax(q @ k.transpose(0, 1, 3, 2) * scale + bias)


def scored(model: ir.Model, options: PruneOptions) -> Scored:
    """What the score pass says, on a graph of its own."""
    PreparePass().run(model)
    return ScorePass(options, LocatePass(options).run(model).findings).run(model).findings


def assert_scores(out: dict[str, np.ndarray], expected: np.ndarray, queries: int) -> None:
    assert out["token_scores"].dtype == np.float32
    assert np.abs(out["token_scores"] - expected).max() <= PART / queries


MASKS = np.random.default_rng(9)
FULL = MASKS.standard_normal((1, 1, ROWS, ROWS)).astype(np.float32)
KEYS = np.array([0, 0, 0, -2, 0, 0, 1], np.float32).reshape(1, 1, 1, ROWS)
SEEN = MASKS.random((HEADS, ROWS, ROWS)) > 0.3
SEEN[:, :, 0] = True
OF_HEADS = MASKS.standard_normal((HEADS, ROWS, ROWS)).astype(np.float32)
KT = "kt = Transpose<perm=[0,1,3,2]>(k)"
MERGE_3D = "a3 = MatMul(a2, wo) y = Add(x, a3)"


def masked(mask: np.ndarray, attention: str, **form: Any) -> dict[str, Any]:
    kind = {"bool": "bool", "float32": "float", "float16": "float16"}[str(mask.dtype)]
    return {
        "attention": attention,
        "more": f", {kind}{list(mask.shape)} mask",
        "tensors": {"mask": mask},
        **form,
    }


def hidden(seen: np.ndarray) -> np.ndarray:
    return np.where(seen, 0.0, -np.inf)


SOFTMAX_TAIL = "p = Softmax<axis=-1>(m) a = MatMul(p, v)"
OPERATOR_3D = "a2 = Attention<q_num_heads=2, kv_num_heads=2>(q0, k0, v0)"
# form, scale, bias
FORMS: dict[str, tuple[dict[str, Any], float, np.ndarray | float]] = {
    "softmax": ({}, 0.5, 0.0),
    "softmax, scale in Q": ({"attention": "r = Mul(q, half) s = MatMul(r, k) p = Softmax<axis=-1>(s) a = MatMul(p, v)"}, 0.5, 0.0),
    "softmax, mask of keys": (masked(KEYS, f"s = MatMul(q, k) m = Add(s, mask) {SOFTMAX_TAIL}"), 1.0, KEYS),
    "softmax, mask of pairs": (masked(FULL, f"s = MatMul(q, k) l = Div(s, half) m = Add(mask, l) {SOFTMAX_TAIL}"), 2.0, FULL),
    "softmax, condition": (masked(SEEN, f"s = MatMul(q, k) m = Where(mask, s, half) {SOFTMAX_TAIL}"), 1.0, 0.0),
    "operator": ({"attention": f"{KT} a = Attention<scale=0.25>(q, kt, v)", "opset": 23}, 0.25, 0.0),
    "operator, 3-D": ({"attention": OPERATOR_3D, "merge": MERGE_3D, "opset": 23}, 0.5, 0.0),
    "operator, mask of rank 2": (masked(FULL[0, 0], f"{KT} a = Attention(q, kt, v, mask)", opset=23), 0.5, FULL),
    "operator, mask of rank 3": (masked(OF_HEADS, f"{KT} a = Attention(q, kt, v, mask)", opset=23), 0.5, OF_HEADS),
    "operator, mask of rank 4": (masked(FULL, f"{KT} a = Attention(q, kt, v, mask)", opset=23), 0.5, FULL),
    "operator, boolean mask": (masked(SEEN, f"{KT} a = Attention(q, kt, v, mask)", opset=23), 0.5, hidden(SEEN)),
    "operator, 3-D, mask": (masked(FULL[0, 0], OPERATOR_3D.replace("v0", "v0, mask"), merge=MERGE_3D, opset=23), 0.5, FULL),
    "operator, 3-D, boolean mask": (masked(SEEN[None], OPERATOR_3D.replace("v0", "v0, mask"), merge=MERGE_3D, opset=23), 0.5, hidden(SEEN)),
}  # fmt: skip


def expected_of(name: str, aggregation: str, x: np.ndarray = X) -> np.ndarray:
    _, scale, bias = FORMS[name]
    if name == "softmax, condition":
        q, k = queries_and_keys(x)
        attention = softmax(np.where(SEEN, q @ k.transpose(0, 1, 3, 2), 0.5))
    else:
        attention = attention_of(x, scale, bias)
    return np.asarray(attention[:, :, QUERIES[aggregation]].mean(axis=(1, 2))[:, 1:])


def one_query(name: str, aggregation: str = "col_mean") -> int:
    """Bytes of a chunk of one query, as the refusal of one byte says."""
    with pytest.raises(
        OptionError, match=r"score_memory is 1, but one query .* give at least \d+, or None"
    ) as caught:
        prune(
            text_encoder(**FORMS[name][0]),
            PruneOptions(aggregation=aggregation, special_tokens=1, score_memory=1),
        )
    return int(re.findall(r"at least (\d+)", str(caught.value))[0])


@pytest.mark.parametrize("aggregation", ["col_mean", "col_mean_patch"])
@pytest.mark.parametrize("name", FORMS)
def test_chunks_equal_the_plain_form(name: str, aggregation: str) -> None:
    form = FORMS[name][0]
    plain = text_encoder(**form)
    assert prune(plain, PruneOptions(aggregation=aggregation, special_tokens=1)).score_path in (
        "one_pass",
        "side_branch",
    )
    expected, run_plain = expected_of(name, aggregation), Runner(plain)
    chunks = set()
    for queries in (1, 2, 3):
        budget = queries * one_query(name, aggregation)
        options = PruneOptions(aggregation=aggregation, special_tokens=1, score_memory=budget)
        one = scored(text_encoder(**form), options)
        if one.path != "chunked":
            continue
        chunks.add(one.chunk)
        model = text_encoder(**form)
        report = prune(model, options)
        assert report.score_path == "chunked"
        run_chunked = Runner(model)
        for keep in range(1, ROWS):
            counts = {"num_keep": np.array([keep], np.int64)}
            out, other = run_chunked(x=X, **counts), run_plain(x=X, **counts)
            assert_scores(out, expected, ROWS)
            assert np.array_equal(out["kept_indices"], other["kept_indices"])
            # The same rows by the same kernels; a product of fewer rows may add up in another order.
            assert np.abs(out["image_features"] - other["image_features"]).max() <= 2e-5
    assert {1} <= chunks <= {1, 2, 3}


@pytest.mark.parametrize("name", ["softmax", "operator", "operator, 3-D"])
def test_above_the_limit_nobody_needs_all_probabilities(name: str) -> None:
    def square(model: ir.Model) -> list[ir.Value]:
        nodes = ir.traversal.RecursiveGraphIterator(model.graph)
        return [value for node in nodes for value in node.outputs if str(value.shape).endswith("7,7]")]

    model, plain = text_encoder(**FORMS[name][0]), text_encoder(**FORMS[name][0])
    report = prune(model, PruneOptions(special_tokens=1, score_memory=2 * one_query(name)))
    prune(plain, PruneOptions(special_tokens=1))
    assert (report.score_path, report.gather) == ("chunked", "early")
    assert square(plain)
    assert square(model) == []


@pytest.mark.parametrize("name", ["softmax", "operator"])
def test_below_the_limit_nothing_changes(name: str) -> None:
    size = 4 * HEADS * ROWS * ROWS
    limited, free = text_encoder(**FORMS[name][0]), text_encoder(**FORMS[name][0])
    prune(limited, PruneOptions(score_memory=size))
    prune(free)
    assert ir.to_proto(limited) == ir.to_proto(free)
    found = scored(text_encoder(**FORMS[name][0]), PruneOptions(score_memory=size))
    assert (found.bytes, found.chunk, found.note) == (size, None, "")


def test_the_note_gives_bytes_and_chunks() -> None:
    found = scored(text_encoder(), PruneOptions(score_memory=350))
    assert (found.path, found.bytes, found.chunk) == ("chunked", 392, 3)
    assert found.note == (
        "attention of one image takes 392 bytes, and score_memory is 350: scores are added up over 3 chunks of 3 queries"
    )


def test_a_limit_below_one_query_is_refused() -> None:
    message = (
        "score_memory is 111, but one query of 2 heads and 7 keys takes 112 bytes: give at least 112, or None"
    )
    for aggregation in ("col_mean", "cls"):
        with pytest.raises(OptionError, match=message):
            prune(text_encoder(), PruneOptions(aggregation=aggregation, special_tokens=1, score_memory=111))


SOFTPLUS = (
    "s = MatMul(q, k) e = Softplus(s) t = ReduceSum<keepdims=1>(e, minus) p = Div(e, t) a = MatMul(p, v)"
)


def test_a_named_tensor_cannot_be_chunked() -> None:
    with pytest.raises(
        OptionError,
        match="score_memory is 391, but 'p' is named by tap and takes 392 bytes per image as it is: score a layer",
    ):
        prune(text_encoder(attention=SOFTPLUS), PruneOptions(tap="p", score_memory=391))
    assert (
        prune(text_encoder(attention=SOFTPLUS), PruneOptions(tap="p", score_memory=392)).score_path
        == "one_pass"
    )


def test_probabilities_without_a_product_cannot_be_repeated() -> None:
    model = text_encoder(attention=SOFTPLUS)
    node = next(node for node in model.graph if node.op_type == "Div")
    builder = GraphBuilder(model.graph, "score")
    site = Site(builder, builder, SlicedRows(builder, query_range("col_mean", 0, ROWS)))
    with pytest.raises(
        RewriteError, match=f"QK\\^T of '{node.name}' cannot be repeated: an operand of it is missing"
    ):
        probabilities(AttentionCore("softmax", node, node), site)


# ---- sizes that vary

EVERY_ROW = "image_features = MatMul(y, wo)"
VARYING = {"rows": "rows", "kept": "rows", "tail": EVERY_ROW}


@pytest.mark.parametrize("aggregation", ["col_mean", "col_mean_patch"])
@pytest.mark.parametrize("name", ["softmax", "operator", "operator, 3-D"])
def test_chunks_are_computed_where_the_number_of_tokens_varies(name: str, aggregation: str) -> None:
    form, scale, bias = FORMS[name]
    for limit in (1, 300, 900, 10**9):  # one query; some; an uneven number of them; all at once
        options = PruneOptions(aggregation=aggregation, special_tokens=1, prefix_tokens=1, score_memory=limit)
        model = text_encoder(**form, **VARYING)
        report = prune(model, options)
        assert (report.score_path, report.gather, report.tokens) == ("chunked", "early", "tokens")
        assert any(f"in at most {limit} bytes" in note for note in report.notes)
        runner = Runner(model)
        for images, rows in ((1, 3), (2, 8), (3, 13)):
            x = np.random.default_rng(rows).standard_normal((images, rows, 8), dtype=np.float32)
            out = runner(x=x)
            expected = attention_of(x, scale, bias)[:, :, QUERIES[aggregation]].mean(axis=(1, 2))[:, 1:]
            assert_scores(out, expected, rows)
            assert np.array_equal(out["kept_indices"], select_rank(expected, 2))


@pytest.mark.parametrize(
    ("limit", "rows", "chunk"), [(1, 9, 1), (500, 9, 3), (10**9, 9, 9), (16 * 9 * 4, 9, 3)]
)
def test_a_computed_chunk_fits_the_limit(limit: int, rows: int, chunk: int) -> None:
    model = text_encoder(**VARYING)
    prune(model, PruneOptions(special_tokens=1, prefix_tokens=1, score_memory=limit))
    steps = next(
        node.outputs[0]
        for node in model.graph
        if node.op_type == "Range" and "chunk_steps" in str(node.outputs[0].name)
    )
    model.graph.outputs.append(steps)
    out = run(model, x=np.ones((1, rows, 8), np.float32))
    assert out[str(steps.name)].tolist() == list(range(chunk))


@pytest.mark.parametrize("name", ["softmax", "operator"])
def test_one_query_is_no_work_for_chunks(name: str) -> None:
    form, scale, bias = FORMS[name]
    model = text_encoder(**form, **VARYING)
    report = prune(
        model, PruneOptions(aggregation="cls", special_tokens=1, prefix_tokens=1, score_memory=1000)
    )
    assert (report.score_path, report.gather) == ("cls_row", "early")
    assert_scores(run(model, x=X), attention_of(X, scale, bias)[:, :, 0].mean(axis=1)[:, 1:], ROWS)


@pytest.mark.parametrize("path", ["one_pass", "side_branch", "chunked"])
@pytest.mark.parametrize("aggregation", ["col_mean", "col_mean_patch"])
@pytest.mark.parametrize("rows", [1, ROWS])
def test_a_mask_that_may_have_one_row_for_all_queries(aggregation: str, path: str, rows: int) -> None:
    # The mask is x x^T, and the largest element of x says how many of its rows there are.
    mask = (
        "t = Transpose<perm=[0,2,1]>(x) n = ReduceMax<keepdims=0>(x) c = Cast<to=7>(n) e = Reshape(c, minus) "
        "h = Slice(x, zero, e, one) g = MatMul(h, t) f = Unsqueeze(g, one) s = MatMul(q, k) m = Add(s, f)"
    )
    half = "m16 = Cast<to=10>(m) p = Softmax<axis=-1>(m16) p32 = Cast<to=1>(p) a = MatMul(p32, v)"
    x = X / 10
    x[0, 0, 0] = rows
    model = text_encoder(attention=f"{mask} {half if path == 'side_branch' else SOFTMAX_TAIL}")
    limit = 300 if path == "chunked" else None
    report = prune(model, PruneOptions(aggregation=aggregation, special_tokens=1, score_memory=limit))
    assert report.score_path == path
    bias = (x[:, :rows] @ x.transpose(0, 2, 1)).astype(np.float64)[:, None]
    expected = attention_of(x, 1.0, bias)[:, :, QUERIES[aggregation]].mean(axis=(1, 2))[:, 1:]
    # float32 logits reach 60 here: one rounding is 4e-6 of a probability
    assert np.abs(run(model, x=x)["token_scores"] - expected).max() <= 1e-4 / ROWS


# ---- one row, layers, scores only


def test_the_class_token_alone_is_one_row_of_a_product() -> None:
    for name in ("operator", "operator, 3-D"):
        form, scale, bias = FORMS[name]
        model = text_encoder(**form)
        report = prune(model, PruneOptions(aggregation="cls", special_tokens=1))
        assert (report.score_path, report.gather) == ("cls_row", "early")
        products = [
            node.outputs[0]
            for node in model.graph
            if node.op_type == "MatMul" and STAMP in node.metadata_props
        ]
        assert [list(value.shape or ())[1:] for value in products] == [[HEADS, 1, ROWS]]
        assert_scores(run(model, x=X), attention_of(X, scale, bias)[:, :, 0].mean(axis=1)[:, 1:], ROWS)


def test_a_tap_of_the_class_token_costs_no_product() -> None:
    assert prune(text_encoder(), PruneOptions(aggregation="cls", special_tokens=1)).score_path == "one_pass"


LAST = -1  # features of the last of three layers


@pytest.mark.parametrize("first", [0, 1, 2])
@pytest.mark.parametrize(
    "toy", [Toy(feature_layer=LAST), Toy(feature_layer=LAST, opset=23)], ids=["softmax", "operator"]
)
def test_cls_sum_adds_up_layers(toy: Toy, first: int) -> None:
    model = load_graph(export(toy))
    before = sum(node.op_type == "Softmax" for node in model.graph)
    report = prune(model, PruneOptions(aggregation="cls_sum", first_layer=first))
    operator = toy.opset == 23
    assert report.score_path == ("cls_row" if operator else "one_pass")
    assert report.aggregation == "cls_sum"
    assert sum(node.op_type == "Softmax" for node in model.graph) == before + (3 - first if operator else 0)
    images = pixels(toy, 2, seed=3)
    expected = sum(
        reference(toy, images).scores("cls", layer).astype(np.float64) for layer in range(first, 3)
    )
    out = run(with_weights(model), pixel_values=images)
    # PyTorch in float32 against ONNX Runtime, through three layers
    assert np.abs(out["token_scores"] - expected).max() <= 1e-4 / (toy.tokens + 1)
    assert np.array_equal(out["kept_indices"], select_rank(np.asarray(expected), 2))


def with_weights(model: ir.Model) -> ir.Model:
    """The exported weights, which lie in a file beside the graph, inside the graph."""
    for value in model.graph.initializers.values():
        if isinstance(value.const_value, ir.ExternalTensor):
            value.const_value = ir.tensor(value.const_value.numpy().copy(), name=value.name)
    return model


@pytest.mark.parametrize(("options", "message"), [
    ({"first_layer": 2, "layer": 1}, "first_layer is 2, but the scoring layer is 1: give a number from 0 to 1"),
    ({"special_tokens": 0, "prefix_tokens": 0}, r"aggregation is 'cls_sum', but this encoder has no CLS row"),
])  # fmt: skip
def test_cls_sum_refuses(options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        prune(load_graph(export(Toy())), PruneOptions(aggregation="cls_sum", **options))


def test_cls_sum_refuses_a_tap() -> None:
    with pytest.raises(
        OptionError, match="adds up layers, but tap 'p' is one tensor: give layer instead, or use cls"
    ):
        prune(text_encoder(), PruneOptions(aggregation="cls_sum", special_tokens=1, tap="p"))


def test_cls_sum_refuses_layers_of_other_tokens() -> None:
    few = "qs = Slice(q, zero, three, two) ks = Slice(k, zero, three, three) vs = Slice(v, zero, three, two)"
    other = f"{few} s0 = MatMul(qs, ks) p0 = Softmax<axis=-1>(s0) b = MatMul(p0, vs) c = ReduceMax<keepdims=1>(b, two) w = Add(v, c)"
    model = text_encoder(attention=f"{other} s = MatMul(q, k) p = Softmax<axis=-1>(s) a = MatMul(p, w)")
    with pytest.raises(
        OptionError, match="layer 0 has 3 queries and layer 1 has 7, so that cls_sum cannot add them up"
    ):
        prune(model, PruneOptions(aggregation="cls_sum", special_tokens=1))


@pytest.mark.parametrize("limit", [None, 300])
@pytest.mark.parametrize("name", ["softmax", "operator"])
def test_scores_only_leave_the_features(name: str, limit: int | None) -> None:
    form = FORMS[name][0]
    whole = run(text_encoder(**form), x=X)["image_features"]
    model = text_encoder(**form)
    report = prune(model, PruneOptions(special_tokens=1, scores_only=True, score_memory=limit))
    assert (report.gather, report.gather_reason, report.gathered) == (
        "none",
        "only scores were asked for",
        (),
    )
    assert [value.name for value in model.graph.inputs] == ["x"]
    assert [value.name for value in model.graph.outputs] == ["image_features", "token_scores"]
    out = run(model, x=X)
    assert out["image_features"].tobytes() == whole.tobytes()
    assert_scores(out, expected_of(name, "col_mean"), ROWS)


# ---- what an Attention operator may do besides


@pytest.mark.parametrize("limit", [None, 300])
@pytest.mark.parametrize("aggregation", QUERIES)
def test_grouped_heads_and_a_cap(aggregation: str, limit: int | None) -> None:
    # Four query heads, two key heads: heads 0 and 1 share one, 2 and 3 the other. The cap comes before the mask.
    attention = (
        "q4 = Concat<axis=1>(q, v) a4 = Attention<softcap=1.5>(q4, kt, v, mask) a = Slice(a4, zero, two, one)"
    )
    model = text_encoder(**masked(hidden(SEEN[0]).astype(np.float32), f"{KT} {attention}", opset=23))
    v = next(value for node in model.graph for value in node.outputs if value.name == "v")
    v.shape, v.type = ir.Shape(["images", HEADS, ROWS, 4]), ir.TensorType(ir.DataType.FLOAT)
    model.graph.outputs.append(v)
    report = prune(
        model, PruneOptions(aggregation=aggregation, special_tokens=1, score_memory=limit, dropped_rows=1)
    )
    assert report.heads == 4
    path = "chunked" if limit else "side_branch"
    assert report.score_path == ("cls_row" if aggregation == "cls" else path)
    out = run(model, x=X)
    q, k = queries_and_keys(X)
    queries = np.concatenate([q, out["v"].astype(np.float64)], axis=1)
    logits = queries @ k.repeat(2, axis=1).transpose(0, 1, 3, 2) * 0.5
    attended = softmax(1.5 * np.tanh(logits / 1.5) + hidden(SEEN[0]))
    assert_scores(out, attended[:, :, QUERIES[aggregation]].mean(axis=(1, 2))[:, 1:], ROWS)


def test_grouped_heads_of_rank_3() -> None:
    attention = "qs = Concat<axis=2>(q0, v0) a4 = Attention<q_num_heads=4, kv_num_heads=2>(qs, k0, v0) a2 = Slice(a4, zero, eight, two)"
    model = text_encoder(attention=attention, merge=MERGE_3D, opset=23, more=", int64[1] eight = {8}")
    v = next(value for node in model.graph for value in node.outputs if value.name == "v0")
    v.shape, v.type = ir.Shape(["images", ROWS, 8]), ir.TensorType(ir.DataType.FLOAT)
    model.graph.outputs.append(v)
    whole = run(ir.from_proto(ir.to_proto(model)), x=X)["image_features"]
    report = prune(model, PruneOptions(special_tokens=1))
    assert (report.heads, report.score_path, report.gather) == (4, "side_branch", "early")
    out = run(model, x=X)
    q, k = queries_and_keys(X)
    extra = out["v0"].astype(np.float64).reshape(3, ROWS, HEADS, 4).transpose(0, 2, 1, 3)
    logits = np.concatenate([q, extra], axis=1) @ k.repeat(2, axis=1).transpose(0, 1, 3, 2) * 0.5
    assert_scores(out, softmax(logits).mean(axis=(1, 2))[:, 1:], ROWS)
    rows = np.take_along_axis(whole, out["kept_indices"][:, :, None], axis=1)
    # the operator's kernel may add up fewer queries in another order
    assert np.abs(out["image_features"] - rows).max() <= 2e-5


def test_a_second_output_in_use_stays() -> None:
    attention = f"{KT} a, pk, pv, qk = Attention(q, kt, v)"
    model = text_encoder(attention=attention, opset=23)
    products = next(value for node in model.graph for value in node.outputs if value.name == "qk")
    products.shape, products.type = ir.Shape(["images", HEADS, ROWS, ROWS]), ir.TensorType(ir.DataType.FLOAT)
    model.graph.outputs.append(products)
    whole = run(ir.from_proto(ir.to_proto(model)), x=X)
    report = prune(model, PruneOptions(special_tokens=1))
    assert (report.score_path, report.gather) == ("side_branch", "late")
    out = run(model, x=X)
    assert out["qk"].tobytes() == whole["qk"].tobytes()
    rows = np.take_along_axis(whole["image_features"], out["kept_indices"][:, :, None], axis=1)
    assert out["image_features"].tobytes() == rows.tobytes()
    assert_scores(out, attention_of(X, 0.5).mean(axis=(1, 2))[:, 1:], ROWS)


def test_a_window_of_keys_is_refused() -> None:
    model = text_encoder(attention=f"{KT} a = Attention<left_window_size=2>(q, kt, v)", opset=25)
    with pytest.raises(LocateError, match="its queries look 2 keys back and -1 ahead, not at every key"):
        prune(model)


# ---- half precision, and rows that see nothing

HALF = {
    "softmax": ("q16 = Cast<to=10>(q) k16 = Cast<to=10>(k) s = MatMul(q16, k16) p = Softmax<axis=-1>(s) vh = Cast<to=10>(v) b = MatMul(p, vh) a = Cast<to=1>(b)", 1.0, 20),
    "operator": (f"{KT} q16 = Cast<to=10>(q) k16 = Cast<to=10>(kt) vh = Cast<to=10>(v) b = Attention(q16, k16, vh) a = Cast<to=1>(b)", 0.5, 23),
}  # fmt: skip


@pytest.mark.parametrize("aggregation", ["col_mean", "col_mean_patch"])
@pytest.mark.parametrize("name", HALF)
def test_chunks_of_float16_are_float32(name: str, aggregation: str) -> None:
    attention, scale, opset = HALF[name]
    model = text_encoder(attention=attention, opset=opset)
    for value in [value for node in model.graph for value in node.outputs if value.name in ("q16", "k16")]:
        tall = value.name == "q16" or name == "operator"
        value.shape = ir.Shape(["images", HEADS, *((ROWS, 4) if tall else (4, ROWS))])
        value.type = ir.TensorType(ir.DataType.FLOAT16)
        model.graph.outputs.append(value)
    report = prune(model, PruneOptions(aggregation=aggregation, special_tokens=1, score_memory=250))
    assert (report.score_path, report.gather) == ("chunked", "early")
    out = run(model, x=X)
    q, k = (out[tensor].astype(np.float64) for tensor in ("q16", "k16"))
    logits = q @ (k.transpose(0, 1, 3, 2) if name == "operator" else k) * scale
    # float32 softmax against float64 of the same Q and K; float16 logits of size 30 would be off by 1e-2
    assert_scores(out, softmax(logits)[:, :, QUERIES[aggregation]].mean(axis=(1, 2))[:, 1:], ROWS)


BLIND = np.where(np.arange(ROWS)[:, None] == 4, -np.inf, 0.0).astype(np.float32) * np.ones(
    (1, 1, 1, ROWS), np.float32
)
GUARD = "s = MatMul(q, k) m = Add(s, mask) p = Softmax<axis=-1>(m) bad = IsNaN(p) g = Where(bad, none, p) a = MatMul(g, v)"


def blind(attention: str, **form: Any) -> dict[str, Any]:
    form = masked(np.nan_to_num(BLIND, nan=0.0, neginf=-np.inf), attention, **form)
    form["more"] += ", float none = {0}"
    return form


@pytest.mark.parametrize("limit", [None, 300])
def test_a_query_that_sees_nothing_is_guarded_as_in_the_graph(limit: int | None) -> None:
    model = text_encoder(**blind(GUARD))
    report = prune(model, PruneOptions(special_tokens=1, score_memory=limit))
    assert report.score_path == ("one_pass" if limit is None else "chunked")
    with np.errstate(invalid="ignore"):
        attention = np.nan_to_num(attention_of(X, 1.0, BLIND), nan=0.0)
    assert_scores(run(model, x=X), attention.mean(axis=(1, 2))[:, 1:], ROWS)


@pytest.mark.parametrize("limit", [None, 300])
def test_without_a_guard_a_query_that_sees_nothing_is_left_to_the_runtime(limit: int | None) -> None:
    model = text_encoder(**blind(f"s = MatMul(q, k) m = Add(s, mask) {SOFTMAX_TAIL}"))
    prune(model, PruneOptions(special_tokens=1, score_memory=limit))
    assert np.isnan(run(model, x=X)["token_scores"]).all()


# ---- memory

LARGE = """
<ir_version: 10, opset_import: ["" : {opset}]>
encoder (float[1,4096,1024] x) => (float[1,4096,1024] image_features)
<int64[4] heads = {{0, 0, 16, 64}}, int64[3] merge = {{0, 0, 1024}}, float scale = {{0.125}}>
{{
  r = Reshape(x, heads)
  q = Transpose<perm=[0,2,1,3]>(r)  k = Transpose<perm=[0,2,3,1]>(r)  v = Transpose<perm=[0,2,1,3]>(r)
  s = MatMul(q, k)  l = Mul(s, scale)  p = Softmax<axis=-1>(l)  a = MatMul(p, v)
  t = Transpose<perm=[0,2,1,3]>(a)  image_features = Reshape(t, merge)
}}
"""
MEASURE = """
import sys
import numpy as np, onnxruntime as ort
options = ort.SessionOptions()
options.enable_cpu_mem_arena = False
session = ort.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
x = np.random.default_rng(0).standard_normal((1, 4096, 1024), dtype=np.float32)
def kib(name):  # not getrusage: its peak counts the parent before exec too
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(name))
before = kib("VmRSS")
feeds = {"x": x, "num_keep": np.array([16], np.int64)}
scores, indices = session.run(["token_scores", "kept_indices"], feeds)
print(1024 * (kib("VmHWM") - before))
np.savez(sys.argv[2], scores=scores, indices=indices)
"""
MIB = 2**20


def peak(folder: Path, limit: int | None) -> tuple[PruneReport, int, dict[str, np.ndarray]]:
    """The report, bytes by which a process grows at its peak over one run of 16 heads x 4096 tokens, and results."""
    model = ir.from_onnx_text(LARGE.format(opset=20))
    report = prune(model, PruneOptions(special_tokens=0, score_memory=limit))
    ir.save(model, folder / f"{limit}.onnx")
    command = [sys.executable, "-c", MEASURE, str(folder / f"{limit}.onnx"), str(folder / f"{limit}.npz")]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    with np.load(folder / f"{limit}.npz") as arrays:
        return report, int(done.stdout), dict(arrays)


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak of a process as Linux counts it")
def test_4096_tokens_of_16_heads_stay_within_64_mib(tmp_path: Path) -> None:
    plain_report, plain_bytes, plain = peak(tmp_path, None)
    report, chunked_bytes, chunked = peak(tmp_path, 64 * MIB)
    assert (plain_report.score_path, report.score_path, report.gather) == ("one_pass", "chunked", "early")
    assert plain_bytes >= 1024 * MIB
    # Q, K and V take 16 MiB each in any form; 16 MiB are left for the columns of K, kept rows and the runtime.
    assert chunked_bytes <= (64 + 3 * 16 + 16) * MIB
    assert np.abs(plain["scores"] - chunked["scores"]).max() <= PART / 4096
    assert np.array_equal(plain["indices"], chunked["indices"])
