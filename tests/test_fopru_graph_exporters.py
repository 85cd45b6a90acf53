"""Encoders as exporters write them, pruned with defaults, against plain PyTorch and their unpruned selves."""

from __future__ import annotations

import dataclasses
import functools
import re
import shutil
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest

import bench.exporters as bench_exporters
from bench.results import read_result
from fopru_graph import LocateError, PruneOptions, PruneReport, load_graph, prune, prune_file
from tests.exporter_zoo import DYNAMO, SPECIAL, TORCHSCRIPT, Case, all_cases, export, pixels, reference
from tests.toy_encoders import text_encoder

# Every exporter × architecture, every architecture with both kinds of attention; a dynamo export takes a
# second or two, so that the two older opsets share eager and sdpa.
EAGER = {
    "clip": "dynamo18",
    "siglip": "dynamo20",
    "vit": "dynamo18",
    "deit": "dynamo20",
    "dinov2": "dynamo18",
}
EAGER["packed"] = "dynamo20"
MATRIX = [
    Case(architecture, attention, exporter)
    for architecture in SPECIAL
    for exporter in (*DYNAMO, *TORCHSCRIPT)
    for attention in ("eager", "sdpa")
    if (architecture in EAGER or attention == "sdpa")
    and (exporter in TORCHSCRIPT or (attention == "eager") == (EAGER.get(architecture) == exporter))
    and (architecture, exporter) not in [("dinov2", name) for name in TORCHSCRIPT]
]
VARIANTS = [
    *(Case("clip", exporter=exporter, sizes="dynamic") for exporter in ("dynamo20", "torchscript17")),
    *(Case("siglip", exporter=exporter, sizes="dynamic") for exporter in ("dynamo23", "torchscript14")),
    Case("vit", "eager", exporter="torchscript17", sizes="dynamic"),
    Case("deit", exporter="torchscript17", sizes="dynamic"),
    *(Case("clip", exporter=exporter, batch="one") for exporter in ("dynamo23", *TORCHSCRIPT)),
    Case("packed", exporter="torchscript17", batch="one"),
    Case("torch", exporter="torchscript14", batch="one"),
    Case("clip", exporter="dynamo20", half=True),
    Case("siglip", exporter="dynamo23", half=True),
    *(Case("clip", exporter=exporter, outputs="pooled") for exporter in ("dynamo20", "torchscript17")),
    Case("siglip", exporter="torchscript14", outputs="pooled"),
    Case("vit", exporter="torchscript17", outputs="hidden"),
    Case("dinov2", exporter="dynamo20", outputs="hidden"),
    Case("dinov2", exporter="dynamo23", outputs="patches"),
    Case("deit", exporter="torchscript17", outputs="patches"),
    *(Case(architecture, "eager", exporter, named=False) for architecture, exporter in EAGER.items()),
    *(Case(architecture, exporter="dynamo23", named=False) for architecture in SPECIAL),
    *(
        Case(architecture, exporter="torchscript17", named=False)
        for architecture in SPECIAL
        if architecture != "dinov2"
    ),
]
CASES = [*MATRIX, *VARIANTS]
every_case = pytest.mark.parametrize("case", CASES, ids=str)

# Features are of size 1 to 4. PyTorch and ONNX Runtime order their sums differently in every layer; in
# float16 (half a unit in the last place at 4: 2e-3), every layer rounds its result anew.
PYTORCH = {False: 1e-5, True: 1.5e-2}
# Scores in units of 1/Q, their mean: some roundings before the softmax, float32 ones or float16 ones.
SCORES = {False: 5e-6, True: 5e-3}
# ONNX Runtime's optimiser fuses the pruned graph otherwise than the unpruned one (BiasGelu, Gemm and
# SkipLayerNormalization depend on which sizes are known), and a fused sum rounds otherwise: some units in the
# last place of float32. Float16 it computes in float32, and rounds where a Gather stands between two nodes.
FUSED = {False: 2e-6, True: 1e-2}


@functools.cache
def session(path: Path, optimised: bool = True) -> ort.InferenceSession:
    choices = ort.SessionOptions()
    choices.intra_op_num_threads = 1
    if not optimised:
        choices.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return ort.InferenceSession(path, choices, providers=["CPUExecutionProvider"])


@functools.cache
def pruned(case: Case, options: PruneOptions) -> tuple[Path, PruneReport]:
    source = export(case)
    target = source.with_name(f"{source.stem}_{abs(hash(options))}.onnx")
    return target, prune_file(source, target, options)


def defaults(case: Case) -> PruneOptions:
    return PruneOptions(features=case.features)


def run(path: Path, feeds: dict[str, np.ndarray], optimised: bool = True) -> dict[str, np.ndarray]:
    model = session(path, optimised)
    names = [output.name for output in model.get_outputs()]
    return dict(zip(names, model.run(None, feeds), strict=True))


def batches(case: Case) -> list[np.ndarray]:
    """Images to try: batch 1 to 3, and for a dynamic size two shapes that are no squares."""
    if case.batch == "one":
        return [pixels(case, 1, seed=seed) for seed in (1, 2)]
    if case.sizes == "dynamic":
        return [pixels(case, 2, (32, 48), seed=1), pixels(case, 2, (56, 24), seed=2)]
    return [pixels(case, images, seed=images) for images in (1, 2, 3)]


def counts(case: Case, scores: np.ndarray) -> tuple[int, ...]:
    """Tokens to keep: one, about 30 %, all; in float16 the count with the widest gap below it, where scores
    that are rounded otherwise cannot change the order, and all.
    """
    tokens = scores.shape[1]
    if not case.half:
        return 1, round(0.3 * tokens), tokens
    ordered = -np.sort(-scores, axis=1)
    gaps = (ordered[:, :-1] - ordered[:, 1:]).min(axis=0)
    assert gaps.max() > 2 * SCORES[True] / tokens
    return int(gaps.argmax()) + 1, tokens


def highest(scores: np.ndarray, keep: int) -> np.ndarray:
    """int64 [B, keep]: positions of the highest scores, ties to the lower position, ascending."""
    return np.sort(np.argsort(-scores, axis=1, kind="stable")[:, :keep], axis=1)


def kept_rows(features: np.ndarray, prefix: int, kept: np.ndarray) -> np.ndarray:
    """float32 [B, p + K, D]: prefix rows, then the kept ones."""
    first = np.tile(np.arange(prefix), (len(kept), 1))
    rows = np.concatenate([first, kept + prefix], axis=1)
    return np.take_along_axis(features, rows[:, :, None], axis=1).astype(np.float32)


def difference(left: np.ndarray, right: np.ndarray) -> float:
    assert left.shape == right.shape
    return float(np.abs(left.astype(np.float32) - right.astype(np.float32)).max())


@every_case
def test_what_is_found_without_being_told(case: Case) -> None:
    _, report = pruned(case, defaults(case))
    assert (report.special_tokens, report.prefix_tokens) == (case.special, case.prefix)
    assert (report.tokens, report.dropped_rows) == (case.tokens, case.special - case.prefix)
    assert report.features == case.features
    assert (report.locator, report.layer, report.heads) == (case.locator, case.layer, 4)
    assert (report.form, report.score_path, report.gather) == (case.form, case.score_path, case.gather)


@every_case
def test_scores_indices_and_features_are_those_of_pytorch(case: Case) -> None:
    path, _ = pruned(case, defaults(case))
    for images in batches(case):
        truth = reference(case, images)
        whole = run(export(case), {"pixel_values": images})[case.features]
        tokens = truth.scores.shape[1]
        for keep in counts(case, truth.scores):
            out = run(path, {"pixel_values": images, "num_keep": np.array([keep], np.int64)})
            assert difference(out["token_scores"], truth.scores) <= SCORES[case.half] / tokens
            kept = out["kept_indices"]
            assert np.array_equal(kept, highest(truth.scores, keep))
            features = out[case.features]
            assert features.dtype == whole.dtype
            assert difference(features, kept_rows(truth.features, case.prefix, kept)) <= PYTORCH[case.half]
            assert difference(features, kept_rows(whole, case.prefix, kept)) <= FUSED[case.half]


@pytest.mark.parametrize("case", [case for case in CASES if not case.half], ids=str)
def test_as_written_no_bit_changes(case: Case) -> None:
    # Without fusions: every kept row has the bits of the unpruned graph's row, and ratio 1 those of all.
    path, _ = pruned(case, defaults(case))
    for images in batches(case):
        whole = run(export(case), {"pixel_values": images}, optimised=False)
        tokens = whole[case.features].shape[1] - case.prefix
        for keep in (round(0.3 * tokens), tokens):
            out = run(path, {"pixel_values": images, "num_keep": np.array([keep], np.int64)}, optimised=False)
            expected = kept_rows(whole[case.features], case.prefix, out["kept_indices"])
            assert out[case.features].tobytes() == expected.tobytes()
            for name in set(whole) - {case.features}:
                assert out[name].tobytes() == whole[name].tobytes()


def rounded_where_gathered(case: Case, gathered: tuple[str, ...], target: Path) -> Path:
    """The unpruned graph with three no-ops behind each gathered tensor, for all readers but the LayerNorms,
    which the rewriter leaves whole. One alone would be computed in float32 like its neighbours.
    """
    model = ir.load(export(case))
    for value in [value for node in model.graph for value in node.outputs if value.name in gathered]:
        readers = [use for use in value.uses() if use.node.op_type != "LayerNormalization"]
        last = value
        for _ in range(3):
            made = ir.Value(name=f"{last.name}_again", type=value.type, shape=value.shape)
            model.graph.append(ir.node("Identity", [last], outputs=[made]))
            last = made
        for use in readers:
            use.node.replace_input_with(use.idx, last)
    model.graph.sort()
    ir.save(model, target)
    return target


@pytest.mark.parametrize("case", [case for case in VARIANTS if case.half], ids=str)
def test_in_float16_only_the_gather_rounds(case: Case, tmp_path: Path) -> None:
    path, report = pruned(case, defaults(case))
    rounded = rounded_where_gathered(case, report.gathered, tmp_path / "rounded.onnx")
    images = pixels(case, 2, seed=6)
    whole = run(rounded, {"pixel_values": images}, optimised=False)[case.features]
    for keep in (5, 16):
        out = run(path, {"pixel_values": images, "num_keep": np.array([keep], np.int64)}, optimised=False)
        expected = kept_rows(whole, case.prefix, out["kept_indices"])
        assert difference(out[case.features], expected) == 0.0


@pytest.mark.parametrize("case", [case for case in VARIANTS if case.outputs in ("pooled", "hidden")], ids=str)
def test_without_its_other_outputs_an_encoder_gathers_early(case: Case) -> None:
    path, report = pruned(case, PruneOptions(features=case.features, keep_other_outputs=False))
    assert report.gather == "early"
    images = pixels(case, 2, seed=4)
    whole = run(export(case), {"pixel_values": images})[case.features]
    out = run(path, {"pixel_values": images, "num_keep": np.array([5], np.int64)})
    assert set(out) == {case.features, "kept_indices", "token_scores"}
    assert np.array_equal(out["kept_indices"], highest(reference(case, images).scores, 5))
    # Fused otherwise, as above.
    assert difference(out[case.features], kept_rows(whole, case.prefix, out["kept_indices"])) <= FUSED[False]


def probabilities(case: Case) -> list[str]:
    return [str(node.outputs[0].name) for node in ir.load(export(case)).graph if node.op_type == "Softmax"]


@pytest.mark.parametrize(
    "case",
    [Case("clip"), Case("dinov2", "eager", "dynamo18"), Case("deit", "eager", "torchscript17")],
    ids=str,
)
@pytest.mark.parametrize("layer", [0, 1])
def test_a_tensor_that_the_user_names(case: Case, layer: int) -> None:
    images = pixels(case, 2, seed=5)
    path, report = pruned(case, PruneOptions(features=case.features, tap=probabilities(case)[layer]))
    assert (report.locator, report.layer) == ("tensor", layer)
    by_number, _ = pruned(case, PruneOptions(features=case.features, layer=layer))
    feeds = {"pixel_values": images, "num_keep": np.array([6], np.int64)}
    one, other = run(path, feeds), run(by_number, feeds)
    assert one["token_scores"].tobytes() == other["token_scores"].tobytes()
    assert one[case.features].tobytes() == other[case.features].tobytes()
    if layer == case.layer:
        assert np.array_equal(one["kept_indices"], highest(reference(case, images).scores, 6))


@pytest.mark.parametrize(
    "case", [Case("clip", "eager", "torchscript17"), Case("siglip", "eager", "dynamo20")], ids=str
)
def test_attention_that_a_runtime_has_fused_is_refused(case: Case, tmp_path: Path) -> None:
    from onnxruntime.transformers import optimizer

    fused = optimizer.optimize_model(
        str(export(case)), model_type="clip", num_heads=4, hidden_size=32, opt_level=0
    )
    fused.save_model_to_file(str(tmp_path / "fused.onnx"))
    with pytest.raises(LocateError, match=r"is a fused com\.microsoft::Attention.*prune the graph before"):
        prune(load_graph(tmp_path / "fused.onnx"), defaults(case))


def test_every_exporter_architecture_and_form_is_in_the_matrix() -> None:
    known = all_cases()
    assert {(case.architecture, case.exporter) for case in CASES} == {
        (case.architecture, case.exporter) for case in known
    }
    assert {(case.architecture, case.form, case.attention) for case in known} <= {
        (case.architecture, case.form, case.attention) for case in CASES
    }
    for field in dataclasses.fields(Case):
        assert {getattr(case, field.name) for case in CASES} == {getattr(case, field.name) for case in known}


def test_a_folder_of_encoders_is_compared_and_a_refused_one_says_why(tmp_path: Path) -> None:
    shutil.copy(export(Case("deit", "eager", "torchscript17")), tmp_path / "deit.onnx")
    shutil.copy(export(Case("clip", exporter="torchscript17", outputs="pooled")), tmp_path / "clip.onnx")
    hidden = export(Case("vit", exporter="torchscript17", outputs="hidden"))
    shutil.copy(hidden, tmp_path / "several_features.onnx")
    options = ["--folder", str(tmp_path), "--images", "4", "--results", str(tmp_path / "results")]
    assert bench_exporters.main([*options, "--threads", "1", "--note", "made by a test"]) == 1
    result = read_result(tmp_path / "results" / f"exporters-{tmp_path.name}.json")
    encoders = result.figures["encoders"]
    assert {name: one["found"] and one["found"]["gather"] for name, one in encoders.items()} == {
        "clip": "late",
        "deit": "early",
        "several_features": None,
    }
    assert "name the features output" in encoders["several_features"]["reason"]
    assert encoders["deit"]["indices_equal"] == encoders["deit"]["pictures"] == 4
    assert encoders["deit"]["largest_difference"]["as_written"] == 0.0
    page = (tmp_path / "results" / f"exporters-{tmp_path.name}.md").read_text()
    assert "| deit | name | softmax | one_pass | early |" in page
    assert "- made by a test" in page
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "clip.onnx",
        "deit.onnx",
        "results",
        "several_features.onnx",
    ]


def test_the_zoo_is_compared_with_pytorch(tmp_path: Path) -> None:
    settings = ["--images", "2", "--results", str(tmp_path), "--threads", "1"]
    assert bench_exporters.main(["--only", "deit eager torchscript17", *settings]) == 0
    (found,) = read_result(tmp_path / "exporters-zoo.json").figures["encoders"].values()
    assert 0 < found["largest_difference"]["pytorch"] <= PYTORCH[False]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--folder", "{folder}"], r"there is no \*\.onnx in .*: give the folder of your encoders"),
        (["--folder", "{folder}", "--size", "224"], r"size is '224', but it is HEIGHTxWIDTH, e\.g\. 224x224"),
        (["--images", "1"], r"images is 1: compare at least 2"),
        (["--only", "yolo"], r"only is 'yolo', and no case of the zoo has it in its name: try 'clip'"),
    ],
)
def test_a_comparison_that_cannot_be_made_says_why(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [argument.format(folder=tmp_path) for argument in arguments]
    assert bench_exporters.main([*given, "--results", str(tmp_path)]) == 2
    assert re.search(message, capsys.readouterr().err)


def test_a_file_that_takes_no_images_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ir.save(text_encoder(), tmp_path / "text.onnx")
    assert bench_exporters.main(["--folder", str(tmp_path), "--results", str(tmp_path)]) == 2
    assert re.search(
        r"the first input of text\.onnx is tensor\(float\) .*take the file", capsys.readouterr().err
    )
