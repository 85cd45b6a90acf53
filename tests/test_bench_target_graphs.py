"""Tables of graphs and targets, and of 16 bits against float32: small runs, and their rules by hand."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest

from bench import half_precision, target_graphs
from bench.half_precision import Agreement, kept_agreement
from bench.results import read_result
from bench.target_graphs import GraphFound
from fopru_graph.lint import TARGETS
from fopru_graph.lint.report import Finding
from fopru_graph.lint.rtx import BuildReport, Engine
from runtime import contract

needs_rtx = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None,
    reason="TensorRT for RTX is not installed: pip install tensorrt-rtx",
)
SCORES = np.array([0.5, 0.1, 0.4, 0.3999, 0.2], np.float32)


def found(
    *, error: int = 0, dims: tuple[int, ...] = (1, 5), findings: tuple[Finding, ...] = ()
) -> GraphFound:
    counts = {target: {"error": error, "warning": 0, "note": 1} for target in TARGETS}
    rtx = BuildReport("1.7", 0.5, (), (Engine("SM86", 1.25, 3_000_000),), findings)
    return GraphFound("demo: g", 9, 20, counts, rtx, {"minimum": {"y": ((1, 5), dims), "z": ((2,), (2,))}})


def test_what_is_counted() -> None:
    graph = found(error=2, dims=(1, 6))
    assert (graph.grave, graph.equal, graph.compared) == (2 * len(TARGETS), 1, 2)
    assert (found().grave, found().equal) == (0, 2)


def test_the_tables() -> None:
    lint = target_graphs.lint_table([found(error=1)])
    assert lint.columns == ("graph", "nodes", *TARGETS)
    assert lint.rows == (("demo: g", "9", *["1 / 0 / 1"] * len(TARGETS)),)
    rtx = target_graphs.rtx_table([found(dims=(1, 6))], "1.7")
    assert rtx.rows == (("demo: g", "0.50", "1.2 s, 3.0 MB", "no engine", "1 of 2"),)
    shapes = target_graphs.shape_table([found(dims=(1, 6))])
    assert shapes.columns == ("output", "minimum", "optimum", "maximum")
    assert shapes.rows == (("demo: g: y", "[1, 6], not [1, 5]", "", ""), ("demo: g: z", "[2]", "", ""))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[int, Path]:
    root = tmp_path_factory.mktemp("targets")
    folders = ["--work", str(root), "--results", str(root / "results")]
    return target_graphs.main(["--tiny", "--threads", "1", *folders]), root


@needs_rtx
def test_the_demo_is_taken_by_every_target_and_builds(run: tuple[int, Path]) -> None:
    code, root = run
    assert code == 0
    result = read_result(root / "results" / "target-graphs.json")
    assert set(result.figures["graphs"]) == {
        f"demo: {name}"
        for name in (
            contract.VISION_ENCODER,
            contract.VISION_ENCODER_FOPRU,
            contract.EMBED_TOKENS,
            contract.DECODER_PORTABLE,
        )
    }
    assert result.figures["errors_and_warnings"] == 0
    assert result.figures["dims_equal"] == result.figures["dims_compared"] >= 36
    for graph in result.figures["graphs"].values():
        assert [engine["capability"] for engine in graph["rtx"]["engines"]] == ["SM86", "SM120"]
        assert graph["rtx"]["findings"] == []
    pruned = result.figures["graphs"][f"demo: {contract.VISION_ENCODER_FOPRU}"]["shapes"]
    # 14 x 14 patches: one, 30 % and all of them are kept.
    assert [pruned[point]["kept_indices"][1] for point in pruned] == [[1, 1], [1, 59], [4, 196]]
    decoder = result.figures["graphs"][f"demo: {contract.DECODER_PORTABLE}"]["shapes"]
    assert [decoder[point]["present.0.key"][1][1] for point in decoder] == [1, 64, 512]


@needs_rtx
def test_the_page_is_written(run: tuple[int, Path]) -> None:
    text = (run[1] / "results" / "target-graphs.md").read_text()
    assert "| demo: vision_encoder_fopru |" in text
    assert "no GPU, and nothing about speed" in text


@pytest.mark.parametrize(
    ("wanted", "got", "verdict"),
    [
        ([0, 2], [0, 2], "equal"),
        ([0, 2], [0, 3], "near-tie"),  # 0.3999 is within 2^-8 of 0.4
        ([0, 2], [0, 4], "different"),
        ([0, 2], [2, 3], "different"),  # 0 is far above the boundary
        ([0, 2], [0], "different"),
    ],
)
def test_near_ties(wanted: list[int], got: list[int], verdict: str) -> None:
    assert kept_agreement(np.array(wanted), np.array(got), SCORES, 8) == verdict


def test_a_finer_rule_sees_no_tie() -> None:
    assert kept_agreement(np.array([0, 2]), np.array([0, 3]), SCORES, 13) == "different"


def test_an_agreement_in_numbers() -> None:
    arrays = {
        "image_features": np.eye(4),
        "logits": np.array([[[0.0, 1.0, 3.0]]]),
        "tokens": np.array([[2, 1]]),
        "kept_indices": np.array([0, 2]),
        "token_scores": SCORES,
    }
    turned = {
        **arrays,
        "image_features": np.eye(4)[::-1],
        "logits": np.array([[[3.0, 1.0, 0.0]]]),
        "tokens": np.array([[0, 1]]),
        "kept_indices": np.array([0, 4]),
    }
    seen = Agreement()
    seen.add(arrays, {**arrays, "logits": arrays["logits"] + 7}, 8)
    seen.add(arrays, turned, 8)
    figures = seen.figures()
    assert figures["vision_cosine"] == pytest.approx(0.5)
    assert figures["vision_cosine_least"] == 0
    # Centred: (-4, -1, 5) and (5, -1, -4) thirds: (-20 + 1 - 20) / 42.
    assert figures["logits_cosine_least"] == pytest.approx(-39 / 42)
    assert (figures["top1"], figures["answers_equal"]) == (0.5, 1)
    assert figures["kept"] == {"equal": 1, "near-tie": 0, "different": 1}
    assert (figures["kept_overlap"], figures["kept_overlap_least"]) == (0.75, 0.5)


def test_two_pictures_of_the_demo(tmp_path: Path) -> None:
    folders = ["--work", str(tmp_path), "--results", str(tmp_path / "results")]
    assert half_precision.main(["--images", "4", "--threads", "1", *folders]) == 0
    figures = json.loads((tmp_path / "results" / "half-precision-demo.json").read_text())["figures"]
    # 11 bits and 8 bits on four layers and two; more than float32's own 1e-7 of difference.
    assert 0.9999 < figures["fp16"]["vision_cosine"] < 1 - 1e-9
    assert 0.99 < figures["bf16"]["vision_cosine"] < figures["fp16"]["vision_cosine"]
    assert figures["fp16"]["pictures"] == figures["bf16"]["pictures"] == 4
    assert figures["fp16"]["kept_overlap"] >= 0.98
    assert "half-precision-demo.md" in {path.name for path in (tmp_path / "results").iterdir()}


def test_no_pictures_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders = ["--work", str(tmp_path), "--results", str(tmp_path / "results")]
    assert half_precision.main(["--images", "0", *folders]) == 2
    assert "images is 0: compare at least 1 picture" in capsys.readouterr().err
