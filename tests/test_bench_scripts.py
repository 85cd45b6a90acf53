"""The measurement scripts from end to end on a tiny model: every figure is there; none is judged."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from bench import __main__ as everything
from bench import encoder, exactness, export_cost
from bench.configurations import CONFIGURATIONS, configuration
from bench.errors import BenchError
from bench.exactness import Tally, differing_elements
from bench.memory import ChildUsage
from bench.options import run_script
from bench.results import read_result
from bench.workspace import Workspace, measure_build, single_layout, source_digest
from runtime.errors import BundleError
from runtime.layouts.anyres import AnyresLayout
from runtime.parity import ParityReport, StageResult


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A work directory in which the tiny bundle has been built by the export measurement."""
    root = tmp_path_factory.mktemp("bench-work")
    with pytest.MonkeyPatch.context() as patch:
        tiny = configuration("tiny", decoder_layers=1)  # tracing time grows with the layers
        patch.setitem(CONFIGURATIONS, "tiny", replace(tiny, vision=tiny.vision | {"num_hidden_layers": 2}))
        assert export_cost.main([*places(root), "--rounds", "1"]) == 0
        yield root


def places(work: Path) -> list[str]:
    return ["--model", "tiny", "--work", str(work), "--results", str(work / "results")]


def common(work: Path) -> list[str]:
    return [*places(work), "--threads", "1"]


def figures(work: Path, name: str) -> dict[str, Any]:
    return read_result(work / "results" / f"{name}.json").figures


def test_export_cost_compares_memory_with_weights(work: Path) -> None:
    found = figures(work, "export-tiny")
    assert found["build_command"].startswith("python -m export.build --model ")
    assert found["peak_rss_to_weights"] == found["peak_rss_bytes"] / found["weight_bytes"]
    assert found["seconds"] > 0
    # the build chooses its threads
    assert read_result(work / "results" / "export-tiny.json").environment.threads is None


def test_encoder_measures_both_graphs(work: Path) -> None:
    assert encoder.main([*common(work), "--rounds", "1"]) == 0
    found = figures(work, "encoder-tiny")
    assert (found["tokens"], found["kept"]) == (64, 19)
    assert set(found["by_keep"]) == {"64", "32", "19", "6"}
    assert found["by_keep"]["19"]["predicted"] < found["by_keep"]["64"]["predicted"] <= 1.0
    lower, upper = found["pruned_to_unpruned_quartiles"]
    assert lower <= found["pruned_to_unpruned"] <= upper
    assert found["stamped_nodes_profiled"] > 0
    assert {"score", "select", "gather", "encoder"} <= set(found["profile_seconds_by_pass"])
    assert 0 < found["score_and_select_share_of_pruned"] < 1


def test_exactness_finds_the_bundle_equal_to_pytorch(work: Path) -> None:
    assert exactness.main([*common(work), "--images", "4", "--answers", "1"]) == 0
    found = figures(work, "exactness-tiny")
    assert found["ratio_one_elements"] == 4 * 64 * 64
    assert found["ratio_one_differing_elements"] == 0
    assert found["kept_indices"]["different"] == 0
    assert found["answers"] == {"equal": 1, "different": 0}


def test_a_bundle_of_another_layout_is_refused() -> None:
    layout = AnyresLayout((32, 32), (4, 4), ((32, 64),))
    bundle = SimpleNamespace(path=Path("bundles/next"), manifest=SimpleNamespace(layout=layout))
    with pytest.raises(
        BenchError, match=r"bundles/next has a layout of kind 'anyres', .* use python -m bench"
    ):
        single_layout(bundle)  # type: ignore[arg-type]  # all that is looked at


def test_a_bundle_is_built_again_only_after_a_change(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[str] = []
    monkeypatch.setattr(Workspace, "_build", lambda *given: built.append(given[2]))
    workspace = Workspace(work)
    workspace.bundle("tiny")
    assert built == []
    monkeypatch.setattr("bench.workspace.source_digest", lambda _: "other sources")
    workspace.bundle("tiny")
    assert built == ["tiny"]


def test_digest_follows_the_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("one")
    first = source_digest(tmp_path)
    (tmp_path / "a").write_text("longer")
    assert source_digest(tmp_path) != first


def test_digest_follows_the_versions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = source_digest(tmp_path)
    monkeypatch.setattr("bench.workspace.package_versions", lambda: {"torch": "0"})
    assert source_digest(tmp_path) != first


def test_a_failed_build_names_its_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.workspace.run_measured", lambda _: ChildUsage(2, 1.0, 1, None, ""))
    with pytest.raises(BenchError, match=r"`python -m export.build --model .*` ended with status 2: see its"):
        measure_build(tmp_path / "nothing", tmp_path / "bundle", 0.3)


def test_threads_are_checked(capsys: pytest.CaptureFixture[str]) -> None:
    assert encoder.main(["--model", "tiny", "--threads", "0"]) == 2
    assert capsys.readouterr().err == "error: threads is 0: give at least 1\n"


@pytest.mark.parametrize("repeats", [("--rounds", "0"), ("--warmup", "-1")])
def test_rounds_are_checked_before_a_bundle_is_built(
    repeats: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert encoder.main([*common(tmp_path / "work"), *repeats]) == 2
    assert "measure at least 1 round after 0 or more" in capsys.readouterr().err
    assert not (tmp_path / "work").exists()


def test_places_that_cannot_be_written_are_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    nowhere, results = str(tmp_path / "file" / "x"), str(tmp_path / "results")
    assert encoder.main(["--model", "tiny", "--results", results, "--work", nowhere]) == 2
    assert capsys.readouterr().err.startswith("error: [Errno 20] Not a directory")
    assert encoder.main(["--model", "tiny", "--results", nowhere]) == 2
    assert "error: results cannot be written: [Errno 20]" in capsys.readouterr().err
    (tmp_path / "locked").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bench.options.os.access", lambda *_: False)
        assert encoder.main(["--model", "tiny", "--results", str(tmp_path / "locked")]) == 2
    assert "locked: give another --results" in capsys.readouterr().err


def test_errors_of_the_runtime_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    def body(_: argparse.Namespace) -> None:
        raise BundleError("the bundle is damaged: build it again")

    assert run_script(argparse.ArgumentParser(), body, []) == 2
    assert capsys.readouterr().err == "error: the bundle is damaged: build it again\n"


def test_tables_are_printed_before_the_file_is_written(
    work: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object) -> Path:
        raise OSError("no space left")

    monkeypatch.setattr("bench.options.write_result", full)
    assert encoder.main([*common(work), "--rounds", "1"]) == 2
    printed = capsys.readouterr()
    assert "unpruned" in printed.out
    assert "error: no space left" in printed.err


@pytest.mark.parametrize("sizes", [("0", "0"), ("2", "3"), ("2", "-1")])
def test_number_of_pictures_is_checked(sizes: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    assert exactness.main(["--model", "tiny", "--images", sizes[0], "--answers", sizes[1]]) == 2
    assert "compare at least 1 picture, and answers to at most that many" in capsys.readouterr().err


def test_plan_runs_each_measurement_in_turn() -> None:
    first = ["export", "encoder", "vlm", "decoder", "large", "peers"]
    middle = ["exactness", "exporters", "rewrite", "score-clip"]
    large = ["score-siglip", "score-4096", "score-4096-opset23"]
    bits = ["target-graphs", "half-precision", "quantize"]
    last = ["calibration", "families", "tiles"]
    quick = [*first, *middle, "rtx", *bits, *last]
    assert [name for name, _ in everything.plan([], quick=True, threads=3)] == quick
    whole = [*bits, "quantize-clip-l", *last]
    everything_named = [*first, "openvino-pruning", *middle, *large, "rtx", "exactness-clip-l", *whole]
    assert [name for name, _ in everything.plan([], quick=False, threads=3)] == everything_named
    assert everything.plan(["vlm", "export"], quick=True, threads=3) == [
        ("export", ["bench.export_cost", "--model", "tiny", "--rounds", "1"]),
        ("vlm", ["bench.vlm", "--model", "tiny", "--rounds", "1", "--threads", "3"]),
    ]


def test_failures_are_collected(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    class Done:
        returncode = 1

    monkeypatch.setattr("bench.__main__.subprocess.run", lambda *_, **__: Done())
    assert everything.main(["--only", "vlm", "--only", "encoder"]) == 1
    assert capsys.readouterr().err == "error: encoder, vlm failed: see the messages above\n"


def test_bits_are_compared_not_values() -> None:
    first = np.array([0.0, 1.0, 2.0], np.float32)
    second = np.array([-0.0, 1.0, np.nextafter(np.float32(2), np.float32(3))], np.float32)
    assert differing_elements(first, second) == 2  # -0.0 equals 0.0 as a value
    assert differing_elements(first, first.copy()) == 0
    assert differing_elements(first, first[:2]) == 3


def stage(name: str, ok: bool = True, detail: str = "", difference: float = 0.0) -> StageResult:
    return StageResult(name, difference, 0.5, "a reason", ok, detail)


def test_tally_tells_near_ties_from_equal_and_different() -> None:
    tally = Tally()
    for kept in (
        stage("kept_indices"),
        stage("kept_indices", detail="near-tie"),
        stage("kept_indices", ok=False),
    ):
        tally.add(ParityReport((kept, stage("logits", difference=0.25), stage("tokens"))), whole_answer=True)
    tally.add(ParityReport((stage("kept_indices"), stage("tokens", ok=False))), whole_answer=False)
    assert tally.kept == {"equal": 2, "near-tie": 1, "different": 1}
    assert tally.answers == {"equal": 3}
    assert tally.diverged == {"kept_indices": 1, "tokens": 1}
    assert (tally.largest["logits"], tally.tightest["logits"]) == (0.25, 0.5)
    assert tally.remarks == ["kept_indices: near-tie"]
