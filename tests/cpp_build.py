"""Builds targets of runtime/cpp for tests: `cpp_tool("probe_text")` is the path of the program.

Built target by target in build/cpp, or where FOPRU_CPP_BUILD says. Where the compiler or a header is missing
the test is skipped with what to install; with FOPRU_REQUIRE_CPP=1, as in CI, it fails instead.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

import pytest

__all__ = ["SOURCE", "aarch64_tool", "ask", "build_folder", "cpp_tool", "need_cpp", "python_module"]

SOURCE = Path(__file__).parent.parent / "runtime" / "cpp"
_NEEDED = {
    "nlohmann/json.hpp": "nlohmann-json3-dev",
    "doctest/doctest.h": "doctest-dev",
    "jpeglib.h": "libjpeg62-turbo-dev",
    "pcre2.h": "libpcre2-dev",
    "utf8proc.h": "libutf8proc-dev",
    "zlib.h": "zlib1g-dev",
}
_OPTIONS = ("-DFOPRU_BUILD_TESTS=ON", "-DFOPRU_BUILD_CLI=ON", "-DFOPRU_WERROR=ON")
_MODULE = "python_module"
_configured: set[tuple[Path, str]] = set()  # by this process


def build_folder(sanitize: str = "") -> Path:
    """Where a configuration is built; `sanitize` as in `cpp_tool`."""
    root = Path(os.environ.get("FOPRU_CPP_BUILD", SOURCE.parent.parent / "build" / "cpp"))
    return root.with_name(root.name + "-" + sanitize.replace(",", "-")) if sanitize else root


@functools.cache
def cpp_tool(name: str, sanitize: str = "") -> Path:
    """The program of a target of runtime/cpp, built if it is older than its sources.

    Args:
        name: a target, such as `probe_text`, `fopru_tests`, `fopru`, or `fopru_rt` (the shared library).
        sanitize: sanitizers of the whole build: "", "address,undefined" or "thread".

    Raises:
        RuntimeError: it does not build; the message is the compiler's.
    """
    need_cpp()
    folder = build_folder(sanitize)
    with _locked(folder):
        _configure(folder, sanitize)
        _run(["cmake", "--build", str(folder), "--target", name])
    places = [folder / part / name for part in ("tests", "cli", "fuzz", "examples", "tests/doubles", ".")]
    places.append(folder / f"lib{name}.so")
    found = next((place for place in places if place.is_file()), None)
    if found is None:
        raise RuntimeError(f"cmake built {name}, but it is not in {', '.join(map(str, places))}")
    return found


@functools.cache
def aarch64_tool(name: str) -> Path:
    """The program of a target of runtime/cpp for aarch64, in build/aarch64 as `make cpp-aarch64` does.

    The caller looks for the compiler and qemu.

    Raises:
        RuntimeError: it does not build; the message is the compiler's.
    """
    folder = build_folder().with_name("aarch64")
    toolchain = SOURCE / "cmake" / "aarch64-linux-gnu.cmake"
    options = [*_OPTIONS, f"-DCMAKE_TOOLCHAIN_FILE={toolchain}", "-DCMAKE_BUILD_TYPE=Release"]
    with _locked(folder):
        _run(["cmake", "-S", str(SOURCE), "-B", str(folder), *_generator(folder), *options])
        _run(["cmake", "--build", str(folder), "--target", name])
    return next(folder / part / name for part in ("tests", "cli") if (folder / part / name).is_file())


@functools.cache
def python_module() -> Path:
    """The folder of the extension module `_fopru_native`, built for this Python."""
    need_cpp()
    if importlib.util.find_spec("nanobind") is None:
        _unavailable("install nanobind (pip)")
    folder = build_folder()
    with _locked(folder):
        _configure(folder, "")
        _run(["cmake", "--build", str(folder), "--target", "fopru_native"])
    return folder / _MODULE


def ask(tool: Path, requests: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Give a probe one JSON object per line; its replies, each with `value` or `error`."""
    lines = "".join(json.dumps(request) + "\n" for request in requests)
    done = subprocess.run([str(tool)], input=lines.encode(), capture_output=True, check=False)
    replies = [json.loads(line) for line in done.stdout.split(b"\n") if line]
    if done.returncode != 0 or len(replies) != len(requests):
        last = requests[min(len(replies), len(requests) - 1)]
        raise RuntimeError(
            f"{tool.name} ended with {done.returncode} at {str(last)[:500]}:\n{done.stderr.decode()[-4000:]}"
        )
    return replies


def need_cpp() -> None:
    """Skip the test where runtime/cpp cannot be built, saying what is missing."""
    missing = _missing()
    if missing:
        _unavailable(missing)


def _unavailable(missing: str) -> NoReturn:
    if os.environ.get("FOPRU_REQUIRE_CPP") == "1":
        pytest.fail(f"runtime/cpp cannot be built here, and FOPRU_REQUIRE_CPP=1: {missing}")
    pytest.skip(f"runtime/cpp cannot be built here: {missing}")


@functools.cache
def _missing() -> str:
    tools = [tool for tool in ("cmake", "c++") if shutil.which(tool) is None]
    if tools:
        return f"install {', '.join(tools)}"
    absent = [package for header, package in _NEEDED.items() if not _has_header(header)]
    return f"install {' '.join(absent)} (names of Debian)" if absent else ""


def _has_header(name: str) -> bool:
    command = ["c++", "-E", "-x", "c++", "-"]
    source = (
        f"#include <{name}>\n"
        if name != "pcre2.h"
        else "#define PCRE2_CODE_UNIT_WIDTH 8\n#include <pcre2.h>\n"
    )
    return subprocess.run(command, input=source.encode(), capture_output=True, check=False).returncode == 0


def _configure(folder: Path, sanitize: str) -> None:
    if (folder, sanitize) in _configured:
        return
    options = [
        *_OPTIONS,
        f"-DFOPRU_SANITIZE={sanitize}",
        "-DCMAKE_BUILD_TYPE=" + ("RelWithDebInfo" if sanitize else "Release"),
    ]
    if not sanitize and importlib.util.find_spec("nanobind") is not None:
        options += ["-DFOPRU_BUILD_PYTHON=ON", f"-DPython_EXECUTABLE={sys.executable}"]
        options += [f"-DFOPRU_PYTHON_OUTPUT={folder / _MODULE}"]
    _run(["cmake", "-S", str(SOURCE), "-B", str(folder), *_generator(folder), *options])
    _configured.add((folder, sanitize))


def _generator(folder: Path) -> list[str]:
    fresh = not (folder / "CMakeCache.txt").is_file()
    return ["-G", "Ninja"] if fresh and shutil.which("ninja") else []


def _run(command: list[str]) -> None:
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stdout[-6000:]}")


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """One build at a time in a folder, over processes: pytest may run in several."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_name(folder.name + ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


if __name__ == "__main__":
    for target in sys.argv[1:]:
        print(cpp_tool(target), flush=True)
