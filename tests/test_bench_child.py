"""The process that answers lines of JSON, when it ends or answers something else."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench import child
from bench.child import Child, memory_counters
from bench.errors import BenchError


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that `python -m made` runs."""
    monkeypatch.setattr(child, "ROOT", tmp_path)
    return tmp_path / "made.py"


def test_an_order_to_a_process_that_has_ended_names_its_log(module: Path, tmp_path: Path) -> None:
    module.write_text("print('{}')\n")
    with Child(["made"], tmp_path / "log") as process:
        process._process.wait()
        with pytest.raises(BenchError, match=r"it ended with status 0: see .*log"):
            process.order({"order": "answer"})


def test_half_an_answer_names_the_log(module: Path, tmp_path: Path) -> None:
    module.write_text("print('{}')\nprint('{\"tok', end='')\n")
    with (
        Child(["made"], tmp_path / "log") as process,
        pytest.raises(BenchError, match=r"it answered '\{\"tok', which is no JSON: see .*log"),
    ):
        process.order({})


@pytest.mark.parametrize("lines", ["VmHWM:\t 2 kB\n", "Name:\tx\n"])
def test_counters_that_a_system_does_not_tell_are_left_out(
    lines: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "status").write_text(lines)
    monkeypatch.setattr(child, "Path", lambda _: tmp_path / "status")
    assert memory_counters() == ({"peak_rss": 2048} if "VmHWM" in lines else {})
