"""A bundle appears whole or not at all, whatever interrupts its build."""

from __future__ import annotations

import errno
import hashlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from calib import bundle_writer as writer_module
from calib.bundle_writer import BundleWriter, file_infos
from calib.errors import OutputError
from tests.conftest import Maker

ROOT = Path(__file__).resolve().parent.parent


def make_bundle(folder: Path, content: str) -> Path:
    folder.mkdir()
    (folder / "bundle.json").write_text(content)
    return folder


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def dead_pid() -> int:
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    return child.pid


def write(target: Path, content: str) -> None:
    with BundleWriter(target) as bundle:
        (bundle.path / "bundle.json").write_text(content)
        bundle.commit()


def test_new_bundle(tmp_path: Path) -> None:
    write(tmp_path / "a" / "x", "new")
    assert (tmp_path / "a" / "x" / "bundle.json").read_text() == "new"
    assert names(tmp_path / "a") == ["x"]


def test_old_bundle_is_replaced_as_a_whole(tmp_path: Path) -> None:
    (make_bundle(tmp_path / "x", "old") / "leftover").write_text("")
    write(tmp_path / "x", "new")
    assert names(tmp_path) == ["x"]
    assert names(tmp_path / "x") == ["bundle.json"]


def test_empty_directory_is_taken(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    write(tmp_path / "x", "new")
    assert (tmp_path / "x" / "bundle.json").read_text() == "new"


def test_link_to_a_bundle_stays_a_link(tmp_path: Path) -> None:
    make_bundle(tmp_path / "real", "old")
    (tmp_path / "x").symlink_to(tmp_path / "real")
    write(tmp_path / "x", "new")
    assert (tmp_path / "x").is_symlink()
    assert (tmp_path / "real" / "bundle.json").read_text() == "new"


def test_directory_that_is_no_bundle_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "thesis.txt").write_text("years of work")
    with pytest.raises(
        OutputError, match=r"x exists, is not empty and is not a bundle \(it has no bundle\.json\)"
    ):
        BundleWriter(tmp_path / "x")
    assert names(tmp_path / "x") == ["thesis.txt"]


def test_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("")
    with pytest.raises(OutputError, match="x is a file, but a bundle is a directory"):
        BundleWriter(tmp_path / "x")


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("bug"), SystemExit(1)])
def test_interruption_leaves_the_old_bundle(tmp_path: Path, error: BaseException) -> None:
    make_bundle(tmp_path / "x", "old")

    def interrupted() -> None:
        with BundleWriter(tmp_path / "x") as bundle:
            (bundle.path / "bundle.json").write_text("half")
            raise error

    with pytest.raises(type(error)):
        interrupted()
    assert (tmp_path / "x" / "bundle.json").read_text() == "old"
    assert names(tmp_path) == ["x"]


def test_full_disk(tmp_path: Path) -> None:
    make_bundle(tmp_path / "x", "old")

    def full(chained: bool) -> None:
        with BundleWriter(tmp_path / "x"):
            try:
                raise OSError(errno.ENOSPC, "No space left on device")
            except OSError as error:
                if chained:
                    raise RuntimeError("cannot write the graph") from error
                raise

    for chained in (False, True):
        with pytest.raises(
            OutputError, match=r"the disk is full while writing .*x \(\d+ MB free\).* is untouched"
        ):
            full(chained)
    assert (tmp_path / "x" / "bundle.json").read_text() == "old"
    assert names(tmp_path) == ["x"]


def test_rename_that_fails_brings_the_old_bundle_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_bundle(tmp_path / "x", "old")
    rename = Path.rename

    def fails(self: Path, target: Path) -> Path:
        if ".building-" in self.name:
            raise PermissionError(errno.EACCES, "Permission denied")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fails)
    with pytest.raises(OutputError, match=r"cannot write .*x \(Permission denied\): give --output a place"):
        write(tmp_path / "x", "new")
    assert (tmp_path / "x" / "bundle.json").read_text() == "old"
    assert names(tmp_path) == ["x"]


def test_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"cannot write .*x \(File exists\)"):
        write(tmp_path / "file" / "x", "new")


def test_leftovers_of_killed_builds(tmp_path: Path) -> None:
    make_bundle(tmp_path / f".x.building-{dead_pid()}", "half")
    make_bundle(tmp_path / f".x.old-{dead_pid()}", "older")
    make_bundle(tmp_path / "x", "old")
    make_bundle(tmp_path / f".x.building-{os.getppid()}", "someone still works on it")
    make_bundle(tmp_path / ".x.building-mine", "no process number")
    write(tmp_path / "x", "new")
    assert names(tmp_path) == [f".x.building-{os.getppid()}", ".x.building-mine", "x"]


def test_build_killed_during_the_swap(tmp_path: Path) -> None:
    make_bundle(tmp_path / f".x.old-{dead_pid()}", "old")
    with BundleWriter(tmp_path / "x"):  # comes and goes without a commit
        assert (tmp_path / "x" / "bundle.json").read_text() == "old"
    assert names(tmp_path) == ["x"]


def test_process_of_another_user_counts_as_alive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(pid: int, number: int) -> None:
        raise PermissionError

    leftover = make_bundle(tmp_path / ".x.building-1", "half")
    monkeypatch.setattr(os, "kill", denied)
    write(tmp_path / "x", "new")
    assert leftover.exists()


def test_free_space_that_cannot_be_asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fails(path: Path) -> None:
        raise OSError

    monkeypatch.setattr(writer_module.shutil, "disk_usage", fails)
    assert writer_module._free_megabytes(tmp_path) == 0


def test_hashes(tmp_path: Path) -> None:
    (tmp_path / "onnx").mkdir()
    (tmp_path / "onnx" / "a.onnx").write_bytes(b"abc")
    (tmp_path / "bundle.json").write_text("{}")
    infos = file_infos(tmp_path)
    assert list(infos) == ["onnx/a.onnx"]
    assert infos["onnx/a.onnx"].bytes == 3
    assert infos["onnx/a.onnx"].sha256 == hashlib.sha256(b"abc").hexdigest()


def test_ctrl_c_in_the_middle_of_a_real_build(toy_checkpoint: Maker, tmp_path: Path) -> None:
    make_bundle(tmp_path / "x", "old")
    model = str(toy_checkpoint("clip-llama"))
    command = [sys.executable, "-m", "export.build", "--model", model, "--output", str(tmp_path / "x")]
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as build:
        until = time.monotonic() + 60
        while not list(
            tmp_path.glob(".x.building-*/onnx")
        ):  # the weights are loaded, graphs are being written
            assert build.poll() is None
            assert time.monotonic() < until
            time.sleep(0.05)
        build.send_signal(signal.SIGINT)
        out, err = build.communicate(timeout=60)
    assert build.returncode == 130, err
    assert out == ""
    assert err.strip().endswith("interrupted")
    assert (tmp_path / "x" / "bundle.json").read_text() == "old"
    assert names(tmp_path) == ["x"]
