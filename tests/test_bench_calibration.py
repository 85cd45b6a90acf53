"""The calibration of the demo: its table and figures, from a small run; what a failing run says."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bench import calibration
from bench.errors import BenchError
from bench.options import Settings
from bench.workspace import Workspace
from calib.settings import LADDER


@pytest.mark.parametrize(
    ("picks", "steps"),
    [
        ([0.4, 0.4], 0),
        ([0.4, 0.32], 1),
        ([1.0, LADDER[0]], 1),
        ([LADDER[-1], 1.0], len(LADDER)),
        ([0.4], 0),
        ([0.4, None], None),
        ([0.41, 0.4], None),  # not of the ladder
        ([], None),
    ],
)
def test_steps_between_picks(picks: Sequence[float | None], steps: int | None) -> None:
    assert calibration.rungs_between(picks) == steps


def summary(selector: str, ratio: float, share: float) -> dict[str, Any]:
    interval = {"mean": share, "low": share - 0.02, "high": min(1.0, share + 0.02)}
    return {
        "setting": {"selector": selector, "ratio": ratio, "layer": None, "aggregation": None},
        "samples": 5,
        "after": 196 * ratio,
        "first": interval,
        "answer": interval,
        "kv_bytes": 1 << 20,
        "accuracy": interval,
        "divergence": {"mean": 1 - share, "low": 0.0, "high": 1.0},
    }


def settings(tmp_path: Path) -> Settings:
    return Settings(Workspace(tmp_path / "work"), tmp_path / "results", 2, 1, 0)


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Any]:
    """What `calib.ratio` is made to answer, one after the other; commands go into `answers.commands`."""
    queue: list[Any] = []
    real = subprocess.run

    def run(command: Sequence[str], **options: Any) -> Any:
        if "--work" not in command:  # git, for the commit
            return real(command, **options)
        work = Path(command[command.index("--work") + 1])
        work.mkdir(parents=True, exist_ok=True)
        for name in calibration._PLOTS:
            (work / name).write_bytes(b"png")
        status, study = queue.pop(0)
        return SimpleNamespace(returncode=status, stdout="" if study is None else json.dumps(study))

    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr(Workspace, "bundle", lambda _, name: tmp_path / name)
    (tmp_path / "results").mkdir()
    return queue


def study(pick: float | None) -> dict[str, Any]:
    return {
        "constraint": "first-token agreement of at least 0.98",
        "pick": None if pick is None else {"setting": {"selector": "rank", "ratio": pick}},
        "settings": [summary("none", 1.0, 1.0), summary("rank", 0.4, 0.9), summary("random", 0.4, 0.5)],
    }


def test_two_calibrations_and_how_far_apart_their_picks_are(answers: list[Any], tmp_path: Path) -> None:
    answers += [(0, study(0.4)), (0, study(0.32)), (0, study(0.4))]
    result = calibration.calibrate_demo(3, 2, 0.98, settings(tmp_path))
    assert result.figures["picks"] == [0.4, 0.32]
    assert result.figures["steps_between_picks"] == 1
    assert list(result.figures["curves"][1]) == ["none 1", "rank 0.4", "random 0.4"]
    assert result.tables[0].rows[1][:4] == ("rank", "0.4", "78.4", "0.900 (0.880-0.920)")
    assert result.tables[0].rows[1][5] == "0.900"  # of what the unpruned model has right
    assert result.figures["picks_same_scenes"] == [0.4, 0.4]
    assert result.figures["steps_between_picks_same_scenes"] == 0
    assert "on other scenes each time: 0.4, 0.32 (steps of the ladder apart: 1); on" in result.notes[0]
    assert "with two seeds: 0.4, 0.4 (steps of the ladder apart: 0)." in result.notes[0]
    rows = (tmp_path / "work" / "calibration-0" / "data" / "questions.jsonl").read_text().splitlines()
    other = (tmp_path / "work" / "calibration-1" / "data" / "questions.jsonl").read_text().splitlines()
    assert len(rows) == len(other) == 3
    assert rows != other
    assert (tmp_path / "results" / "calibration-demo-agreement.png").read_bytes() == b"png"


def test_nothing_picked_is_a_result(answers: list[Any], tmp_path: Path) -> None:
    answers += [(1, study(None)), (1, study(None))]
    result = calibration.calibrate_demo(2, 1, 0.98, settings(tmp_path))
    assert result.figures["picks"] == [None]
    assert "nothing" in result.notes[0]


@pytest.mark.parametrize("status", [1, 2])
def test_a_calibration_that_fails(answers: list[Any], tmp_path: Path, status: int) -> None:
    answers.append((status, None))
    with pytest.raises(BenchError, match=f"calib.ratio ended with status {status}: see its message above"):
        calibration.calibrate_demo(2, 1, 0.98, settings(tmp_path))


def test_ctrl_c_in_the_calibration_ends_this(answers: list[Any], tmp_path: Path) -> None:
    answers.append((130, None))
    with pytest.raises(KeyboardInterrupt):
        calibration.calibrate_demo(2, 1, 0.98, settings(tmp_path))


def test_counts_below_one(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert calibration.main(["--samples", "0", "--results", str(tmp_path)]) == 2
    assert "samples is 0 and repeats 2: give at least 1 of each" in capsys.readouterr().err
