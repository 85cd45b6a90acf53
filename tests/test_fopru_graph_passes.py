"""Each pass fires, does not fire, or refuses; nothing but what it says changes."""

# ruff: noqa: E501  (one line of ONNX text per case reads better than a broken one)
from __future__ import annotations

import hashlib

import numpy as np
import onnx_ir as ir
import pytest

from fopru_graph import (
    LocateError,
    OptionError,
    PruneOptions,
    RewriteError,
    UnsupportedGraphError,
    load_graph,
    prune,
)
from fopru_graph.builder import STAMP, GraphBuilder, Made
from fopru_graph.passes import (
    CleanPass,
    GatherPass,
    Located,
    LocatePass,
    PreparePass,
    Rewritten,
    ScorePass,
    SelectPass,
)
from tests.toy_encoders import Toy, export, text_encoder

DEFAULT = PruneOptions()


def located(model: ir.Model, options: PruneOptions = DEFAULT) -> Rewritten[Located]:
    PreparePass().run(model)
    return LocatePass(options).run(model)


def op_types(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


def weight_hashes(model: ir.Model) -> dict[str, str]:
    values = model.graph.initializers.items()
    return {name: hashlib.sha256(value.const_value.numpy().tobytes()).hexdigest() for name, value in values}  # type: ignore[union-attr]


# ---- locate


def test_locate_changes_no_node() -> None:
    model = text_encoder()
    before = op_types(model)
    result = located(model)
    assert (result.modified, op_types(model)) == (False, before)
    assert result.findings.core.node.op_type == "Softmax"


def test_locate_by_torch_scope() -> None:
    found = located(load_graph(export(Toy()))).findings
    assert (found.locator, found.layer, found.misses) == ("scope", 1, ())


def test_locate_by_node_name_says_why_not_by_scope() -> None:
    model = load_graph(export(Toy()))
    cores = located(model).findings.cores
    for node in model.graph:
        node.metadata_props.clear()
    for core, layer in zip(cores, (4, 7), strict=True):
        core.node.name = f"/vision_model/encoder/layers.{layer}/self_attn/Softmax"
    found = located(model).findings
    assert (found.locator, found.layer) == ("name", 7)
    assert found.misses == (
        "scope: '/vision_model/encoder/layers.4/self_attn/Softmax' carries no layer number",
    )


def test_locate_by_order_says_why_not_by_scope_or_name() -> None:
    model = load_graph(export(Toy()))
    cores = located(model).findings.cores
    for core, name in zip(cores, ("layers.3/a", "layers.3/b"), strict=True):
        core.node.metadata_props.clear()
        core.node.name = name
    found = located(model).findings
    assert (found.locator, found.layer) == ("structure", 1)
    assert found.misses[1] == "name: 'layers.3/a' and 'layers.3/b' both carry layer number 3"


@pytest.mark.parametrize("tap", ["p", "a"])
def test_locate_by_a_tensor_of_the_attention(tap: str) -> None:
    found = located(text_encoder(), PruneOptions(tap=tap)).findings
    assert (found.locator, found.core.anchor.name) == ("tensor", "p")


def test_a_tap_needs_no_pattern() -> None:
    # Softplus attention is no attention that anybody matches; the user vouches for it.
    form = {
        "attention": "s = MatMul(q, k) e = Softplus(s) t = ReduceSum<keepdims=1>(e, minus) p = Div(e, t) a = MatMul(p, v)"
    }
    with pytest.raises(LocateError, match="no attention found: 'image_features' depends on no Softmax"):
        prune(text_encoder(**form))  # type: ignore[arg-type]
    report = prune(text_encoder(**form), PruneOptions(tap="p"))  # type: ignore[arg-type]
    assert (report.locator, report.gather, report.gathered) == ("tensor", "early", ("p", "x"))


@pytest.mark.parametrize(
    ("tap", "message"),
    [
        ("nowhere", "tap 'nowhere' is no tensor of the graph; tensors made by attention are: 'p'"),
        ("q", r"tap 'q' has dims .*, but probabilities are \[images, heads, tokens, tokens\]; .* 'p'"),
    ],
)
def test_a_wrong_tap_lists_the_right_ones(tap: str, message: str) -> None:
    with pytest.raises(LocateError, match=message):
        located(text_encoder(), PruneOptions(tap=tap))


CHAINS = {
    "Softmax 'Softmax_10', but its input does not come from a MatMul": "p = Softmax<axis=-1>(q) a = Mul(p, v)",
    "Softmax 'Softmax_12', but it normalises axis 2": (
        "s = MatMul(q, k) l = Mul(s, half) p = Softmax<axis=2>(l) a = MatMul(p, v)"
    ),
    "Softmax 'Softmax_11', but its result feeds Mul": (
        "s = MatMul(q, k) p = Softmax<axis=-1>(s) p2 = Mul(p, half) a = MatMul(p2, v)"
    ),
    "Softmax 'Softmax_11', but its input does not come from a MatMul of queries and keys": (
        "s = MatMul(q, mix) p = Softmax<axis=-1>(s) a = MatMul(p, v)"
    ),
    "Softmax 'Softmax_11', but it normalises axis 1": "s = MatMul(q, k) p = Softmax<axis=1>(s) a = MatMul(p, v)",
    "Softmax 'Softmax_12', but its result has rank 3": (
        "s0 = MatMul(q, k) s = ReduceMax<keepdims=0>(s0, one) p = Softmax<axis=-1>(s) p4 = Unsqueeze(p, one) a = MatMul(p4, v)"
    ),
    "Attention 'Attention_11', but it is causal": "kt = Transpose<perm=[0,1,3,2]>(k) a = Attention<is_causal=1>(q, kt, v)",
    "Attention 'Attention_12', but it has 1 query heads and 2 key heads, and the one must be a multiple": (
        "kt = Transpose<perm=[0,1,3,2]>(k) q2 = ReduceMax<keepdims=1>(q, one) a = Attention(q2, kt, v)"
    ),
    "Attention 'Attention_12', but its mask has dims ": (
        "kt = Transpose<perm=[0,1,3,2]>(k) short = Slice(x, zero, two, two) a = Attention(q, kt, v, short)"
    ),
    "Attention 'Attention_11', but it reads a key/value cache": (
        "kt = Transpose<perm=[0,1,3,2]>(k) a, c, d = Attention(q, kt, v, , kt, kt)"
    ),
    "Attention 'Attention_12', but its query and key have dims": (
        "kt = Transpose<perm=[0,1,3,2]>(k) q5 = Unsqueeze(q, zero) a5 = Attention(q5, q5, q5) a = Squeeze(a5, zero)"
    ),
}  # fmt: skip


@pytest.mark.parametrize("message", CHAINS)
def test_the_best_near_miss_is_named(message: str) -> None:
    model = text_encoder(
        attention=CHAINS[message],
        opset=23,
        more=", float[4,7] mix",
        tensors={"mix": np.zeros((4, 7), np.float32)} if "mix" in CHAINS[message] else {},
    )
    with pytest.raises(LocateError, match=f"no attention found among 1 candidates; the closest is {message}"):
        prune(model)


def test_a_fused_attention_is_refused() -> None:
    fused = "a2 = com.microsoft.MultiHeadAttention<num_heads=2>(q0, k0, v0)"
    model = text_encoder(attention=fused, merge="a3 = MatMul(a2, wo) y = Add(x, a3)")
    with pytest.raises(
        LocateError, match=r"fused com.microsoft::MultiHeadAttention.* before a runtime's optimiser"
    ):
        prune(model)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (PruneOptions(layer=2), r"layer is 2, but the attentions behind 'image_features' are in layers 0, 1 \(found by scope"),
        (PruneOptions(features="pooled"), "no output 'pooled', the graph has image_features"),
        (PruneOptions(prefix_tokens=16), "prefix_tokens is 16, but 'image_features' has 16 rows: leave at least one"),
    ],
)  # fmt: skip
def test_locate_refuses(options: PruneOptions, message: str) -> None:
    with pytest.raises(LocateError, match=message):
        prune(load_graph(export(Toy())), options)


def test_features_of_another_rank_are_refused() -> None:
    model = text_encoder()
    model.graph.outputs[0].shape = ir.Shape(["images", 48])
    with pytest.raises(
        LocateError, match=r"'image_features' has dims \('images', 48\), but features are \[images, tokens"
    ):
        prune(model)


def test_a_varying_width_is_refused() -> None:
    model = text_encoder()
    model.graph.outputs[0].shape = ir.Shape(["images", 6, "width"])
    with pytest.raises(LocateError, match="but the width must be fixed"):
        LocatePass(DEFAULT).run(model)


def two_outputs() -> ir.Model:
    """An encoder whose attention result is an output too, so that all its rows are needed."""
    model = text_encoder()
    pooled = next(node.outputs[0] for node in model.graph if node.outputs[0].name == "a3")
    pooled.shape, pooled.type = ir.Shape(["images", 7, 8]), ir.TensorType(ir.DataType.FLOAT)
    model.graph.outputs.append(pooled)
    return model


def test_other_outputs_stay_or_go() -> None:
    with pytest.raises(LocateError, match="no output 'last_hidden_state', the graph has image_features, a3"):
        prune(two_outputs(), PruneOptions(features="last_hidden_state"))
    kept = two_outputs()
    report = prune(kept)
    assert (report.features, report.gather, report.dropped_outputs) == ("image_features", "late", ())
    assert "a3" in [value.name for value in kept.graph.outputs]
    scope = prune(two_outputs(), PruneOptions(strategy="scope"))
    assert (scope.features, scope.gathered) == ("image_features", ("image_features",))
    gone = two_outputs()
    report = prune(gone, PruneOptions(keep_other_outputs=False))
    assert (report.gather, report.dropped_outputs, report.passes[1].modified) == ("early", ("a3",), 1)
    assert [value.name for value in gone.graph.outputs] == ["image_features", "token_scores", "kept_indices"]


def test_the_only_output_of_rank_3_is_the_features() -> None:
    model = text_encoder()
    model.graph.outputs[0].name = "hidden"
    assert prune(model).features == "hidden"


def test_rows_that_a_slice_may_cut_off_are_refused_where_their_number_varies() -> None:
    with pytest.raises(LocateError, match="Slice 'Slice_18': it may cut off rows at the end"):
        prune(text_encoder(rows="rows"))  # type: ignore[arg-type]


def test_a_varying_number_of_heads_is_refused() -> None:
    model = text_encoder()
    heads = ir.Value(name="count", shape=ir.Shape([1]), type=ir.TensorType(ir.DataType.INT64))
    model.graph.inputs.append(heads)
    shape = ir.node("Concat", [*(model.graph.initializers[name] for name in ("zero", "zero")), heads,
                               model.graph.initializers["minus"]], {"axis": 0})  # fmt: skip
    shape.outputs[0].name = "heads_at_run_time"
    model.graph.insert_before(model.graph[0], shape)
    for node in model.graph:
        if node.op_type == "Reshape" and node.inputs[1].name == "heads":  # type: ignore[union-attr]
            node.replace_input_with(1, shape.outputs[0])
    with pytest.raises(LocateError, match="but the number of heads must be fixed"):
        prune(model)


def test_attention_to_something_else_is_refused() -> None:
    with pytest.raises(
        LocateError, match=r"'Softmax_\d+' has 7 queries and 6 keys, but tokens must look at each other"
    ):
        prune(text_encoder(attention=(
            "k6 = Slice(k, one, many, three) v6 = Slice(v, one, many, two) s = MatMul(q, k6) p = Softmax<axis=-1>(s) a = MatMul(p, v6)"
        )))  # fmt: skip


def test_an_old_opset_is_refused() -> None:
    with pytest.raises(UnsupportedGraphError, match="the graph has opset 11, but 13 or later is needed"):
        prune(text_encoder(opset=11))


def test_a_pruned_graph_is_refused() -> None:
    model = text_encoder()
    prune(model)
    with pytest.raises(UnsupportedGraphError, match="already has 'num_keep': it is pruned"):
        prune(model)


# ---- score


def test_score_adds_nothing_else_and_taps_one_layer() -> None:
    model = load_graph(export(Toy()))
    before = op_types(model)
    found = located(model).findings
    result = ScorePass(DEFAULT, found).run(model)
    added = [node for node in model.graph if STAMP in node.metadata_props]
    assert result.modified
    assert sorted(node.op_type for node in added) == ["ReduceMean", "ReduceMean", "Slice"]
    assert len(model.graph) == len(before) + 3
    taps = [use.node for use in found.core.anchor.uses() if STAMP in use.node.metadata_props]
    assert len(taps) == 1


@pytest.mark.parametrize("toy", [Toy(), Toy(opset=23)], ids=["softmax", "attention_op"])
def test_one_layer_pays_for_the_score(toy: Toy) -> None:
    model = load_graph(export(toy))
    before = op_types(model)
    prune(model)
    after = op_types(model)
    extra = 1 if toy.opset == 23 else 0
    for op_type in ("Softmax", "MatMul"):
        assert after.count(op_type) == before.count(op_type) + extra
    assert after.count("Attention") == before.count("Attention")
    assert all(len(node.outputs) == 1 for node in model.graph if node.op_type == "Attention")


def test_score_without_an_output() -> None:
    model = text_encoder()
    options = PruneOptions(scores_output=False)
    prune(model, options)
    assert [value.name for value in model.graph.outputs] == ["image_features", "kept_indices"]


def test_cls_without_a_cls_row_is_refused() -> None:
    with pytest.raises(OptionError, match=r"no CLS row .* use col_mean or col_mean_patch"):
        prune(text_encoder(), PruneOptions(aggregation="cls", special_tokens=0))


def test_an_encoder_of_special_rows_only_is_refused() -> None:
    with pytest.raises(
        OptionError, match="special_tokens is 7, but the attention has 7 rows: leave at least one patch"
    ):
        prune(text_encoder(), PruneOptions(prefix_tokens=0, special_tokens=7))


def test_score_ensures_its_output() -> None:
    found = located(text_encoder()).findings
    with pytest.raises(RewriteError, match="left no output 'token_scores'"):
        ScorePass(DEFAULT, found).ensures(text_encoder())


# ---- select


def test_select_uses_static_operators_only() -> None:
    for options in (DEFAULT, PruneOptions(strategy="row", grid=(2, 3))):
        model = text_encoder()
        prune(model, options)
        added = [node for node in model.graph if node.metadata_props.get(STAMP) == "select"]
        assert {"NonZero", "Compress", "Unique"}.isdisjoint(node.op_type for node in added)
        top = [node for node in added if node.op_type == "TopK"]
        assert [node.attributes["sorted"].as_int() for node in top] == [1, 1]
        assert [node.attributes["largest"].as_int() for node in top] == [1, 0]


def test_select_declares_its_input_and_output() -> None:
    model = text_encoder()
    prune(model)
    table = {v.name: (v.dtype, str(v.shape)) for v in (*model.graph.inputs, *model.graph.outputs)}
    assert table["num_keep"] == (ir.DataType.INT64, "[1]")
    assert table["image_features"] == (ir.DataType.FLOAT, "[images,kept_rows,8]")
    assert table["kept_indices"] == (ir.DataType.INT64, "[images,kept]")
    assert table["token_scores"] == (ir.DataType.FLOAT, "[images,tokens]")


@pytest.mark.parametrize("strategy", ["rank", "row"])
def test_a_grid_that_does_not_fit_is_refused(strategy: str) -> None:
    with pytest.raises(OptionError, match="grid is 3x3 = 9 tokens, but there are 6"):
        prune(text_encoder(), PruneOptions(strategy=strategy, grid=(3, 3)))


def test_select_ensures_its_output() -> None:
    model = text_encoder()
    found = located(model).findings
    scored = ScorePass(DEFAULT, found).run(model).findings
    with pytest.raises(RewriteError, match="left no output 'kept_indices'"):
        SelectPass(DEFAULT, found, scored).ensures(text_encoder())


# ---- gather


def test_gather_drops_the_slice_and_copies_leading_dims() -> None:
    model = load_graph(export(Toy()))
    prune(model)
    assert not any(node.name == "node_slice_1" for node in model.graph)
    short = [n for n in model.graph if n.op_type == "Reshape" and "kept_rows" in str(n.outputs[0].shape)]
    assert short
    for node in short:
        assert ir.convenience.get_const_tensor(node.inputs[1]).numpy()[:2].tolist() == [0, 0]  # type: ignore[union-attr]


def test_gather_ensures_kept_rows() -> None:
    model = text_encoder()
    found = located(model).findings
    scored = ScorePass(DEFAULT, found).run(model).findings
    selected = SelectPass(DEFAULT, found, scored).run(model).findings
    with pytest.raises(RewriteError, match=r"left 'image_features' with dims \('images', 6, 8\)"):
        GatherPass(found, selected).ensures(model)


# ---- clean


def test_clean_removes_what_only_unused_layers_need() -> None:
    model = text_encoder(tail="image_features = Slice(y, one, many, one, one) dead = MatMul(y, wdead)", more=", float[8,8] wdead",
                         tensors={"wdead": np.zeros((8, 8), np.float32)})  # fmt: skip
    report = prune(model)
    assert report.nodes_removed == 2  # it and the Slice that drops the first row
    assert "wdead" not in model.graph.initializers


def test_clean_leaves_a_clean_graph_alone() -> None:
    model = text_encoder()
    prune(model)
    assert not CleanPass().run(model).modified


def test_clean_refuses_an_invalid_graph() -> None:
    model = text_encoder()
    next(iter(model.graph)).op_type = "NoSuchOperator"
    with pytest.raises(RewriteError, match=r"not valid ONNX: .*NoSuchOperator"):
        CleanPass().run(model)


# ---- all of them


@pytest.mark.parametrize("toy", [Toy(), Toy(opset=23)], ids=["softmax", "attention_op"])
def test_weights_keep_their_bytes_and_new_nodes_carry_a_stamp(toy: Toy) -> None:
    model = load_graph(export(toy))
    names, weights = {node.name for node in model.graph}, weight_hashes(model)
    report = prune(model, PruneOptions(prefix_tokens=toy.prefix))
    new = [node for node in model.graph if node.name not in names]
    assert {node.metadata_props.get(STAMP) for node in new} == {"score", "select", "gather"}
    assert len(new) == report.nodes_added
    after = weight_hashes(model)
    kept = {name: digest for name, digest in after.items() if name in weights}
    assert kept.items() <= weights.items()
    added = set(after) - set(weights)
    assert all(name.startswith("fopru/") for name in added)
    big = {name for name in weights if model.graph.initializers.get(name) is None}
    assert all(not name.startswith("tower.encoder.layers.0") for name in big)


def test_report_is_plain_data() -> None:
    report = prune(text_encoder())
    plain = report.to_dict()
    assert plain["passes"][1] == {"name": "locate", "modified": 0}
    names = [count["name"] for count in plain["passes"]]
    assert names == ["prepare", "locate", "score", "select", "gather", "clean"]
    assert plain["gathered"] == ["p", "x"]


@pytest.mark.parametrize(
    ("options", "notes"),
    [
        (DEFAULT, ("TensorRT's TopK takes at most 3839: keep no more tokens of 3840 per image there",)),
        (
            PruneOptions(strategy="row", grid=(3840, 1)),
            ("TensorRT's TopK takes at most 3839: keep no more rows of 3840 per image there",),
        ),
        (PruneOptions(strategy="row", grid=(60, 64)), ()),
        (PruneOptions(prefix_tokens=1), ()),
    ],
)
def test_report_notes_what_tensorrt_cannot_select(options: PruneOptions, notes: tuple[str, ...]) -> None:
    assert prune(text_encoder(rows=3841, kept=3840), options).notes == notes


def test_names_are_fresh() -> None:
    model = text_encoder()
    builder = GraphBuilder(model.graph, "test")
    first = builder.constant("name", np.zeros(1, np.float32))
    second = builder.constant("name", np.ones(1, np.float32))
    third = GraphBuilder(model.graph, "test").op("Neg", [first], Made("name", ir.DataType.FLOAT, (1,)))
    assert (first.name, second.name, third.name) == ("fopru/name", "fopru/name_1", "fopru/name_2")


def test_reductions_before_opset_18_take_axes_as_an_attribute() -> None:
    model = text_encoder(opset=17)
    prune(model)
    means = [node for node in model.graph if node.op_type == "ReduceMean"]
    assert [node.attributes["axes"].as_ints() for node in means] == [(2,), (1,)]
