"""What `bench.native` refuses before it builds or measures anything, and how it reads `ldd`."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from bench import native


def test_fewer_than_no_pictures(capsys: pytest.CaptureFixture[str]) -> None:
    assert native.main(["--images", "-1"]) != 0
    assert "images is -1: compare 0 or more pictures" in capsys.readouterr().err


def test_without_the_library(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(native, "ROOT", tmp_path)
    monkeypatch.setattr(native, "_BUILD", tmp_path / "build" / "cpp")
    assert native.main(["--work", str(tmp_path / "work")]) != 0
    message = "there is no build/cpp/libfopru_rt.so: build the C++ runtime with `make cpp`"
    assert message in capsys.readouterr().err
    assert not (tmp_path / "work" / "demo").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="ldd is of Linux")
def test_needed_libraries_by_name() -> None:
    needed = native.dependencies(Path(sys.executable).resolve())
    assert "libc.so.6" in needed
    assert not [name for name in needed if "/" in name or name.startswith("linux-vdso")]
