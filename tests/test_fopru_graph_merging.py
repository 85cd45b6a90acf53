"""Merged patches, tokens in another order, masks: against PyTorch, numpy, and the unpruned graph."""

# ruff: noqa: E501  (one case per line reads better than a broken one)
from __future__ import annotations

import dataclasses
import functools
import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest

from fopru_graph import (
    LocateError,
    OptionError,
    PruneOptions,
    PruneReport,
    UnsupportedGraphError,
    load_graph,
    prune,
    prune_file,
)
from fopru_graph.__main__ import main
from fopru_graph.builder import GraphBuilder, Made
from fopru_graph.inspection import inspect_file
from fopru_graph.lint import lint_file
from fopru_graph.options import TOKEN_MASK
from fopru_graph.selectors import SELECTORS, SelectContext
from tests.selector_references import REFERENCES, Image
from tests.toy_encoders import text_encoder
from tests.toy_mergers import Toy, export, feeds, reference

# ONNX Runtime multiplies fewer rows than before by another routine: same sums, other order. A few roundings
# (6e-8) of features that are below 8 in size.
FEWER_ROWS = 4e-6
Arrays = dict[str, np.ndarray]

SHUFFLED = {
    "2, CLS": Toy("row_major", 2, (2, 3), cls=True),
    "2, eager": Toy("row_major", 2, (3, 2), attention="eager", dynamic=False),
    "3, opset 23": Toy("row_major", 3, (1, 3), attention="eager", opset=23),
    "4, CLS, opset 23": Toy("row_major", 4, (2, 3), cls=True, opset=23),
}
PACKED = {
    "1": Toy("packed", 1, (3, 4), blocks="wf"),
    "2": Toy("packed", 2, (3, 4), blocks="wwf"),
    "2, eager, one size": Toy("packed", 2, (3, 2), blocks="wf", attention="eager", dynamic=False),
    "3, eager, opset 23": Toy("packed", 3, (2, 3), blocks="fwf", attention="eager", opset=23),
    "4, opset 23": Toy("packed", 4, (2, 3), blocks="wfw", opset=23),
}
ALL = {**SHUFFLED, **{f"packed {name}": toy for name, toy in PACKED.items()}}


def stated(toy: Toy, **more: Any) -> PruneOptions:
    """The options that fit a toy."""
    choices: dict[str, Any] = {"merge": toy.merge, "merge_order": toy.order}
    if toy.order == "packed":
        choices |= {"token_order": "reverse", "layer": toy.blocks.rindex("f"), "special_tokens": 0}
    else:
        choices |= {"grid": toy.grid}
    return PruneOptions(**{**choices, **more})


class Session:
    """A graph in ONNX Runtime, one thread, its optimiser off."""

    def __init__(self, model: ir.Model) -> None:
        chosen = ort.SessionOptions()
        chosen.intra_op_num_threads = 1
        chosen.log_severity_level = 3
        chosen.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        proto = ir.to_proto(model).SerializeToString()
        self._session = ort.InferenceSession(proto, chosen, providers=["CPUExecutionProvider"])
        self.inputs = {value.name: value.shape for value in self._session.get_inputs()}

    def __call__(self, given: Arrays, keep: int = 1, **more: np.ndarray) -> Arrays:
        every = {"rows": ROWS, **given, "num_keep": np.array([keep], np.int64), **more}
        names = [output.name for output in self._session.get_outputs()]
        wanted = {name: every[name] for name in self.inputs}
        return dict(zip(names, self._session.run(None, wanted), strict=True))


@functools.cache
def whole(toy: Toy) -> Session:
    return Session(load_graph(export(toy)))


@functools.cache
def pruned(toy: Toy, options: PruneOptions) -> tuple[Session, PruneReport]:
    model = load_graph(export(toy))
    report = prune(model, options)
    return Session(model), report


def best(scores: np.ndarray, keep: int) -> np.ndarray:
    """The highest scores, ties to the lower position, ascending."""
    return np.sort(np.argsort(-scores, axis=1, kind="stable")[:, :keep], axis=1)


def check(toy: Toy, options: PruneOptions, grid: tuple[int, int] | None = None) -> PruneReport:
    """Scores, kept indices for several counts, and features, of noise."""
    session, report = pruned(toy, options)
    grid = grid or toy.grid
    given = feeds(toy, grid)
    aggregation = report.aggregation or "col_mean"
    expected, features = reference(toy, given, grid, aggregation=aggregation, layer=report.layer)
    before, total = whole(toy)(given)["image_features"], grid[0] * grid[1]
    # the two libraries agree before anything is pruned: sums of up to 64 terms below 8 in size
    assert np.abs(before - features).max() <= 2e-5
    for keep in {1, 2, total // 2, total}:
        found = session(given, keep)
        # FoPru specification, test 9: within 1e-3 of 1/Q, the mean score
        assert np.abs(found["token_scores"] - expected).max() <= 1e-3 / (total * toy.merge**2 + toy.cls)
        assert found["token_scores"].shape == expected.shape
        assert found["kept_indices"].tolist() == best(expected, keep).tolist()
        rows = np.take_along_axis(before, best(expected, keep)[..., None], axis=1)
        limit = FEWER_ROWS if toy.order == "row_major" else 0.0
        assert np.abs(found["image_features"] - rows).max() <= limit
    return report


# ---- scores, indices, features


@pytest.mark.parametrize("name", ALL)
def test_scores_indices_and_features(name: str) -> None:
    toy = ALL[name]
    report = check(toy, stated(toy))
    assert (report.merge, report.merge_order) == (toy.merge, toy.order)
    assert (report.special_tokens, report.prefix_tokens) == (int(toy.cls), 0)
    assert report.layer == (toy.blocks.rindex("f") if toy.order == "packed" else len(toy.blocks) - 1)
    assert report.gather == "late"
    if toy.merge > 1:
        assert report.gather_reason == f"patches are merged {toy.merge} x {toy.merge} before the features"


@pytest.mark.parametrize("aggregation", ["col_mean", "col_mean_patch", "cls"])
@pytest.mark.parametrize("name", ["2, CLS", "4, CLS, opset 23"])
def test_every_aggregation(name: str, aggregation: str) -> None:
    assert check(SHUFFLED[name], stated(SHUFFLED[name], aggregation=aggregation)).aggregation == aggregation


def test_the_sum_over_layers_is_merged_too() -> None:
    toy = SHUFFLED["2, CLS"]
    session, report = pruned(toy, stated(toy, strategy="vtc_cls"))
    given = feeds(toy)
    layers = [reference(toy, given, aggregation="cls", layer=at)[0] for at in range(2)]
    assert report.aggregation == "cls_sum"
    # FoPru specification, test 9: within 1e-3 of the mean score, for each layer
    assert np.abs(session(given)["token_scores"] - sum(layers)).max() <= 2e-3 / 25


@pytest.mark.parametrize("grid", [(1, 2), (5, 3), (2, 7), (6, 6)])
@pytest.mark.parametrize("name", ["1", "2", "3, eager, opset 23", "4, opset 23"])
def test_any_size_of_image(name: str, grid: tuple[int, int]) -> None:
    check(PACKED[name], stated(PACKED[name]), grid)


@pytest.mark.parametrize(
    ("name", "memory"), [("2, CLS", 2000), ("2, eager", 4000), ("4, CLS, opset 23", 20000)]
)
def test_scores_in_chunks_of_queries(name: str, memory: int) -> None:
    report = check(SHUFFLED[name], stated(SHUFFLED[name], score_memory=memory))
    assert report.score_path == "chunked"


@pytest.mark.parametrize("name", ["2", "4, opset 23"])
def test_scores_in_chunks_for_any_size(name: str) -> None:
    options = stated(PACKED[name], score_memory=20000)
    for grid in ((1, 2), (3, 4), (5, 3)):
        assert check(PACKED[name], options, grid).score_path == "chunked"


# ---- one hot patch


def token_of(toy: Toy, patch: int, grid: tuple[int, int]) -> int:
    """Where the patch at a place of the input ends up."""
    if toy.order == "packed":
        return patch // toy.merge**2
    y, x = divmod(patch, toy.merge * grid[1])
    return y // toy.merge * grid[1] + x // toy.merge


@functools.cache
def survivors(toy: Toy, options: PruneOptions, grid: tuple[int, int]) -> list[int]:
    """For each patch, the one token that is kept if that patch is hot."""
    session, _ = pruned(toy, options)
    count = grid[0] * grid[1] * toy.merge**2
    kept = [session(feeds(toy, grid, images=1, hot=at))["kept_indices"] for at in range(count)]
    return [int(one[0, 0]) for one in kept]


@pytest.mark.parametrize("name", SHUFFLED)
def test_the_hot_patch_of_any_place_survives(name: str) -> None:
    toy = SHUFFLED[name]
    if not toy.dynamic:
        toy = dataclasses.replace(toy, dynamic=True, grid=(2, 3), cls=True, attention="sdpa")  # one image
    expected = [token_of(toy, at, toy.grid) for at in range(toy.patches)]
    assert survivors(toy, stated(toy), toy.grid) == expected


@pytest.mark.parametrize("name", ["1", "2", "3, eager, opset 23", "4, opset 23"])
def test_the_hot_patch_of_any_place_survives_windows(name: str) -> None:
    toy, grid = PACKED[name], (3, 4)
    expected = [token_of(toy, at, grid) for at in range(12 * toy.merge**2)]
    assert survivors(toy, stated(toy), grid) == expected


def test_a_raster_map_comes_back_from_window_order() -> None:
    toy, grid = PACKED["2"], (3, 5)
    session, _ = pruned(toy, stated(toy))
    given = feeds(toy, grid, hot=0)
    given["patches"] = np.zeros_like(given["patches"])
    given["patches"][:, 0] = np.repeat(np.arange(15), 4) + 1  # heat of the tokens, in reading order
    scores = session(given)["token_scores"][0]
    assert (scores[1:] > scores[:-1]).all()


@pytest.mark.parametrize(
    ("name", "wrong", "grid"),
    [
        ("2, CLS", {"merge_order": "packed"}, (2, 3)),
        ("2, CLS", {"grid": (3, 2)}, (2, 3)),
        ("packed 2", {"token_order": None}, (3, 4)),
        ("packed 2", {"token_order": "to_windows"}, (2, 6)),
        ("packed 2, eager, one size", {"merge_order": "row_major", "grid": (3, 2)}, (3, 2)),
    ],
)
def test_a_near_miss_keeps_the_wrong_token(name: str, wrong: dict[str, Any], grid: tuple[int, int]) -> None:
    toy = ALL[name]
    expected = [token_of(toy, at, grid) for at in range(grid[0] * grid[1] * toy.merge**2)]
    found = survivors(toy, stated(toy, **wrong), grid)
    assert found != expected
    assert survivors(toy, stated(toy), grid) == expected


# ---- layers that look at windows


LAYERS = [("2", 0), ("2, eager, one size", 0), ("4, opset 23", 0), ("4, opset 23", None)]


@pytest.mark.parametrize(("name", "layer"), LAYERS)
def test_a_layer_of_windows_is_refused(name: str, layer: int | None) -> None:
    with pytest.raises(LocateError, match=r"heads, \d+, keys\], but 'image_features' is \[1, .*\]: it looks at windows"):  # fmt: skip
        prune(load_graph(export(PACKED[name])), stated(PACKED[name], layer=layer))


def test_one_window_of_fixed_size_is_refused_where_the_image_varies() -> None:
    # one window, by its leading size; only the fixed number of its rows tells
    with pytest.raises(
        LocateError, match=r"is \[1, heads, 4, keys\], but .*: it looks at windows of the image, name"
    ):
        prune(merged_text("4", "1", target=", int64[3] merge"), PruneOptions(merge=2, merge_order="packed"))


def test_windows_with_as_many_rows_as_the_features_are_refused() -> None:
    model = merged_text("4", '"4*B"', to=(-1, 4, 32))
    with pytest.raises(
        LocateError, match=r"is \[4\*B, heads, 4, keys\], but 'image_features' is \[B, 4, width\]: it"
    ):
        prune(model, PruneOptions(token_order="order", special_tokens=0))


@pytest.mark.parametrize("name", ["2", "3, eager, opset 23", "4, opset 23"])
def test_layers_are_counted_over_all_blocks(name: str) -> None:
    toy = PACKED[name]
    model = load_graph(export(toy))
    for node in model.graph:  # without torch's scopes, and without names that say something
        node.metadata_props.clear()
        node.name = "node"
    report = prune(model, stated(toy))
    assert (report.locator, report.layer) == ("structure", toy.blocks.rindex("f"))


# ---- other strategies


@pytest.mark.parametrize("grid", [(2, 3), (3, 4), (5, 2)])
def test_rows_of_a_grid_that_varies(grid: tuple[int, int]) -> None:
    toy = PACKED["2"]
    session, report = pruned(toy, stated(toy, strategy="row", grid="input"))
    given = feeds(toy, grid)
    scores, _ = reference(toy, given, grid, layer=report.layer)
    rows = best(scores.reshape(grid).mean(axis=1)[None], 2)[0]
    expected = [y * grid[1] + x for y in rows for x in range(grid[1])]
    found = session(given, 2 * grid[1], grid=np.array(grid, np.int64))
    assert found["kept_indices"].tolist() == [expected]


def test_rows_of_a_fixed_grid() -> None:
    toy = SHUFFLED["2, CLS"]
    session, report = pruned(toy, stated(toy, strategy="row"))
    scores, _ = reference(toy, feeds(toy), layer=report.layer)
    rows = best(scores.reshape(2, *toy.grid).mean(axis=2), 1)
    expected = rows * 3 + np.arange(3)
    assert session(feeds(toy), 3)["kept_indices"].tolist() == expected.tolist()


@pytest.mark.parametrize("name", ["2, CLS", "packed 2"])
def test_a_selector_without_scores_counts_merged_tokens(name: str) -> None:
    toy = ALL[name]
    session, report = pruned(toy, stated(toy, strategy="uniform", grid=None))
    found = session(feeds(toy), 2)
    total = toy.tokens
    assert found["kept_indices"].tolist() == [[total // 4, 3 * total // 4]] * len(found["kept_indices"])
    assert (report.score_path, report.gather) == ("none", "late")


def test_scores_only() -> None:
    toy = PACKED["2"]
    session, report = pruned(toy, stated(toy, scores_only=True))
    found = session(feeds(toy))
    expected, _ = reference(toy, feeds(toy), layer=report.layer)
    # FoPru specification, test 9: within 1e-3 of 1/Q
    assert np.abs(found["token_scores"] - expected).max() <= 1e-3 / toy.patches
    assert found["image_features"].shape[1] == toy.tokens


def test_an_order_with_an_axis_of_one() -> None:
    toy = PACKED["2"]
    model = load_graph(export(toy))
    order = next(value for value in model.graph.inputs if value.name == "reverse")
    users = [(use.node, use.idx) for use in order.uses()]
    builder = GraphBuilder(model.graph, "test")
    flat = builder.op(
        "Squeeze",
        [order, builder.ints("axis", [0])],
        Made("flat", ir.DataType.INT64, tuple(order.shape or ())),
    )
    for node, index in users:
        node.replace_input_with(index, flat)
    order.shape = ir.Shape([1, *(order.shape or ())])
    model.graph.sort()
    prune(model, stated(toy))
    given = feeds(toy)
    expected, _ = reference(toy, given, layer=2)
    found = Session(model)({**given, "reverse": given["reverse"][None]}, 3)
    assert found["kept_indices"].tolist() == best(expected, 3).tolist()


# ---- masks


def rectangles(grid: tuple[int, int], sizes: list[tuple[int, int]]) -> np.ndarray:
    """bool [B, N]: True in the upper left corner."""
    mask = np.zeros((len(sizes), *grid), bool)
    for image, (height, width) in enumerate(sizes):
        mask[image, :height, :width] = True
    return mask.reshape(len(sizes), -1)


@functools.cache
def by_hand(strategy: str, tokens: int | str, grid: tuple[int, int] | None) -> Session:
    """A graph of nothing but a selector: scores [B, N] and token_mask [B, N] → kept."""
    kinds = {
        "scores": (["images", tokens], ir.DataType.FLOAT),
        "num_keep": ([1], ir.DataType.INT64),
        TOKEN_MASK: (["images", tokens], ir.DataType.BOOL),
        "rows": (["images", tokens, 5], ir.DataType.FLOAT),
        "grid": ([2], ir.DataType.INT64),
    }
    values = {
        name: ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(dtype))
        for name, (shape, dtype) in kinds.items()
        if name != "grid" or grid is None
    }
    graph = ir.Graph(list(values.values()), [], nodes=[], opset_imports={"": 20}, name="selector")
    builder, scores = GraphBuilder(graph, "select"), values["scores"]
    around: ir.Value | tuple[int, int] = grid or values["grid"]
    context = SelectContext(
        builder, scores, values["num_keep"], "images", tokens, scores, 1, 0, around, values["rows"], 0
    )
    kept = SELECTORS[strategy].select(dataclasses.replace(context, mask=values[TOKEN_MASK]))
    kept.name = "kept"
    graph.outputs.append(kept)
    graph.sort()
    return Session(ir.Model(graph, ir_version=10))


ROWS = np.random.default_rng(2).standard_normal((1, 24, 5)).astype(np.float32)
SIZES = [(4, 6), (1, 6), (4, 1), (3, 5), (2, 2), (1, 1)]


@pytest.mark.parametrize("strategy", ["rank", "cls", "vtc_cls", "visionzip"])
def test_hidden_tokens_are_not_kept(strategy: str) -> None:
    mask = rectangles((4, 6), SIZES)
    scores = np.random.default_rng(0).random(mask.shape, np.float32)
    scores[:, ::5] = 0  # a token that nobody looks at still comes before padding
    scores[~mask] = 2
    session = by_hand(strategy, 24, (4, 6))
    for image, shown in enumerate(mask):
        places = np.flatnonzero(shown)
        for keep in range(1, len(places) + 1):
            order = sorted(places, key=lambda j: (-scores[image, j], j))
            found = session({"scores": scores[[image]], TOKEN_MASK: mask[[image]]}, keep)["kept"]
            assert found.tolist() == [sorted(order[:keep])]


def test_coverage_is_about_what_is_seen() -> None:
    mask = rectangles((4, 6), SIZES)
    scores = np.random.default_rng(0).random(mask.shape, np.float32)
    for image, shown in enumerate(mask):
        places = np.flatnonzero(shown)
        alone = Image(scores[image, places], ROWS[0, places], (1, len(places)))
        given = {"scores": np.where(shown, scores[image], 9)[None].astype(np.float32)}
        for keep in range(1, len(places) + 1):
            expected = places[REFERENCES["scope"](alone, keep)].tolist()
            found = by_hand("scope", 24, (4, 6))(given, keep, token_mask=mask[[image]])
            assert found["kept"].tolist() == [expected]


@pytest.mark.parametrize("fixed", [True, False])
def test_rows_are_means_over_what_is_seen(fixed: bool) -> None:
    grid = (4, 6)
    mask = rectangles(grid, SIZES)
    mask[0, 7:11] = False  # no rectangle: two of six tokens of the second row
    scores = np.random.default_rng(1).random(mask.shape, np.float32)
    scores[~mask] = 5
    session = by_hand("row", 24 if fixed else "tokens", grid if fixed else None)
    for image, shown in enumerate(mask.reshape(-1, *grid)):
        table = scores[image].reshape(grid).astype(np.float64)
        means = [row[seen].mean() if seen.any() else -1 for row, seen in zip(table, shown, strict=True)]
        for count in range(1, int(shown.any(axis=1).sum()) + 1):
            rows = sorted(sorted(range(4), key=lambda y: (-means[y], y))[:count])
            given = {"scores": scores[[image]], TOKEN_MASK: mask[[image]], "grid": np.array(grid)}
            found = session(given, count * 6)["kept"]
            assert found.tolist() == [[y * 6 + x for y in rows for x in range(6)]]


@pytest.mark.parametrize("name", ["2, CLS", "packed 2"])
def test_a_mask_in_an_encoder(name: str) -> None:
    toy = ALL[name]
    session, report = pruned(toy, stated(toy, mask=True))
    given = feeds(toy)
    scores, _ = reference(toy, given, layer=report.layer)
    mask = np.tile(rectangles(toy.grid, [(toy.grid[0], toy.grid[1] - 1)]), (len(scores), 1))
    valid = int(mask[0].sum())
    for keep in (1, valid // 2, valid):
        found = session(given, keep, token_mask=mask)
        assert found["kept_indices"].tolist() == best(np.where(mask, scores, -1), keep).tolist()
        # raw: FoPru specification, test 9: within 1e-3 of 1/Q
        assert np.abs(found["token_scores"] - scores).max() <= 1e-3 / (toy.patches + toy.cls)
    assert report.mask
    assert session.inputs[TOKEN_MASK] == (["images", 6] if toy.order == "row_major" else [1, "tokens"])


# ---- refusals


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"merge": 0}, "merge is 0: give s >= 1, where s x s patches become one token"),
        ({"merge_order": "zigzag"}, "merge_order is 'zigzag', but it is one of row_major, packed"),
        ({"merge": 2, "merge_order": "packed", "prefix_tokens": 1}, "merge is 2 and prefix_tokens is 1, but then every row of the features is a token"),
        ({"token_order": "o", "dropped_rows": 0}, "token_order is 'o' and dropped_rows is 0, but then every row of the features is a token"),
        ({"merge": 2}, r"merge is 2 in order 'row_major' and grid is None, .* give grid=\(rows, columns\)"),
        ({"merge": 2, "grid": "input"}, "merge is 2 in order 'row_major' and grid is 'input', .* or merge_order='packed'"),
        ({"mask": True, "scores_only": True}, "mask and scores_only are True, but nothing is selected then"),
        *(
            ({"mask": True, "strategy": name, "grid": (2, 3)}, f"mask is True, but strategy '{name}' cannot leave tokens out: use one of rank, row, cls")
            for name in SELECTORS if not SELECTORS[name].takes_mask
        ),
    ],
)  # fmt: skip
def test_options_that_do_not_go_together(choices: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        PruneOptions(**choices)


@pytest.mark.parametrize(
    ("name", "wrong", "message"),
    [
        ("2, CLS", {"merge": 3}, "has 25 rows, 1 of them special, but 3 x 3 patches for each of the 6 rows of 'image_features' are 54 patches: state merge"),
        ("2, CLS", {"special_tokens": 0}, "has 25 rows, 0 of them special, but 2 x 2 patches for each of the 6 rows of 'image_features' are 24"),
        ("packed 2, eager, one size", {"merge": 1}, "has 24 rows, 0 of them special, but the 6 rows of 'image_features' are 6 patches"),
        ("2, CLS", {"grid": (3, 3)}, "merge is 2 and grid is 3x3 = 9 tokens, but 'image_features' has 6 rows: give the grid of the merged"),
        ("packed 2", {"merge_order": "row_major", "grid": (3, 4)}, "in order 'row_major' and grid is 3x4, but the number of rows of 'image_features' varies: export"),
        ("packed 2", {"token_order": "order"}, "token_order is 'order', but the inputs are patches, cos, sin, .*: name one of them"),
        ("packed 2", {"token_order": "cos"}, r"token_order is 'cos', FLOAT with dims .*, but an order is INT64 \[.*\] or \[1, .*\]"),
        ("packed 2", {"token_order": "windows"}, "token_order is 'windows', INT64 with dims .* name the input that puts tokens into order"),
        ("packed 2, eager, one size", {"token_order": "back"}, r"token_order is 'back', INT64 with dims \(24,\), but an order is INT64 \[6\]"),
        ("2, CLS", {"merge": 1, "token_order": None}, r"cannot tell which of the 25 rows .* it looks merged 2 x 2, state merge=2 and merge_order"),
    ],
)  # fmt: skip
def test_what_does_not_fit_the_graph(name: str, wrong: dict[str, Any], message: str) -> None:
    error = LocateError if message.startswith(("has", "cannot")) else OptionError
    with pytest.raises(error, match=message):
        prune(load_graph(export(ALL[name])), stated(ALL[name], **wrong))


def merged_text(
    rows: str = "P", images: str = "B", target: str = "", to: tuple[int, ...] = (0, -1, 32)
) -> ir.Model:
    """One layer by hand: patches in an order that the host gives, four merged into one."""
    declared = "" if target else ", int64[3] merge"
    text = f"""<ir_version: 10, opset_import: ["" : 20]>
    g (float[{images},{rows},8] x, int64[{rows}] order{target}) => (float[C,N,32] image_features)
    <int64[4] heads = {{0,0,2,4}}, int64[3] join = {{0,0,8}}{declared}> {{
        u = Gather<axis=1>(x, order)
        h = Reshape(u, heads) q = Transpose<perm=[0,2,1,3]>(h) k = Transpose<perm=[0,2,3,1]>(h)
        s = MatMul(q, k) p = Softmax<axis=-1>(s) a = MatMul(p, q)
        a1 = Transpose<perm=[0,2,1,3]>(a) y = Reshape(a1, join)
        image_features = Reshape(y, merge)
    }}"""
    fixed = [] if target else [ir.tensor(np.array(to), name="merge")]
    return ir.from_onnx_text(text, initializers=fixed)


def test_special_rows_that_nobody_can_tell() -> None:
    options = PruneOptions(merge=2, merge_order="packed")
    with pytest.raises(LocateError, match=r"cannot tell how many of the first of P rows of attention .* state special_tokens, 0 if there are none"):  # fmt: skip
        prune(merged_text(), options)
    assert prune(merged_text(), dataclasses.replace(options, special_tokens=0)).special_tokens == 0
    with pytest.raises(
        LocateError, match="has 4 rows, 0 of them special, but 3 x 3 patches for each of the 1"
    ):
        prune(merged_text("4", "1"), PruneOptions(merge=3, merge_order="packed"))


def test_rows_that_nothing_merged_are_refused() -> None:
    with pytest.raises(LocateError, match=r"merge is 2, but 'image_features' is \[images, 6, width\], whose rows are those of attention 'Softmax_12' in the same order"):  # fmt: skip
        prune(text_encoder(), PruneOptions(merge=2, merge_order="packed"))


def test_a_graph_with_a_mask_is_pruned_already() -> None:
    model = text_encoder()
    model.graph.inputs.append(
        ir.Value(name=TOKEN_MASK, shape=ir.Shape([1, 6]), type=ir.TensorType(ir.DataType.BOOL))
    )
    with pytest.raises(UnsupportedGraphError, match="the graph already has 'token_mask': it is pruned"):
        prune(model)


# ---- around it


@pytest.mark.parametrize("name", ["2, CLS", "2, eager", "packed 2", "packed 2, eager, one size"])
def test_lint_finds_no_more_than_before(name: str) -> None:
    source = export(ALL[name])
    target = source.with_name(f"pruned_{source.name}")
    prune_file(source, target, stated(ALL[name], mask=True, score_memory=None))
    before, after = (
        {(each.rule, each.op_type) for each in lint_file(path, "jetpack6").of("error")}
        for path in (source, target)
    )
    assert after <= before


def test_inspect_and_prune_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "e.onnx"
    source.write_bytes(export(SHUFFLED["2, CLS"]).read_bytes())
    assert inspect_file(source).merge == 2
    assert main(["inspect", str(source)]) == 0
    assert "looks merged 2 x 2: state --merge 2 and --merge-order" in said(capsys)
    command = [
        "prune",
        str(source),
        "-o",
        str(tmp_path / "p.onnx"),
        "--merge",
        "2",
        "--grid",
        "2x3",
        "--mask",
    ]
    assert main(command) == 0
    out = said(capsys)
    assert "merged 2 x 2 patches make one token, in order row_major: scores are their mean" in out
    assert "mask only tokens that input 'token_mask' shows are kept, up to their number" in out
    assert "feed token_mask bool [images, 6]" in out
    source.write_bytes(export(PACKED["2"]).read_bytes())
    command = [
        "prune",
        str(source),
        "-o",
        str(tmp_path / "q.onnx"),
        "--merge",
        "2",
        "--merge-order",
        "packed",
    ]
    assert main([*command, "--token-order", "reverse"]) == 0
    assert "token order as input 'reverse' says" in said(capsys)


def said(capsys: pytest.CaptureFixture[str]) -> str:
    return re.sub(r"\s+", " ", capsys.readouterr().out)


@pytest.mark.parametrize("name", ["2", "4, opset 23"])
def test_inspect_does_not_guess_where_sizes_vary(name: str) -> None:
    assert inspect_file(export(PACKED[name])).merge is None
