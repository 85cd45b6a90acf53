"""Hand-written encoders: forms of attention that are recognised, tails that can be shortened, and near misses of both."""

# ruff: noqa: E501  (one line of ONNX text per case reads better than a broken one)
from __future__ import annotations

import re
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx.reference import ReferenceEvaluator

from fopru_graph import LocateError, PruneOptions, PruneReport, prune
from tests.toy_encoders import select_rank, text_encoder

X = np.random.default_rng(7).standard_normal((3, 7, 8), dtype=np.float32)


def run(model: ir.Model, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    session = ort.InferenceSession(ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(None, feeds), strict=True))


def check(options: PruneOptions | None = None, **form: object) -> PruneReport:
    """Prune a text encoder and compare each count with the rows of its unpruned features, bit for bit."""
    options = options or PruneOptions()
    whole = run(text_encoder(**form), {"x": X})["image_features"]  # type: ignore[arg-type]
    model = text_encoder(**form)  # type: ignore[arg-type]
    report = prune(model, options)
    for keep in range(2, int(report.tokens or 0) + 1):
        out = run(model, {"x": X, "num_keep": np.array([keep], np.int64)})
        assert np.array_equal(out["kept_indices"], select_rank(out["token_scores"], keep))
        rows = out["kept_indices"] + report.prefix_tokens
        prefix = np.tile(np.arange(report.prefix_tokens), (len(X), 1))
        rows = np.concatenate([prefix, rows], axis=1)
        assert (
            out["image_features"].tobytes() == np.take_along_axis(whole, rows[:, :, None], axis=1).tobytes()
        )
    return report


def attention_of(x: np.ndarray, scale: float, bias: np.ndarray | float = 0.0) -> np.ndarray:
    """Probabilities [B, 2, 7, 7] of the text encoder, in float64."""
    weights = {value.name: value.const_value for value in text_encoder().graph.initializers.values()}
    wq, wk = (weights[name].numpy().astype(np.float64) for name in ("wq", "wk"))  # type: ignore[union-attr]
    u = x - x.mean(axis=2, keepdims=True)
    u = u / np.sqrt((u**2).mean(axis=2, keepdims=True) + 1e-5)
    q, k = ((u @ w).reshape(len(x), 7, 2, 4).transpose(0, 2, 1, 3) for w in (wq, wk))
    return softmax(q @ k.transpose(0, 1, 3, 2) * scale + bias)


def softmax(logits: np.ndarray) -> np.ndarray:
    exponents = np.exp(logits - logits.max(axis=3, keepdims=True))
    return np.asarray(exponents / exponents.sum(axis=3, keepdims=True))


MASK_ROW = ", float[1,1,1,7] mask = {0, 0, 0, -2, 0, 0, 1}"
MASK_FULL = ", float[1,1,7,7] mask"
FULL = {"tensors": {"mask": np.random.default_rng(9).standard_normal((1, 1, 7, 7), dtype=np.float32)}}
ROW = np.array([0, 0, 0, -2, 0, 0, 1.0])
# A mask per image, made inside the graph: ONNX Runtime wants one row per query.
PAIRS = "xt = Transpose<perm=[0,2,1]>(x) xx = MatMul(x, xt) x4 = Unsqueeze(xx, one)"
LIKENESS = (X @ X.transpose(0, 2, 1))[:, None]
UNLIKE = np.where(LIKENESS > 0.5, 0, -np.inf)
KEY = "kt = Transpose<perm=[0,1,3,2]>(k)"
OPERATOR = f"{KEY} a = Attention(q, kt, v)"

FORMS = {
    "scale after, Mul": ({}, 0.5, 0.0),
    "scale after, Mul reversed": ({"attention": "s = MatMul(q, k) l = Mul(half, s) p = Softmax<axis=3>(l) a = MatMul(p, v)"}, 0.5, 0.0),
    "scale after, Div": ({"attention": "s = MatMul(q, k) l = Div(s, half) p = Softmax<axis=-1>(l) a = MatMul(p, v)"}, 2.0, 0.0),
    "scale in Q": ({"attention": "r = Mul(q, half) s = MatMul(r, k) p = Softmax<axis=-1>(s) a = MatMul(p, v)"}, 0.5, 0.0),
    "no scale": ({"attention": "s = MatMul(q, k) p = Softmax<axis=-1>(s) a = MatMul(p, v)"}, 1.0, 0.0),
    "mask of keys": (
        {"attention": "s = MatMul(q, k) l = Mul(s, half) m = Add(l, mask) p = Softmax<axis=-1>(m) a = MatMul(p, v)", "more": MASK_ROW},
        *(0.5, ROW),
    ),
    "mask of pairs": (
        {"attention": "s = MatMul(q, k) m = Add(mask, s) p = Softmax<axis=-1>(m) a = MatMul(p, v)", "more": MASK_FULL, **FULL},
        *(1.0, FULL["tensors"]["mask"]),
    ),
    "casts and identity": (
        {"attention": "s = MatMul(q, k) c = Cast<to=1>(s) p0 = Softmax<axis=-1>(c) p = Identity(p0) a = MatMul(p, v)"},
        *(1.0, 0.0),
    ),
    "operator": ({"attention": OPERATOR, "opset": 23}, 0.5, 0.0),
    "operator, scale": ({"attention": f"{KEY} a = Attention<scale=0.25>(q, kt, v)", "opset": 23}, 0.25, 0.0),
    "operator, bool mask": ({"attention": f"{PAIRS} m = Greater(x4, half) {KEY} a = Attention(q, kt, v, m)", "opset": 23}, 0.5, UNLIKE),
    "operator, float mask": ({"attention": f"{PAIRS} {KEY} a = Attention(q, kt, v, x4)", "opset": 23}, 0.5, LIKENESS),
    "operator, 3-D": (
        {"attention": "a2 = Attention<q_num_heads=2, kv_num_heads=2>(q0, k0, v0)", "merge": "a3 = MatMul(a2, wo) y = Add(x, a3)", "opset": 23},
        *(0.5, 0.0),
    ),
}  # fmt: skip


def test_operator_with_a_mask_shared_by_images_is_gathered_late() -> None:
    form = {"attention": f"{KEY} a = Attention(q, kt, v, mask)", "opset": 23, "more": MASK_FULL, **FULL}
    report = check(**form)
    assert report.gather == "late"
    assert "its mask 'mask' has a row per query and is shared by images" in report.gather_reason


@pytest.mark.parametrize("name", FORMS)
def test_forms_of_attention(name: str) -> None:
    form, scale, bias = FORMS[name]
    assert check(**form).gather == "early"  # type: ignore[arg-type]
    for aggregation, rows in {
        "col_mean": slice(0, 7),
        "col_mean_patch": slice(1, 7),
        "cls": slice(0, 1),
    }.items():
        model = text_encoder(**form)  # type: ignore[arg-type]
        prune(model, PruneOptions(aggregation=aggregation))
        scores = run(model, {"x": X, "num_keep": np.array([1], np.int64)})["token_scores"]
        expected = attention_of(X, scale, bias)[:, :, rows].mean(axis=(1, 2))[:, 1:]
        # float32 softmax against float64; logits reach 30 here, where one rounding is 2e-6 of the probability
        assert np.abs(scores - expected).max() <= 2e-5


EARLY_TAILS = {
    "features are a slice": "image_features = Slice(y, one, many, one, one)",
    "two slices": "y1 = Slice(y, one, many, one) y2 = Slice(y1, one, many, one) image_features = MatMul(y2, wo)",
    "slice with an end": "y1 = Slice(y, one, five, one) image_features = MatMul(y1, wo)",
    "slice of another axis": "y1 = Slice(y, one, many, one) y2 = Slice(y1, zero, three, two) image_features = Concat<axis=-1>(y2, y2)",
    "slice without axes": "all = Constant<value_ints=[9223372036854775807]>() y1 = Slice(y, zero, all) y2 = Slice(y1, one, many, one) image_features = Gelu(y2)",
    "decomposed norm": (
        "y1 = Slice(y, one, many, one) m = ReduceMean<keepdims=1>(y1, two) d = Sub(y1, m) d2 = Mul(d, d) "
        "w = ReduceMean<keepdims=1>(d2, minus) e = Add(w, half) r = Sqrt(e) n = Div(d, r) t = Mul(n, scale) image_features = Add(t, bias)"
    ),
    "quick gelu": "y1 = Slice(y, one, many, one) h = Mul(y1, half) g = Sigmoid(h) image_features = Mul(y1, g)",
    "gated": "y1 = Slice(y, one, many, one) g, h = Split<axis=-1, num_outputs=2>(y1) t = Tanh(g) gh = Mul(h, t) image_features = Concat<axis=2>(gh, t)",
    "back and forth": "y1 = Slice(y, one, many, one) t = Transpose<perm=[0,2,1]>(y1) e = Erf(t) image_features = Transpose<perm=[0,2,1]>(e)",
    "pow and softmax": "y1 = Slice(y, one, many, one) e = Pow(y1, two_f) image_features = Softmax<axis=-1>(e)",
    "reduced away": "y1 = Slice(y, one, many, one) m = ReduceMax<keepdims=0>(y1, two) r = Reshape(m, column) image_features = Mul(y1, r)",
    "masked": "y1 = Slice(y, one, many, one) c = IsNaN(y1) image_features = Where(c, half, y1)",
    "every row": "image_features = MatMul(y, wo)",
}  # fmt: skip
MORE = ", int64[1] five = {5}, float two_f = {2.0}, int64[3] column = {0, 6, 1}"
KEPT = {"two slices": 5, "slice with an end": 4, "slice of another axis": 6, "every row": 7}


@pytest.mark.parametrize("name", EARLY_TAILS)
def test_tails_that_work_row_by_row(name: str) -> None:
    report = check(tail=EARLY_TAILS[name], kept=KEPT.get(name, 6), more=MORE)
    assert report.gather == "early"
    assert report.dropped_rows == {"two slices": 2, "every row": 0}.get(name, 1)
    assert set(report.gathered) == {"p", "x"}


Y1 = "y1 = Slice(y, one, many, one)"
LATE_TAILS = {
    "CumSum": (f"{Y1} image_features = CumSum(y1, at)", "CumSum .* not known to work row by row"),
    "Gelu": (f"{Y1} image_features = com.microsoft.Gelu(y1)", "Gelu .* not known to work row by row"),
    "Concat": (f"{Y1} a4, b4 = Split<axis=1, num_outputs=2>(y1) image_features = Concat<axis=1>(b4, a4)", "concatenates along tokens"),
    "Split": (f"{Y1} a4, b4 = Split<axis=1, num_outputs=2>(y1) c4 = Add(a4, b4) image_features = Concat<axis=1>(c4, c4)", "concatenates"),
    "Reshape": (f"{Y1} r = Reshape(y1, flat) t = Tanh(r) image_features = Reshape(t, back)", "mixes tokens with other axes"),
    "Softmax": (f"{Y1} image_features = Softmax<axis=1>(y1)", "Softmax .* normalises over tokens"),
    "LayerNormalization": (f"{Y1} image_features = LayerNormalization<axis=1>(y1, sheet)", "normalises over axis 1"),
    "ReduceMean": (f"{Y1} m = ReduceMean<keepdims=1>(y1, one) d = Sub(y1, m) image_features = Mul(d, half)", "needed whole elsewhere"),
    "Transpose": (f"{Y1} t = Transpose<perm=[1,0,2]>(y1) e = Tanh(t) image_features = Transpose<perm=[1,0,2]>(e)", "moves the images axis"),
    "MatMul columns": (f"{Y1} t = Transpose<perm=[0,2,1]>(y1) e = MatMul(t, mix) image_features = Transpose<perm=[0,2,1]>(e)", "columns of its result"),
    "embedding": (f"{Y1} image_features = Add(y1, sheets)", "varies along tokens"),
}  # fmt: skip
LATE_MORE = (
    ", int64 at = {1}, int64[2] flat = {-1, 48}, int64[3] back = {-1, 6, 8}, float[6,8] sheet, float[1,6,8] sheets, float[6,6] mix,"
    " int64[1] start = {-6}, int64[2] start2 = {1, 0}, int64[2] end2 = {1000, 1000}, int64[2] axes2 = {1, 2}"
)  # fmt: skip
RANDOM = np.random.default_rng(3)
SHEETS = {
    "sheet": RANDOM.standard_normal((6, 8), dtype=np.float32),
    "sheets": RANDOM.standard_normal((1, 6, 8), dtype=np.float32),
    "mix": RANDOM.standard_normal((6, 6), dtype=np.float32),
}


@pytest.mark.parametrize("name", LATE_TAILS)
def test_tails_that_mix_tokens_are_gathered_late_and_say_why(name: str) -> None:
    tail, reason = LATE_TAILS[name]
    named = {key: array for key, array in SHEETS.items() if f" {key})" in tail}
    report = check(PruneOptions(dropped_rows=1), tail=tail, more=LATE_MORE, tensors=named)
    assert report.gather == "late"
    assert re.search(reason, report.gather_reason)
    assert report.dropped_rows == 1


HIDDEN_ROWS = {
    "Slice .* counts tokens from the end": "image_features = Slice(y, start, many, one)",
    "Slice .* slices tokens and another axis at once": "r = Slice(y, start2, end2, axes2) image_features = Tanh(r)",
    "Slice .* bounds are not constant": "n = ReduceMax<keepdims=0>(x) c = Cast<to=7>(n) r = Reshape(c, minus) image_features = Slice(y, r, many, one)",
}


@pytest.mark.parametrize("reason", HIDDEN_ROWS)
def test_rows_that_cannot_be_followed_are_refused_not_guessed(reason: str) -> None:
    with pytest.raises(LocateError, match=f"cannot tell which of the 7 rows .* are the 6 rows .* {reason}"):
        prune(text_encoder(tail=HIDDEN_ROWS[reason], more=LATE_MORE))


REORDERED = {
    "Gather": ("image_features = Gather<axis=1>(y, perm)", 7),
    "Slice, then Gather": ("y1 = Slice(y, one, many, one) image_features = Gather<axis=1>(y1, perm6)", 6),
    "Gather, then Slice": ("g = Gather<axis=1>(y, perm) image_features = Slice(g, one, many, one)", 6),
    "equal counts": ("image_features = CumSum(y, at)", 7),
}


@pytest.mark.parametrize("name", REORDERED)
def test_rows_behind_a_node_that_may_reorder_tokens_are_refused(name: str) -> None:
    tail, kept = REORDERED[name]
    more = LATE_MORE + ", int64[7] perm = {6,5,4,3,2,1,0}, int64[6] perm6 = {5,4,3,2,1,0}"
    with pytest.raises(
        LocateError,
        match=rf"are the {kept} rows of 'image_features'; following them stopped at (Gather|CumSum) '.*': this "
        r"operator is not known to work row by row: if no node between them reorders tokens, state dropped_rows",
    ):
        prune(text_encoder(tail=tail, kept=kept, more=more))


@pytest.mark.parametrize(("dropped", "kept"), [(0, 7), (1, 6), (3, 4)])
def test_stated_rows_are_taken_at_the_output(dropped: int, kept: int) -> None:
    tail = "y1 = Slice(y, first, many, one) image_features = CumSum(y1, at)"
    more = f"{LATE_MORE}, int64[1] first = {{{dropped}}}"
    report = check(
        PruneOptions(dropped_rows=dropped, special_tokens=dropped), tail=tail, kept=kept, more=more
    )
    assert (report.gather, report.dropped_rows, report.tokens) == ("late", dropped, kept)
    model = text_encoder(tail=tail, kept=kept, more=more)
    prune(model, PruneOptions(dropped_rows=dropped, special_tokens=dropped))
    scores = run(model, {"x": X, "num_keep": np.array([1], np.int64)})["token_scores"]
    expected = attention_of(X, 0.5).mean(axis=(1, 2))[:, dropped : dropped + kept]
    # float32 softmax against float64; logits reach 30 here, where one rounding is 2e-6 of the probability
    assert np.abs(scores - expected).max() <= 2e-5


@pytest.mark.parametrize(("dropped", "message"), [
    (2, r"dropped_rows is 2, but attention 'Softmax_\d+' has 7 rows and 'image_features' 6: give at most 1"),
    (0, r"dropped_rows is 0, but row 0 of 'image_features' is row 1 of attention 'Softmax_\d+': leave .* None"),
])  # fmt: skip
def test_stated_rows_that_cannot_be(dropped: int, message: str) -> None:
    with pytest.raises(LocateError, match=message):
        prune(text_encoder(), PruneOptions(dropped_rows=dropped))


def test_dead_nodes_do_not_hold_back_the_gather() -> None:
    report = check(tail=f"{Y1} dead = CumSum(y1, at) image_features = MatMul(y1, wo)", more=LATE_MORE)
    assert (report.gather, report.gathered, report.nodes_removed) == ("early", ("p", "x"), 2)


def test_features_that_somebody_else_reads_are_gathered_behind_it() -> None:
    model = text_encoder(
        tail="image_features = Slice(y, one, many, one) pooled = ReduceMean<keepdims=0>(image_features, one)"
    )
    pooled = next(value for node in model.graph for value in node.outputs if value.name == "pooled")
    pooled.shape, pooled.type = ir.Shape(["images", 8]), ir.TensorType(ir.DataType.FLOAT)
    model.graph.outputs.append(pooled)
    before = run(ir.from_proto(ir.to_proto(model)), {"x": X})
    report = prune(model, PruneOptions())
    out = run(model, {"x": X, "num_keep": np.array([2], np.int64)})
    assert report.gather == "late"
    assert out["pooled"].tobytes() == before["pooled"].tobytes()
    rows = out["kept_indices"][:, :, None]
    assert (
        out["image_features"].tobytes()
        == np.take_along_axis(before["image_features"], rows, axis=1).tobytes()
    )


@pytest.mark.parametrize("prefix", [1, 2])
def test_prefix_rows_come_first_and_are_not_scored(prefix: int) -> None:
    report = check(
        PruneOptions(prefix_tokens=prefix, special_tokens=1), tail="image_features = MatMul(y, wo)", kept=7
    )
    assert (report.tokens, report.prefix_tokens) == (7 - prefix, prefix)
    late = check(
        PruneOptions(prefix_tokens=prefix, dropped_rows=0),
        tail="image_features = CumSum(y, at)",
        kept=7,
        more=LATE_MORE,
    )
    assert late.gather == "late"


def test_a_fixed_number_of_images() -> None:
    assert check(images=3).gather == "early"


def test_grid_that_is_not_square() -> None:
    whole = run(text_encoder(), {"x": X})["image_features"]
    model = text_encoder()
    prune(model, PruneOptions(strategy="row", grid=(2, 3)))
    for keep, asked in (
        (3, 3),
        (3, 5),
        (6, 6),
    ):  # what is not a multiple of the row length is cut down to one
        out = run(model, {"x": X, "num_keep": np.array([asked], np.int64)})
        means = out["token_scores"].reshape(3, 2, 3).mean(axis=2)
        expected = (
            [[0, 1, 2] if a > b else [3, 4, 5] for a, b in means]
            if keep == 3
            else np.tile(np.arange(6), (3, 1))
        )
        assert np.array_equal(out["kept_indices"], expected)
        rows = out["kept_indices"][:, :, None]
        assert out["image_features"].tobytes() == np.take_along_axis(whole, rows, axis=1).tobytes()


@pytest.mark.parametrize(("options", "expected"), [
    (PruneOptions(), [0, 1, 2]),
    (PruneOptions(strategy="row", grid=(2, 3)), [0, 1, 2]),
])  # fmt: skip
def test_ties_go_to_the_lower_position(options: PruneOptions, expected: list[int]) -> None:
    model = text_encoder()
    prune(model, options)
    blank = np.ones((2, 7, 8), np.float32)  # every query sees every key alike
    out = run(model, {"x": blank, "num_keep": np.array([3], np.int64)})
    assert len(np.unique(out["token_scores"])) == 1
    assert out["kept_indices"].tolist() == [expected, expected]


def test_a_planted_patch_is_kept_first() -> None:
    # Queries and keys are the tokens themselves; one token lies in the middle of all others, so all look at it.
    same = np.eye(8, dtype=np.float32)
    model = text_encoder(tensors={"wq": same, "wk": same})
    prune(model, PruneOptions())
    random = np.random.default_rng(1)
    centre = random.standard_normal(8) * 3
    for hot in range(6):
        x = centre + random.standard_normal((1, 7, 8)) * 2
        x[0, hot + 1] = centre
        out = run(model, {"x": x.astype(np.float32), "num_keep": np.array([1], np.int64)})
        assert out["kept_indices"].tolist() == [[hot]]


VALUES16 = "vh = Cast<to=10>(v) b = MatMul(p, vh) a = Cast<to=1>(b)"
QK16 = "q16 = Cast<to=10>(q) k16 = Cast<to=10>(k) s = MatMul(q16, k16)"
MASK16 = np.random.default_rng(9).standard_normal((1, 1, 7, 7)).astype(np.float16)
TENSORS16 = {"mask16": MASK16} | {
    name: np.array(number, np.float16)
    for name, number in (("half16", 0.5), ("never16", -np.inf), ("least16", -1))
}
# attention, scale, mask
FLOAT16 = {
    "probabilities only": (f"s = MatMul(q, k) h = Cast<to=10>(s) p = Softmax<axis=-1>(h) {VALUES16}", 1.0, 0.0),
    "scale": (f"{QK16} l = Mul(half16, s) i = Identity(l) p = Softmax<axis=3>(i) {VALUES16}", 0.5, 0.0),
    "scale and mask": (f"{QK16} l = Div(s, half16) m = Add(l, mask16) p = Softmax<axis=-1>(m) {VALUES16}", 2.0, MASK16),
    "condition": (
        f"{QK16} c = Greater(mask16, least16) m = Where(c, s, never16) p = Softmax<axis=-1>(m) {VALUES16}",
        *(1.0, np.where(MASK16 > -1, 0, -np.inf)),
    ),
    "softmax in float32": (f"{QK16} c = Cast<to=1>(s) p = Softmax<axis=-1>(c) a = MatMul(p, v)", 1.0, 0.0),
}  # fmt: skip


def float16_form(attention: str) -> dict[str, Any]:
    tensors = {key: array for key, array in TENSORS16.items() if key in attention}
    shapes = {key: list(array.shape) if array.ndim else "" for key, array in tensors.items()}
    more = "".join(f", float16{shape} {key}" for key, shape in shapes.items())
    return {"attention": attention, "more": more, "tensors": tensors}


@pytest.mark.parametrize("name", FLOAT16)
def test_float16_features_keep_their_rows(name: str) -> None:
    # ONNX's own evaluator: ONNX Runtime on a CPU drops float16 casts, elsewhere in the pruned graph than before.
    def evaluate(model: ir.Model, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        names = [str(value.name) for value in model.graph.outputs]
        return dict(zip(names, ReferenceEvaluator(ir.to_proto(model)).run(None, feeds), strict=True))

    form = float16_form(FLOAT16[name][0])
    whole = evaluate(text_encoder(**form), {"x": X})["image_features"]
    model = text_encoder(**form)
    report = prune(model)
    assert (report.gather, report.score_path) == ("early", "side_branch")
    for keep in range(2, 7):
        out = evaluate(model, {"x": X, "num_keep": np.array([keep], np.int64)})
        rows = np.take_along_axis(whole, out["kept_indices"][:, :, None], axis=1)
        # NumPy multiplies few rows in another order than many; features are of size 25, one rounding is 2e-6
        assert np.abs(out["image_features"] - rows).max() <= 1e-5


@pytest.mark.parametrize("aggregation", ["col_mean", "col_mean_patch", "cls"])
@pytest.mark.parametrize("name", FLOAT16)
def test_float16_attention_is_scored_in_float32(name: str, aggregation: str) -> None:
    attention, scale, bias = FLOAT16[name]
    model = text_encoder(**float16_form(attention))
    seen = ("q16", "k16") if "q16" in attention else ("q", "k")
    for value in [value for node in model.graph for value in node.outputs if value.name in seen]:
        value.shape = ir.Shape(["images", 2, 7, 4] if value.name == seen[0] else ["images", 2, 4, 7])
        value.type = ir.TensorType(ir.DataType.FLOAT16 if "16" in seen[0] else ir.DataType.FLOAT)
        model.graph.outputs.append(value)
    report = prune(model, PruneOptions(aggregation=aggregation, special_tokens=1))
    path = "cls_row" if aggregation == "cls" else "side_branch"
    assert (report.score_path, report.gather, report.notes) == (path, "early", ())
    out = run(model, {"x": X, "num_keep": np.array([2], np.int64)})
    q, k = (out[name].astype(np.float64) for name in seen)
    rows = {"col_mean": slice(0, 7), "col_mean_patch": slice(1, 7), "cls": slice(0, 1)}[aggregation]
    expected = softmax(q @ k * scale + bias)[:, :, rows].mean(axis=(1, 2))[:, 1:]
    # float32 softmax against float64, from the same Q and K; float16 logits of size 30 would be off by 1e-2
    assert np.abs(out["token_scores"] - expected).max() <= 2e-5


def test_float16_probabilities_that_a_tap_vouches_for_are_noted() -> None:
    attention = "s = MatMul(q, k) e = Softplus(s) t = ReduceSum<keepdims=1>(e, minus) d = Div(e, t) p = Cast<to=10>(d)"
    model = text_encoder(attention=f"{attention} {VALUES16}")
    report = prune(model, PruneOptions(tap="p"))
    assert report.notes == ("scores are made from FLOAT16 probabilities: 'p' is tapped",)
    assert report.score_path == "one_pass"
    means = [node for node in model.graph if node.op_type == "ReduceMean"]
    assert {node.inputs[0].dtype for node in means if node.inputs[0]} == {ir.DataType.FLOAT}


BOTH_FORMS = {"softmax": {}, "attention_op": {"attention": OPERATOR, "opset": 23}}
with_both_forms = pytest.mark.parametrize("form", BOTH_FORMS.values(), ids=BOTH_FORMS.keys())


@with_both_forms
@pytest.mark.parametrize("aggregation", ["col_mean", "col_mean_patch", "cls"])
def test_permuting_heads_leaves_the_indices_unchanged(form: dict[str, object], aggregation: str) -> None:
    values = text_encoder().graph.initializers
    weights = {name: values[name].const_value.numpy() for name in ("wq", "wk", "wv", "wo")}  # type: ignore[union-attr]
    swapped = np.roll(np.arange(8), 4)  # two heads of width 4
    permuted = {name: weights[name][:, swapped] for name in ("wq", "wk", "wv")}
    permuted["wo"] = weights["wo"][swapped]
    models = [text_encoder(tensors=tensors, **form) for tensors in (weights, permuted)]  # type: ignore[arg-type]
    for model in models:
        prune(model, PruneOptions(aggregation=aggregation))
    for keep in range(1, 7):
        one, other = (run(model, {"x": X, "num_keep": np.array([keep], np.int64)}) for model in models)
        assert np.array_equal(one["kept_indices"], other["kept_indices"])


@with_both_forms
def test_column_means_of_cls_and_patches_sum_to_one(form: dict[str, object]) -> None:
    model = text_encoder(tail="image_features = MatMul(y, wo)", kept=7, **form)  # type: ignore[arg-type]
    prune(model, PruneOptions(prefix_tokens=0, special_tokens=1))
    scores = run(model, {"x": X, "num_keep": np.array([1], np.int64)})["token_scores"]
    # each of the 7 rows of a softmax sums to 1 within some units of float32 rounding (6e-8)
    assert np.abs(scores.sum(axis=1, dtype=np.float64) - 1).max() <= 5e-7


@with_both_forms
@pytest.mark.parametrize("method", ["hiprune", "fastervlm"])
def test_selection_is_that_of_published_methods(form: dict[str, object], method: str) -> None:
    # P [images, heads, queries, keys] of fixed tensors, row 0 is CLS.
    attention = attention_of(X, 0.5)
    if method == "hiprune":  # alpha = 0: no anchors, all of the budget by the attention a token receives
        received = attention.mean(axis=1).sum(axis=1)[:, 1:]
    else:  # what the CLS query looks at
        received = attention[:, :, 0, 1:].mean(axis=1)
    model = text_encoder(**form)  # type: ignore[arg-type]
    prune(model, PruneOptions(aggregation={"hiprune": "col_mean", "fastervlm": "cls"}[method]))
    for keep in range(1, 7):
        out = run(model, {"x": X, "num_keep": np.array([keep], np.int64)})
        best = received.argsort(axis=1)[:, -keep:]
        assert np.array_equal(out["kept_indices"], np.sort(best, axis=1))


def test_one_tensor_read_at_two_offsets() -> None:
    tail = "y1 = Slice(y, one, many, one) x0 = Slice(x, zero, six, one) image_features = Sub(y1, x0)"
    report = check(tail=tail, more=", int64[1] six = {6}")
    assert (report.gather, report.gathered, report.dropped_rows) == ("early", ("p", "x", "x"), 1)


def test_a_hidden_state_that_is_an_output_stays_whole() -> None:
    model = text_encoder()
    hidden = next(value for node in model.graph for value in node.outputs if value.name == "y")
    hidden.shape, hidden.type = ir.Shape(["images", 7, 8]), ir.TensorType(ir.DataType.FLOAT)
    model.graph.outputs.append(hidden)
    before = run(ir.from_proto(ir.to_proto(model)), {"x": X})
    report = prune(model, PruneOptions())
    out = run(model, {"x": X, "num_keep": np.array([2], np.int64)})
    assert (report.gather, report.gather_reason) == ("late", "'y' is needed whole elsewhere")
    assert out["y"].tobytes() == before["y"].tobytes()
    assert out["image_features"].shape == (3, 2, 8)
