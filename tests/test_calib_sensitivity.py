"""Groups of products: their names, what quantising each alone costs, and which of them stay float32."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from calib.errors import OptionError, RunError, StoreError
from calib.precision.qdq import QdqFormat, add_qdq
from calib.precision.weight_file import WeightFile
from calib.ranges import Collector, Keep, Method, ObservingSession
from calib.sensitivity import (
    Group,
    GroupLoss,
    Quantisable,
    groups_of,
    keep_float,
    measure,
    weights_of,
)
from fopru_graph.layers import SCOPES
from runtime.backend import Array, BackendOptions, Session
from runtime.backends.onnxruntime import create
from runtime.errors import BackendError

INT8, FP8 = QdqFormat("int8"), QdqFormat("fp8")
LAYER = """
    {p}q = MatMul({x}, {p}wq) {p}k = MatMul({x}, {p}wk) {p}v = MatMul({x}, {p}wv)
    {p}qh = Unsqueeze({p}q, one) {p}kh = Unsqueeze({p}k, one) {p}vh = Unsqueeze({p}v, one)
    {p}kt = Transpose <perm = [0, 1, 3, 2]> ({p}kh) {p}l = MatMul({p}qh, {p}kt) {p}s = Softmax({p}l)
    {p}ch = MatMul({p}s, {p}vh) {p}c = Squeeze({p}ch, one) {p}o = MatMul({p}c, {p}wo) {p}r = Add({x}, {p}o)
    {p}u = MatMul({p}r, {p}wu) {p}a = Relu({p}u) {p}d = MatMul({p}a, {p}wd) {p}y = Add({p}r, {p}d)
"""
SHAPES = {"wq": (16, 16), "wk": (16, 16), "wv": (16, 16), "wo": (16, 16), "wu": (16, 24), "wd": (24, 16)}
KINDS = dict.fromkeys(("wq", "wk", "wv", "wo"), "attention") | dict.fromkeys(("wu", "wd"), "mlp")


def encoder(layers: int = 3) -> ir.Model:
    """A patch embedding, attention and MLP, a projector of two products; no word of that in any name."""
    body = "patches = Conv <kernel_shape = [4, 4], strides = [4, 4]> (picture, w0)"
    body += " flat = Reshape(patches, shape) rows = Transpose <perm = [0, 2, 1]> (flat)"
    weights: dict[str, tuple[int, ...]] = {"w0": (16, 3, 4, 4)}
    x = "rows"
    for layer in range(layers):
        body += LAYER.format(p=f"n{layer}", x=x)
        x = f"n{layer}y"
        weights |= {f"n{layer}{name}": shape for name, shape in SHAPES.items()}
    body += f" p1 = MatMul({x}, w1) p2 = Relu(p1) features = MatMul(p2, w2)"
    weights |= {"w1": (16, 20), "w2": (20, 16)}
    text = f"""
        <ir_version: 10, opset_import: ["" : 20]>
        g (float[b, 3, 16, 16] picture) => (float[b, s, 16] features)
        <int64[3] shape = {{0, 16, -1}}, int64[1] one = {{1}}>
        {{ {body} }}
    """
    made = ir.from_proto(onnx.shape_inference.infer_shapes(onnx.parser.parse_model(text)))
    rng = np.random.default_rng(2)
    named = {str(v.name): v for node in made.graph for v in node.inputs if v is not None}
    for name, shape in weights.items():
        array = (rng.standard_normal(shape) / np.sqrt(np.prod(shape) / shape[-1])).astype(np.float32)
        named[name].const_value, named[name].shape = ir.tensor(array, name=name), ir.Shape(shape)
        named[name].type = ir.TensorType(ir.DataType.FLOAT)
        made.graph.register_initializer(named[name])
    return ir.from_proto(onnx.shape_inference.infer_shapes(ir.to_proto(made)))


def products(model: ir.Model) -> list[ir.Node]:
    return [
        node
        for node in model.graph
        if node.op_type in ("MatMul", "Conv")
        and node.inputs[1] is not None
        and node.inputs[1].is_initializer()
    ]


def names_of(model: ir.Model, form: QdqFormat = INT8) -> dict[str, tuple[str, ...]]:
    return {group.name: group.weights for group in groups_of(model, form)}


EXPECTED = (
    {"patches": ("w0",)}
    | {
        f"layers.{layer}.{kind}": tuple(f"n{layer}{name}" for name in SHAPES if KINDS[name] == kind)
        for layer in range(3)
        for kind in ("attention", "mlp")
    }
    | {"projector": ("w1", "w2")}
)


def test_groups_by_position() -> None:
    assert names_of(encoder()) == EXPECTED
    assert list(names_of(encoder())) == list(EXPECTED)  # in the order of the graph


def address(weight: str) -> str:
    if weight == "w0":
        return "tower.embeddings.patch_embedding"
    if weight in ("w1", "w2"):
        return f"multi_modal_projector.linear_{weight[1]}"
    return f"tower.encoder.layers.{weight[1]}.{'self_attn' if KINDS[weight[2:]] == 'attention' else 'mlp'}.x"


def test_groups_by_scopes() -> None:
    model = encoder()
    for node in products(model):
        inner = address(str(node.inputs[1].name))  # type: ignore[union-attr]
        outer = [inner.rsplit(".", count)[0] for count in range(inner.count("."), 0, -1)]
        node.metadata_props[SCOPES] = str(["", *outer, inner, "linear_7"])
    assert names_of(model) == EXPECTED


def test_groups_by_names_of_weights() -> None:
    proto = ir.to_proto(encoder())
    weights = [weight for group in EXPECTED.values() for weight in group]
    for tensor in proto.graph.initializer:
        tensor.name = f"{address(tensor.name)}.{tensor.name}" if tensor.name in weights else tensor.name
    for node in proto.graph.node:
        node.input[:] = [f"{address(name)}.{name}" if name in weights else name for name in node.input]
    model = ir.from_proto(proto)
    for node in products(model):
        node.metadata_props[SCOPES] = "damaged ["
    assert names_of(model) == {
        name: tuple(f"{address(weight)}.{weight}" for weight in group) for name, group in EXPECTED.items()
    }


def test_groups_by_names_of_nodes() -> None:
    model = encoder()
    for node in products(model):
        node.name = "/" + address(str(node.inputs[1].name)).replace(".", "/") + "/MatMul"  # type: ignore[union-attr]
    assert names_of(model) == EXPECTED


@pytest.mark.parametrize(
    ("inner", "name"),
    [
        ("visual.blocks.0.attn.qkv", "layers.0.attention"),
        ("visual.blocks.0.proj", "layers.0.attention"),
        ("visual.blocks.0.mlp.down_proj", "layers.0.mlp"),
        ("tower.layers.0.blocks.2.attn.q", "layers.0.2.attention"),
        ("tower.layers.0.something", "layers.0"),
        ("tower.mlp_blocks.layer.0.attention.output.dense", "layers.0.attention"),
        ("visual.merger.layers.0.mlp", "projector"),
        ("tower.reduce", "patches"),  # before the first layer
    ],
)
def test_addresses_of_other_towers(inner: str, name: str) -> None:
    model = encoder(1)
    for node in products(model):
        node.metadata_props[SCOPES] = str(["", inner])
    products(model)[-1].metadata_props[SCOPES] = str(["", "tower.layers.0.mlp.fc2"])
    assert set(names_of(model)) == {name, "layers.0.mlp"}


def test_products_without_attention_or_names() -> None:
    text = (
        '<ir_version: 10, opset_import: ["" : 20]> g (float[b, 16] x) => (float[b, 16] y) {y = MatMul(x, w)}'
    )
    model = ir.from_proto(onnx.parser.parse_model(text))
    value = next(iter(model.graph)).inputs[1]
    assert value is not None
    value.const_value, value.type = (
        ir.tensor(np.eye(16, dtype=np.float32), name="w"),
        ir.TensorType(ir.DataType.FLOAT),
    )
    model.graph.register_initializer(value)
    assert names_of(model) == {"product.0": ("w",)}


def test_a_weight_that_two_layers_read_is_in_the_first() -> None:
    model = encoder()
    shared = model.graph.initializers["n0wu"]
    node = next(node for node in products(model) if node.inputs[1] is model.graph.initializers["n1wu"])
    node.replace_input_with(1, shared)
    assert names_of(model)["layers.0.mlp"] == ("n0wu", "n0wd")
    assert names_of(model)["layers.1.mlp"] == ("n1wd",)


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
def test_groups_of_an_exported_encoder(family: str, family_bundle: object) -> None:
    assert callable(family_bundle)
    root = family_bundle(family)
    model = ir.load(root / "onnx/vision_encoder.onnx")
    names = [group.name for group in groups_of(model, INT8)]
    count = sum(name.endswith(".mlp") for name in names)
    assert count >= 2
    layers = [f"layers.{layer}.{kind}" for layer in range(count) for kind in ("attention", "mlp")]
    assert names == ["patches", *layers, "projector"]
    pruned = ir.load(root / "onnx/vision_encoder_fopru.onnx")
    assert groups_of(pruned, INT8) == groups_of(model, INT8)


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    path = tmp_path / "encoder.onnx"
    ir.save(encoder(), path, external_data="encoder.onnx_data")
    return path


PICTURES = np.random.default_rng(4).standard_normal((3, 1, 3, 16, 16)).astype(np.float32)


def features(session: Session) -> list[Array]:
    return [session.run({"picture": picture})["features"] for picture in PICTURES]


def ranges(graph: Path, model: ir.Model) -> dict[str, float]:
    names = {str(node.inputs[0].name) for node in products(model) if node.inputs[0] is not None}
    collector = Collector(Method())
    features(ObservingSession(graph, tuple(names), collector.update))
    return collector.amax()


def source_of(graph: Path, form: QdqFormat = INT8) -> Quantisable:
    return Quantisable(graph, form, ranges(graph, ir.load(graph)))


@pytest.mark.parametrize("form", [INT8, FP8], ids=["int8", "fp8"])
def test_each_group_alone(form: QdqFormat, graph: Path, tmp_path: Path) -> None:
    """The same numbers as a graph that was written with this group quantised and nothing else."""
    source, backend = source_of(graph, form), create(BackendOptions())
    losses = measure(source, features, Keep(tmp_path / "work/losses", "key"))
    assert [loss.group for loss in losses] == list(groups_of(ir.load(graph), form))
    wanted = features(backend.open(graph))
    for loss in losses:
        model = ir.load(graph)
        others = {str(node.inputs[1].name) for node in products(model)} - set(loss.group.weights)  # type: ignore[union-attr]
        with WeightFile(tmp_path / "alone.onnx_data") as file:
            add_qdq(model, form, source.amax, file, skip=others)
        ir.save(model, tmp_path / f"alone_{form.name}.onnx")
        got = features(backend.open(tmp_path / f"alone_{form.name}.onnx"))
        cosines = [
            np.corrcoef(one, other)[0, 1]
            for a, b in zip(wanted, got, strict=True)
            for one, other in zip(a[0].astype(float), b[0].astype(float), strict=True)
        ]
        # Both are in float64; a cosine near 1 has 2^-52 of it.
        assert loss.loss == pytest.approx(1 - np.mean(cosines), abs=1e-14)
        largest = max(float(np.abs(a - b).max()) for a, b in zip(wanted, got, strict=True))
        assert loss.max_abs_diff == pytest.approx(largest, rel=1e-6)  # float32 here, float64 there
        assert 0 < loss.loss < 0.5


def test_the_group_with_an_outlier_is_the_worst(graph: Path, tmp_path: Path) -> None:
    source = source_of(graph)
    hidden = next(node for node in products(ir.load(graph)) if str(node.inputs[1].name) == "n1wd")  # type: ignore[union-attr]
    name = str(hidden.inputs[0].name)  # type: ignore[union-attr]
    wide = Quantisable(graph, INT8, {**source.amax, name: source.amax[name] * 60})
    losses = measure(wide, features, Keep(tmp_path / "losses", "key"))
    assert max(losses, key=lambda loss: loss.loss).group.name == "layers.1.mlp"


def test_groups_without_ranges_are_left_out(graph: Path, tmp_path: Path) -> None:
    source = source_of(graph)
    some = {name: value for name, value in source.amax.items() if name in ("picture", "rows")}
    losses = measure(Quantisable(graph, INT8, some), features, Keep(tmp_path / "losses", "key"))
    assert [loss.group.name for loss in losses] == ["patches", "layers.0.attention"]


@pytest.mark.parametrize("kept", [1, 3, 9])
def test_a_killed_run_goes_on(kept: int, graph: Path, tmp_path: Path) -> None:
    source, file = source_of(graph), tmp_path / "losses"
    whole = measure(source, features, Keep(file, "key"))
    lines = file.read_bytes().splitlines(keepends=True)
    assert len(lines) == 1 + len(whole)
    file.write_bytes(b"".join(lines[:kept]) + b'{"group": ')
    calls, steps = [], []

    def run(session: Session) -> Sequence[Array]:
        calls.append(session)
        return features(session)

    again = measure(source, run, Keep(file, "key"), lambda done, total: steps.append((done, total)))
    assert again == whole
    assert file.read_bytes() == b"".join(lines)
    todo = 1 + len(whole) - kept
    assert len(calls) == (1 + todo if todo else 0)
    assert steps == [(number, len(whole)) for number in range(kept - 1, len(whole) + 1)]


def test_another_key_begins_anew(graph: Path, tmp_path: Path) -> None:
    source, file = source_of(graph), tmp_path / "losses"
    whole = measure(source, features, Keep(file, "key"))
    lines = file.read_text().splitlines()
    file.write_text(
        "\n".join(['{"key": "other"}', *(line.replace("loss", "gain") for line in lines[1:])]) + "\n"
    )
    assert measure(source, features, Keep(file, "key")) == whole
    assert file.read_text().splitlines() == lines


def test_features_that_are_not_finite_once_quantised(graph: Path, tmp_path: Path) -> None:
    calls = []

    def run(session: Session) -> Sequence[Array]:
        calls.append(session)
        found = features(session)
        return found if len(calls) != 3 else [found[0], found[1], found[2] * np.float32(np.nan)]

    losses = measure(source_of(graph), run, Keep(tmp_path / "losses", "key"))
    assert (losses[1].loss, losses[1].max_abs_diff) == (1.0, None)
    assert losses[0].max_abs_diff is not None
    assert measure(source_of(graph), run, Keep(tmp_path / "losses", "key")) == losses
    json.loads((tmp_path / "losses").read_text().splitlines()[2], parse_constant=pytest.fail)


@pytest.mark.parametrize("value", [[], [np.full((1, 2, 3), np.inf, np.float32)]])
def test_a_float_graph_without_finite_features(value: list[Array], graph: Path, tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"the float32 graph gives no finite features .*runtime\.check"):
        measure(source_of(graph), lambda _: value, Keep(tmp_path / "losses", "key"))


def test_samples_that_change(graph: Path, tmp_path: Path) -> None:
    calls = []

    def run(session: Session) -> Sequence[Array]:
        calls.append(session)
        return features(session)[: len(calls)]

    with pytest.raises(RunError, match="gives features of other shapes than float32: run the same samples"):
        measure(source_of(graph), run, Keep(tmp_path / "losses", "key"))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            '{"group": {"name": "patches"}}',
            r"losses of groups that were kept are damaged .*: run with --fresh",
        ),
        ('{"group": 3, "loss": 1, "max_abs_diff": 1}', "are damaged"),
        ("nonsense", r"line 2 of .*losses is damaged: remove the file, or run with --fresh"),
    ],
)
def test_damaged_losses(line: str, message: str, graph: Path, tmp_path: Path) -> None:
    (tmp_path / "losses").write_text(f'{{"key": "key"}}\n{line}\n')
    with pytest.raises(StoreError, match=message):
        measure(source_of(graph), features, Keep(tmp_path / "losses", "key"))


def test_a_graph_that_cannot_be_opened(graph: Path, tmp_path: Path) -> None:
    source = source_of(graph)
    (tmp_path / "encoder.onnx_data").write_bytes(b"short")
    with pytest.raises(BackendError, match=r"onnxruntime cannot load .*encoder\.onnx"):
        measure(source, features, Keep(tmp_path / "losses", "key"))


def losses_of(count: int, seed: int = 1) -> list[GroupLoss]:
    """Groups with losses in a random order."""
    order = np.random.default_rng(seed).permutation(count)
    return [GroupLoss(Group(f"g{each}", (f"w{each}",)), float(each) / count, 0.0) for each in order]


@pytest.mark.parametrize("count", [1, 2, 3, 7, 48, 100])
def test_the_fewest_groups_in_few_measurements(count: int) -> None:
    losses = losses_of(count)
    for needed in range(count + 1):
        asked: list[frozenset[str]] = []

        def evaluate(skip: frozenset[str], asked: list[frozenset[str]] = asked) -> float:
            asked.append(skip)
            return float(len(skip))

        names = keep_float(losses, evaluate, float(needed))
        assert names == tuple(f"g{each}" for each in range(count - 1, count - 1 - needed, -1))
        assert len(set(asked)) == len(asked) <= 2 + 2 * math.ceil(math.log2(needed + 1))


@pytest.mark.parametrize("reached", [0.5, float("nan")])
def test_even_float_is_not_good_enough(reached: float) -> None:
    message = rf"with all 5 groups in float32 the fidelity is {reached:.4f}, below 0.9: .* --min-cosine"
    with pytest.raises(RunError, match=message):
        keep_float(losses_of(5), lambda _: reached, 0.9)


def test_a_nan_on_the_way_is_not_good_enough() -> None:
    def evaluate(skip: frozenset[str]) -> float:
        return 1.0 if len(skip) >= 3 else float("nan")

    assert len(keep_float(losses_of(8), evaluate, 0.9)) == 3


def test_equal_losses_keep_the_order_of_the_graph() -> None:
    losses = [GroupLoss(Group(name, (name,)), 0.1, 0.0) for name in ("b", "a", "c")]
    assert keep_float(losses, lambda skip: float(len(skip)), 2.0) == ("b", "a")


def test_weights_of_named_groups() -> None:
    groups = groups_of(encoder(), INT8)
    assert weights_of(groups, ["projector", "layers.1.mlp"]) == {"w1", "w2", "n1wu", "n1wd"}
    assert weights_of(groups, []) == frozenset()
    with pytest.raises(
        OptionError, match=r"keep-float names 'layers\.9\.mlp', .* some of patches, layers\.0"
    ):
        weights_of(groups, ["layers.9.mlp"])
