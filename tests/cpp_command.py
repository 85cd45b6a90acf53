"""Runs the command line `fopru` of runtime/cpp in tests, with the ONNX Runtime of this Python."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import onnxruntime

from tests.cpp_build import cpp_tool

__all__ = ["cpp_environment", "fopru", "fopru_json"]


def cpp_environment() -> dict[str, str]:
    """The environment with FOPRU_ORT_LIB, so that both runtimes use one library."""
    folder = Path(onnxruntime.__file__).parent / "capi"
    return {**os.environ, "FOPRU_ORT_LIB": str(folder)}


def fopru(*args: str, text: str = "") -> subprocess.CompletedProcess[str]:
    """`fopru` with these arguments, and `text` on its stdin."""
    command = [str(cpp_tool("fopru")), *args]
    return subprocess.run(
        command,
        input=text,
        capture_output=True,
        encoding="utf-8",
        env=cpp_environment(),
        check=False,
        timeout=60,
    )


def fopru_json(*args: str) -> dict[str, Any]:
    """What `fopru ... --json` prints."""
    done = fopru(*args, "--json")
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    record: dict[str, Any] = json.loads(done.stdout)
    return record
