"""What a build reports about targets: the lint of the pruned encoder, once per finding."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir
import pytest

from export.targets import TargetVerdict, verdicts_of
from fopru_graph.lint import TARGETS, lint
from tests.conftest import ToyBuild
from tests.test_fopru_graph_lint import graph, topk


def test_a_portable_build_is_taken_by_every_target(toy_build: ToyBuild) -> None:
    found = toy_build.report["targets"]
    assert [verdict["target"] for verdict in found] == list(TARGETS)
    assert {verdict["errors"] for verdict in found} == {0}


@pytest.mark.parametrize(
    ("errors", "warnings", "text"),
    [(0, 0, "x ok"), (1, 0, "x 1 error"), (2, 1, "x 2 errors and 1 warning"), (0, 3, "x 3 warnings")],
)
def test_a_verdict_in_words(errors: int, warnings: int, text: str) -> None:
    assert str(TargetVerdict("x", errors, warnings, ())) == text


def test_findings_are_those_of_the_lint_with_their_fix(tmp_path: Path) -> None:
    model = topk(4000, "int64[1] k = {3900}")
    ir.save(model, tmp_path / "model.onnx")
    for verdict in verdicts_of(tmp_path / "model.onnx"):
        report = lint(topk(4000, "int64[1] k = {3900}"), verdict.target)
        assert (verdict.errors, verdict.warnings) == (len(report.of("error")), len(report.of("warning")))
        grave = (*report.of("error"), *report.of("warning"))
        assert set(verdict.findings) == {f"{each.message}: {each.fix}" for each in grave}
    by_name = {verdict.target: verdict for verdict in verdicts_of(tmp_path / "model.onnx")}
    assert by_name["jetpack6"].errors == 1
    assert "3839" in by_name["jetpack6"].findings[0]


def test_a_finding_of_many_nodes_is_said_once(tmp_path: Path) -> None:
    model = graph("z = NonZero(x) w = NonZero(x) y = Identity(x)", "float[2,9] x", "float[2,9] y")
    ir.save(model, tmp_path / "model.onnx")
    (jetpack,) = [each for each in verdicts_of(tmp_path / "model.onnx") if each.target == "jetpack6"]
    assert jetpack.errors + jetpack.warnings >= 2
    assert len(jetpack.findings) == len(set(jetpack.findings)) < jetpack.errors + jetpack.warnings
