"""Interleaving, node times, child memory, results and the environment record. Nothing here asserts a time."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from bench.environment import ROOT, Environment, describe_environment, running_command
from bench.errors import BenchError
from bench.images import mixed_images, noise_images
from bench.interleave import Measurement, Variant, interleave, timed
from bench.memory import run_measured
from bench.node_times import group_events
from bench.results import Result, Table, print_result, read_result, write_result

ENVIRONMENT = Environment(
    "a cpu",
    2,
    2,
    8.0,
    "Linux",
    "3.11",
    {"numpy": "2.0"},
    None,
    "python -m bench",
    "2026-01-01T00:00:00+00:00",
)


def recorder(log: list[str], name: str, values: list[float]) -> Variant:
    remaining = iter(values)

    def run() -> dict[str, float]:
        log.append(name)
        return {"seconds": next(remaining)}

    return Variant(name, run)


def test_the_order_rotates_and_warm_up_is_thrown_away() -> None:
    log: list[str] = []
    variants = [recorder(log, "a", [9.0, 1.0, 2.0]), recorder(log, "b", [9.0, 3.0, 8.0])]
    measured = interleave(variants, rounds=2, warmup=1)
    assert log == ["b", "a", "a", "b", "b", "a"]
    assert measured.samples == {"a": {"seconds": [1.0, 2.0]}, "b": {"seconds": [3.0, 8.0]}}


def test_a_settling_run_comes_right_before_each_measured_one() -> None:
    log: list[str] = []
    variants = [recorder(log, "a", [9.0, 1.0]), recorder(log, "b", [9.0, 3.0])]
    measured = interleave(variants, rounds=1, warmup=0, settle=True)
    assert log == ["a", "a", "b", "b"]
    assert measured.samples == {"a": {"seconds": [1.0]}, "b": {"seconds": [3.0]}}


def test_ratio_is_the_median_of_paired_ratios() -> None:
    # The machine slows down tenfold half-way: medians of each variant alone would say 5.5 / 11 or worse.
    samples = {"base": {"seconds": [1.0, 10.0, 100.0]}, "other": {"seconds": [2.0, 30.0, 400.0]}}
    measured = Measurement(samples, "base", rounds=3, warmup=0)
    summary = measured.summary("other")
    assert (summary.ratio, summary.median, summary.minimum, summary.maximum) == (3.0, 30.0, 2.0, 400.0)
    assert summary.ratio_quartiles == (2.5, 3.5)
    assert measured.summary("base").ratio == 1.0
    assert measured.paired_ratio("base", "other") == pytest.approx(1 / 3, abs=1e-12)  # a division in float64


def test_quartiles_of_one_round_are_its_ratio() -> None:
    measured = Measurement({"a": {"x": [2.0]}, "b": {"x": [3.0]}}, "a", rounds=1, warmup=0)
    assert measured.paired_quartiles("b", "a", "x") == (1.5, 1.5)


def test_a_figure_the_baseline_lacks_has_no_ratio() -> None:
    measured = Measurement({"a": {"x": [1.0]}, "b": {"y": [2.0]}}, "a", rounds=1, warmup=0)
    assert measured.summary("b", "y").ratio is None
    assert measured.summary("b", "y").ratio_quartiles is None


def test_unknown_figures_are_named() -> None:
    measured = Measurement({"a": {"x": [1.0]}}, "a", rounds=1, warmup=0)
    with pytest.raises(BenchError, match=r"no figure 'y' of 'a' was measured: there are \{'a': \['x'\]\}"):
        measured.summary("a", "y")


@pytest.mark.parametrize("names", [[], ["a", "a"]])
def test_variants_need_different_names(names: list[str]) -> None:
    variants = [Variant(name, timed(lambda: None)) for name in names]
    with pytest.raises(BenchError, match="give at least one, each with its own name"):
        interleave(variants, rounds=1)


@pytest.mark.parametrize(("rounds", "warmup"), [(0, 1), (1, -1)])
def test_rounds_are_checked(rounds: int, warmup: int) -> None:
    with pytest.raises(BenchError, match="measure at least 1 round after 0 or more"):
        interleave([Variant("a", timed(lambda: None))], rounds=rounds, warmup=warmup)


def test_timed_runs_the_action_once() -> None:
    calls: list[int] = []
    figures = timed(lambda: calls.append(1))()
    assert calls == [1]
    assert list(figures) == ["seconds"]


def test_kernel_events_are_grouped_by_pass() -> None:
    events: list[dict[str, Any]] = [
        {"cat": "Node", "name": "fopru_score_kernel_time", "dur": 3_000_000},
        {"cat": "Node", "name": "MatMul_1_kernel_time", "dur": 5_000_000},
        {"cat": "Node", "name": "MatMul_1_fence_before", "dur": 7_000_000},
        {"cat": "Session", "name": "model_run", "dur": 9_000_000},
        {"cat": "Node", "name": "fopru_score_kernel_time", "dur": 1_000_000},
        {"cat": "Node", "name": "MatMul_1_kernel_time", "dur": 7_000_000},
    ]
    times = group_events(events, {"fopru_score": "score", "fopru_folded": "select"}, runs=2)
    assert times.seconds == {"score": 2.0, "encoder": 6.0}
    assert (times.stamped, times.seen) == (2, 1)
    assert times.share("score", "select") == 0.25


def test_child_process_is_measured_by_its_own_memory() -> None:
    # The parent holds 200 MB at the fork: a child must not be charged for it.
    ballast = bytearray(200 << 20)
    usage = run_measured(
        [sys.executable, "-c", "block = bytearray(80 << 20); import time; time.sleep(.2); print('done')"]
    )
    assert (usage.returncode, usage.stdout) == (0, "done\n")
    assert 80 << 20 < usage.peak_rss_bytes < len(ballast)


def test_child_status_is_reported() -> None:
    assert run_measured([sys.executable, "-c", "raise SystemExit(3)"]).returncode == 3


def test_result_survives_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = Table("timing", ("variant", "ms"), (("unpruned", "1.0"), ("keep 173", "0.9")))
    result = Result("encoder-x", ENVIRONMENT, {"ratio": 0.9}, {"a": [1.0]}, (table,), ("read this",))
    path = write_result(result, tmp_path)
    assert read_result(path) == result
    assert [entry.name for entry in tmp_path.iterdir()] == ["encoder-x.json"]
    print_result(result)
    printed = capsys.readouterr().out
    for expected in ("keep 173", "read this", "a cpu", "python -m bench"):
        assert expected in printed


def test_result_of_another_format_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "old.json"
    path.write_text(json.dumps({"format": 0}))
    with pytest.raises(BenchError, match="is not a result of format 1: run the measurement again"):
        read_result(path)


def test_not_a_number_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_result(Result("x", ENVIRONMENT, {"ratio": float("nan")}), tmp_path)


def test_table_rows_have_the_table_width() -> None:
    with pytest.raises(BenchError, match="a table of 2 columns got a row of 1"):
        Table("t", ("a", "b"), (("1",),))


def test_environment_names_machine_versions_and_command() -> None:
    about = describe_environment(threads=2)
    assert about.threads == 2
    assert about.cpu
    assert {"numpy", "onnxruntime", "torch", "transformers"} <= set(about.versions)
    assert json.loads(json.dumps(asdict(about)))["command"] == about.command


def test_command_has_no_absolute_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["x", "--work", f"{ROOT}/bundles/bench"])
    assert running_command().endswith("--work bundles/bench")


def test_images_are_seeded() -> None:
    first, again, other = (noise_images(2, 16, seed) for seed in (0, 0, 1))
    assert all((one == two).all() for one, two in zip(first, again, strict=True))
    assert not (first[0] == other[0]).all()


def test_without_scikit_learn_all_images_are_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.images.find_spec", lambda _: None)
    assert {kind: len(found) for kind, found in mixed_images(9, 32, seed=0).items()} == {"noise": 9}


def test_mixed_images_hold_every_kind() -> None:
    pictures = mixed_images(9, 32, seed=0)
    assert {kind: len(found) for kind, found in pictures.items()} == {
        "noise": 5,
        "photographs": 2,
        "digits": 2,
    }
    assert all(
        picture.dtype == "uint8" and picture.shape[2] == 3 for found in pictures.values() for picture in found
    )
