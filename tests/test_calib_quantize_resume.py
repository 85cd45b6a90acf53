"""Cut runs of `python -m calib.quantize`: killed, interrupted, on a full disk."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from calib.quantize import bundle as bundle_module
from calib.quantize import graphs as graphs_module
from calib.quantize.__main__ import main
from runtime.bundle import sha256_of
from tests.interruptible import INTERRUPTIBLE
from tests.measuring import noise

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for number in range(5):
        noise(60 + number, 80, seed=number).save(folder / f"{number}.png")
    return folder


def words(bundle: Path, pictures: Path, folder: Path) -> list[str]:
    given = ["--precision", "vision=int8,decoder=int8", "--data", str(pictures), "--threads", "1"]
    given += ["--max-new-tokens", "2", "--keep-float", "none", "--ranges", "percentile"]
    return [str(bundle), *given, "--output", str(folder / "new"), "--work", str(folder / "work")]


def started(arguments: list[str]) -> subprocess.Popen[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [*INTERRUPTIBLE, sys.executable, "-m", "calib.quantize", *arguments]
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )


def hashes(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): sha256_of(path) for path in folder.rglob("*") if path.is_file()
    }


def first(folder: Path, pattern: str) -> Callable[[], bool]:
    return lambda: any(folder.glob(pattern))


@pytest.fixture(scope="module")
def whole(toy_bundle_dir: Path, pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Hashes of an uninterrupted run."""
    folder = tmp_path_factory.mktemp("whole")
    assert main(words(toy_bundle_dir, pictures, folder)) == 0
    return hashes(folder / "new")


def test_killed_again_and_again_it_ends_with_the_same_bytes(
    whole: dict[str, str], toy_bundle_dir: Path, pictures: Path, tmp_path: Path
) -> None:
    work, kept = tmp_path / "work" / "precision", 0
    moments = [
        "ranges/*.npz",
        "groups/*.jsonl",
        "trials/*",
        "cases/*",
        "awq/*.jsonl",
        "../../.new.building-*/*.json",
    ]
    for moment in moments:
        process = started(words(toy_bundle_dir, pictures, tmp_path))
        there = first(work, moment)
        while not there() and process.poll() is None:
            time.sleep(0.002)
        process.kill()
        process.communicate()
        assert there(), moment
        killed = process.returncode == -signal.SIGKILL
        assert killed or process.returncode == 0
        kept += killed
        assert not (tmp_path / "new").exists() or not killed
    assert kept == len(moments)  # each run was cut
    assert main(words(toy_bundle_dir, pictures, tmp_path)) == 0
    assert hashes(tmp_path / "new") == whole
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new", "work"]
    assert not list(work.glob("trial-*"))


def test_ctrl_c_keeps_what_was_done(
    whole: dict[str, str], toy_bundle_dir: Path, pictures: Path, tmp_path: Path
) -> None:
    process = started(words(toy_bundle_dir, pictures, tmp_path))
    there = first(tmp_path / "work" / "precision", "groups/*.jsonl")
    while not there() and process.poll() is None:
        time.sleep(0.002)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate()
    assert process.returncode == 130
    assert said.splitlines()[-1] == (
        f"stopped: what was done is kept in {tmp_path / 'work' / 'precision'}, run again to go on"
    )
    assert "Traceback" not in said
    assert main(words(toy_bundle_dir, pictures, tmp_path)) == 0
    assert hashes(tmp_path / "new") == whole


def test_ctrl_c_before_anything_was_done(
    toy_bundle_dir: Path,
    pictures: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("calib.data.open_data", interrupted)
    assert main(words(toy_bundle_dir, pictures, tmp_path)) == 130
    assert capsys.readouterr().err == "stopped: nothing was done yet\n"
    assert not (tmp_path / "new").exists()


def test_a_full_disk_of_the_work_folder(
    toy_bundle_dir: Path,
    pictures: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("calib.quantize.memory.np.savez", full)
    assert main(words(toy_bundle_dir, pictures, tmp_path)) == 2
    assert capsys.readouterr().err.splitlines()[-1] == (
        f"error: the disk is full while {tmp_path / 'work' / 'precision'} is written: free some space, or "
        "give --work on another disk; what was done is kept"
    )
    assert not (tmp_path / "new").exists()


def test_a_full_disk_leaves_the_earlier_bundle(
    whole: dict[str, str],
    toy_bundle_dir: Path,
    pictures: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    shutil.copytree(toy_bundle_dir, tmp_path / "new")
    before = hashes(tmp_path / "new")
    real = graphs_module.write_graphs

    def full(*given: object) -> Iterator[object]:
        real(*given)  # type: ignore[arg-type]
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(bundle_module, "write_graphs", full)
    assert main(words(toy_bundle_dir, pictures, tmp_path)) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith(f"error: the disk is full while writing {tmp_path / 'new'} (")
    assert hashes(tmp_path / "new") == before
    monkeypatch.undo()
    assert main(words(toy_bundle_dir, pictures, tmp_path)) == 0
    assert hashes(tmp_path / "new") == whole
