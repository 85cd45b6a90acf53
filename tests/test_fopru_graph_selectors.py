"""Every selector of the registry: what it promises, against numpy, on encoders of fixed and of any size."""

from __future__ import annotations

import functools
import re
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest

import runtime.selectors
from fopru_graph import OptionError, PruneOptions, PruneReport, RewriteError, load_graph, prune
from fopru_graph.builder import GraphBuilder
from fopru_graph.passes import LocatePass, PreparePass
from fopru_graph.selectors import _ALL as ALL_SELECTORS
from fopru_graph.selectors import SELECTORS, SelectContext
from fopru_graph.selectors.random import MODULUS
from tests.exporter_zoo import PATCH, Case, export, pixels
from tests.selector_references import PUBLISHED, REFERENCES, Image, attention_scores, cosines, greedy
from tests.toy_encoders import text_encoder

DOCS = Path(__file__).parents[1] / "docs" / "selectors.md"
CASES = [
    Case("clip"),
    Case("clip", exporter="dynamo23"),
    Case("siglip", attention="eager"),
    Case("siglip", exporter="dynamo23", sizes="dynamic"),
    Case("clip", sizes="dynamic"),
    Case("clip", exporter="dynamo23", sizes="dynamic"),
]
FORBIDDEN = {"NonZero", "Compress", "Unique", "RandomUniform", "RandomNormal", "Multinomial", "Bernoulli"}
BASELINES = ("none", "random", "uniform", "uniform_grid")
CLS_ONLY = ("cls", "vtc_cls")

# ONNX Runtime multiplies few rows by another routine than many: same sums, other order. Features are of size
# 1 here, so that some units of float32 rounding (6e-8) in the last layer stay below this.
FEW_ROWS = 5e-6


def pairs(cases: list[Case]) -> list[object]:
    """Each case with each selector that means something for it."""
    return [
        pytest.param(case, name, id=f"{case} {name}")
        for case in cases
        for name in SELECTORS
        if case.special or name not in CLS_ONLY
    ]


def grid_of(case: Case) -> tuple[int, int]:
    return (4, 5) if case.sizes == "dynamic" else (4, 4)


@functools.cache
def session(model: bytes) -> ort.InferenceSession:
    return ort.InferenceSession(model, providers=["CPUExecutionProvider"])


@functools.cache
def pruned(case: Case, name: str, seed: int = 0) -> tuple[bytes, PruneReport]:
    grid = ("input" if case.sizes == "dynamic" else grid_of(case)) if SELECTORS[name].needs_grid else None
    model = load_graph(export(case))
    report = prune(model, PruneOptions(strategy=name, grid=grid, seed=seed))  # type: ignore[arg-type]
    return ir.to_proto(model).SerializeToString(), report


@functools.cache
def images_of(case: Case, count: int) -> np.ndarray:
    rows, columns = grid_of(case)
    return pixels(case, count, (rows * PATCH, columns * PATCH), seed=count)


@functools.cache
def whole(case: Case, count: int) -> np.ndarray:
    """Features [B, p + N, D] of the unpruned graph."""
    return np.asarray(
        session(export(case).read_bytes()).run(None, {"pixel_values": images_of(case, count)})[0]
    )


@functools.cache
def truth(case: Case, name: str, count: int) -> list[Image]:
    features = whole(case, count)[:, case.prefix :]
    if name in PUBLISHED:
        scores = attention_scores(case, images_of(case, count), PUBLISHED[name])
    else:
        scores = np.zeros(features.shape[:2], np.float32)
    return [Image(*both, grid_of(case)) for both in zip(scores, features, strict=True)]


def run(case: Case, name: str, count: int, keep: int, seed: int = 0) -> dict[str, np.ndarray]:
    graph = session(pruned(case, name, seed)[0])
    feeds = {"pixel_values": images_of(case, count), "num_keep": np.array([keep])}
    if "grid" in {each.name for each in graph.get_inputs()}:
        feeds["grid"] = np.array(grid_of(case))
    names = [output.name for output in graph.get_outputs()]
    return dict(zip(names, graph.run(None, feeds), strict=True))


def counts(case: Case, name: str) -> range:
    """Every K from 1 to N that the selector takes."""
    rows, columns = grid_of(case)
    step = columns if name == "row" else 1
    return range(step, rows * columns + 1, step)


@pytest.mark.parametrize(("case", "name"), pairs(CASES))
@pytest.mark.parametrize("count", [1, 2, 3])
def test_every_count_is_that_of_the_reference(case: Case, name: str, count: int) -> None:
    features = whole(case, count)
    total = features.shape[1] - case.prefix
    for keep in counts(case, name):
        out = run(case, name, count, keep)
        kept = out["kept_indices"]
        assert (kept.dtype, kept.shape) == (np.int64, (count, total if name == "none" else keep))
        assert (np.diff(kept, axis=1) > 0).all(), "sorted and unique"
        assert kept.min() >= 0
        assert kept.max() < total
        assert kept.tolist() == [REFERENCES[name](image, keep) for image in truth(case, name, count)]
        rows = np.concatenate([np.tile(np.arange(case.prefix), (count, 1)), kept + case.prefix], axis=1)
        expected = np.take_along_axis(features, rows[:, :, None], axis=1)
        assert out["last_hidden_state"].shape == expected.shape
        assert np.abs(out["last_hidden_state"] - expected).max() <= FEW_ROWS


@pytest.mark.parametrize(("case", "name"), pairs(CASES))
def test_keeping_all_changes_no_bit(case: Case, name: str) -> None:
    features = whole(case, 2)
    out = run(case, name, 2, features.shape[1] - case.prefix)
    assert out["last_hidden_state"].tobytes() == features.tobytes()


@pytest.mark.parametrize(("case", "name"), pairs(CASES))
def test_the_graph_is_valid_and_says_what_it_does(case: Case, name: str) -> None:
    proto, report = pruned(case, name)
    onnx.checker.check_model(proto, full_check=True)
    selector = SELECTORS[name]
    assert report.strategy == name
    assert report.gather == ("late" if selector.needs_rows else "early")
    assert (report.score_path == "none") == (not selector.needs_scores)
    nodes = list(ir.traversal.RecursiveGraphIterator(ir.from_proto(onnx.load_model_from_string(proto)).graph))
    used = {node.op_type for node in nodes if node.metadata_props.get("fopru.pass") == "select"}
    assert not used & FORBIDDEN
    assert ("TopK" in used) == (selector.topk != "none")
    outputs = {output.name for output in session(proto).get_outputs()}
    assert ("token_scores" in outputs) == selector.needs_scores


@pytest.mark.parametrize("name", BASELINES)
def test_a_selector_without_scores_adds_no_attention(name: str) -> None:
    proto, report = pruned(CASES[0], name)
    stamps = [
        {p.key: p.value for p in node.metadata_props} for node in onnx.load_from_string(proto).graph.node
    ]
    assert (report.score_path, report.aggregation) == ("none", "")
    assert "score" not in {stamp.get("fopru.pass") for stamp in stamps}


# ---- the registry


def test_registry_names_are_unique_and_complete() -> None:
    assert len(ALL_SELECTORS) == len(SELECTORS) == len(REFERENCES)
    assert [SELECTORS[each.name] for each in ALL_SELECTORS] == list(ALL_SELECTORS)
    assert set(REFERENCES) == set(SELECTORS)


def test_each_selector_has_a_file_of_its_name() -> None:
    for name, selector in SELECTORS.items():
        assert type(selector).__module__ == f"fopru_graph.selectors.{name}"


def test_the_docs_list_the_registry_in_its_order() -> None:
    rows = re.findall(r"^\| `(\w+)` \|(.*)\|$", DOCS.read_text(encoding="utf-8"), re.MULTILINE)
    assert [name for name, _ in rows] == list(SELECTORS)
    for name, cells in rows:
        selector, (_, needs, gather, *_) = SELECTORS[name], cells.split("|")
        assert ("scores" in needs) == selector.needs_scores
        assert ("grid" in needs) == selector.needs_grid
        assert ("rows" in needs) == selector.needs_rows
        assert gather.strip() == ("late" if selector.needs_rows else "early")


# ---- what does not fit


@pytest.mark.parametrize("name", CLS_ONLY)
def test_a_class_token_is_needed_where_it_is_meant(name: str) -> None:
    with pytest.raises(
        OptionError, match=f"strategy is '{name}'.* no class token.*'rank', 'visionzip' or 'scope'"
    ):
        pruned(Case("siglip", attention="eager"), name)


def test_a_tensor_to_compare_is_for_selectors_that_compare() -> None:
    with pytest.raises(OptionError, match=r"similarity is 'y', but strategy 'rank' compares no rows.* scope"):
        prune(text_encoder(), PruneOptions(similarity="y"))


@pytest.mark.parametrize(
    "name", [name for name, each in SELECTORS.items() if each.needs_scores or each.needs_grid]
)
def test_a_selector_refuses_to_work_without_what_it_needs(name: str) -> None:
    with pytest.raises(RewriteError, match=f"selector '{name}' was given no (scores|grid)"):
        SELECTORS[name].select(_context(text_encoder(), None, None))


def _context(model: ir.Model, scores: ir.Value | None, rows: ir.Value | None) -> SelectContext:
    """N = 6 on a 2x3 grid for selectors that are called by hand."""
    PreparePass().run(model)
    found = LocatePass(PruneOptions()).run(model).findings
    keys = found.core.node.inputs[0]
    assert keys is not None
    num_keep = ir.Value(name="num_keep", shape=ir.Shape([1]), type=ir.TensorType(ir.DataType.INT64))
    return SelectContext(
        GraphBuilder(model.graph, "select"), scores, num_keep, "images", 6, keys, 3, 1, None, rows, 0
    )


# ---- each for itself


def by_hand(
    name: str, scores: np.ndarray, rows: np.ndarray, grid: tuple[int, int], seed: int = 0
) -> ort.InferenceSession:
    """A graph of nothing but a selector: scores [B, N], rows [B, N, D], num_keep → kept."""
    shapes = {"scores": ["images", scores.shape[1]], "rows": ["images", *rows.shape[1:]]}
    values = {
        key: ir.Value(name=key, shape=ir.Shape(shape), type=ir.TensorType(ir.DataType.FLOAT))
        for key, shape in shapes.items()
    }
    values["num_keep"] = ir.Value(name="num_keep", shape=ir.Shape([1]), type=ir.TensorType(ir.DataType.INT64))
    graph = ir.Graph(list(values.values()), [], nodes=[], opset_imports={"": 20}, name="selector")
    builder = GraphBuilder(graph, "select")
    source, tokens = values["scores"], scores.shape[1]
    context = SelectContext(
        builder, source, values["num_keep"], "images", tokens, source, 1, 0, grid, values["rows"], seed
    )
    kept = SELECTORS[name].select(context)
    kept.name = "kept"
    graph.outputs.append(kept)
    graph.sort()
    return session(ir.to_proto(ir.Model(graph, ir_version=10)).SerializeToString())


def kept_by(graph: ort.InferenceSession, keep: int, scores: np.ndarray, rows: np.ndarray) -> np.ndarray:
    feeds = {"scores": scores, "rows": rows, "num_keep": np.array([keep])}
    return np.asarray(graph.run(None, feeds)[0])


@pytest.mark.parametrize("name", PUBLISHED)
def test_ties_go_to_the_lower_position(name: str) -> None:
    scores, rows = np.full((2, 12), 0.25, np.float32), np.ones((2, 12, 3), np.float32)
    graph = by_hand(name, scores, rows, (3, 4))
    for keep in (4, 8, 12):
        assert kept_by(graph, keep, scores, rows).tolist() == [list(range(keep))] * 2


@pytest.mark.parametrize("name", SELECTORS)
@pytest.mark.parametrize("grid", [(1, 7), (7, 1), (3, 11), (12, 5), (24, 24)])
def test_any_grid(name: str, grid: tuple[int, int]) -> None:
    total, random = grid[0] * grid[1], np.random.default_rng(1)
    scores = random.random((2, total), dtype=np.float32)
    rows = random.standard_normal((2, total, 8), dtype=np.float32)
    graph = by_hand(name, scores, rows, grid)
    step = grid[1] if name == "row" else 1
    for keep in range(step, total + 1, step if total < 100 else 24):
        if name == "scope" and keep > 60:
            break  # the reference takes its time
        expected = [REFERENCES[name](Image(*both, grid), keep) for both in zip(scores, rows, strict=True)]
        assert len(set(expected[0])) == (total if name == "none" else keep)
        assert kept_by(graph, keep, scores, rows).tolist() == expected


def test_the_greedy_reference_meets_no_near_tie() -> None:
    # Equal indices mean nothing if float32 could have decided otherwise: its sums of 60 are good to 1e-5.
    random = np.random.default_rng(1)
    scores, rows = random.random(60), random.standard_normal((60, 8))
    assert greedy(scores, cosines(rows), 59)[1] > 1e-5


def test_uniform_is_that_of_the_host() -> None:
    for total in (1, 16, 49, 576):
        scores, rows = np.zeros((1, total), np.float32), np.zeros((1, total, 1), np.float32)
        graph = by_hand("uniform", scores, rows, (1, total))
        for keep in range(1, total + 1):
            choice = runtime.selectors.Choice(scores[0], None, keep)
            expected = runtime.selectors.select("uniform", choice)
            assert kept_by(graph, keep, scores, rows)[0].tolist() == expected.tolist()


def test_the_lattice_uses_more_columns_than_reading_order() -> None:
    # K = R on a square grid: every N/K-th token is one column, which is what uniform_grid is for.
    scores, rows = np.zeros((1, 576), np.float32), np.zeros((1, 576, 1), np.float32)
    columns = {
        name: set((kept_by(by_hand(name, scores, rows, (24, 24)), 24, scores, rows)[0] % 24).tolist())
        for name in ("uniform", "uniform_grid")
    }
    assert columns["uniform"] == {12}
    assert len(columns["uniform_grid"]) >= 5


def test_every_cell_of_the_lattice_holds_about_as_much() -> None:
    # For K = R C / 4 of an even grid each 2x2 block holds exactly one token.
    scores, rows = np.zeros((1, 96), np.float32), np.zeros((1, 96, 1), np.float32)
    kept = kept_by(by_hand("uniform_grid", scores, rows, (8, 12)), 24, scores, rows)[0]
    taken = np.bincount(kept, minlength=96).reshape(4, 2, 6, 2).sum(axis=(1, 3))
    assert (taken == 1).all()


def test_random_is_the_same_where_sizes_are_fixed_and_where_they_vary() -> None:
    assert MODULUS < 2**24
    assert MODULUS % 3 == 2
    assert all(MODULUS % divisor for divisor in range(2, 4097)), "a prime: 4097 squared is larger"
    fixed = by_hand("random", np.zeros((1, 20), np.float32), np.zeros((1, 20, 1), np.float32), (4, 5))
    for keep in range(1, 21):
        expected = kept_by(fixed, keep, np.zeros((1, 20), np.float32), np.zeros((1, 20, 1), np.float32))
        assert run(CASES[4], "random", 1, keep)["kept_indices"].tolist() == expected.tolist()


def test_random_changes_with_the_seed() -> None:
    patterns = set()
    for seed in (*range(8), 2**63):
        kept = run(CASES[0], "random", 1, 8, seed)["kept_indices"][0].tolist()
        image = Image(np.zeros(16, np.float32), np.zeros((16, 1), np.float32), (4, 4), seed)
        assert kept == REFERENCES["random"](image, 8)
        patterns.add(tuple(kept))
    assert len(patterns) == 9


@pytest.mark.parametrize(("total", "keep"), [(16, 4), (64, 19), (576, 173)])
def test_random_keeps_each_position_and_each_pair_of_neighbours_equally_often(total: int, keep: int) -> None:
    seeds, empty = 2000, np.zeros((total, 1), np.float32)
    kept = np.zeros((seeds, total), bool)
    for seed in range(seeds):
        kept[seed, REFERENCES["random"](Image(empty[:, 0], empty, (1, total), seed), keep)] = True
    share = keep / total
    # Counts are binomial; their fixed sum costs a degree of freedom and a factor (N - 1) / N.
    # Chi-square of N - 1 degrees has mean N - 1 and variance 2 (N - 1): 5 deviations are passed by chance
    # less than once in 10^4, and seeds here are fixed.
    squares = (kept.sum(axis=0) - seeds * share) ** 2 / (seeds * share * (1 - share)) * (total - 1) / total
    assert abs(squares.sum() - (total - 1)) <= 5 * np.sqrt(2 * (total - 1))
    together = (kept[:, 1:] & kept[:, :-1]).mean(axis=0)
    expected = share * (keep - 1) / (total - 1)
    # Each pair is a mean of 2000 draws; the largest of 575 normal deviates is above 5 once in 3000.
    assert np.abs(together - expected).max() <= 5 * np.sqrt(expected * (1 - expected) / seeds)
