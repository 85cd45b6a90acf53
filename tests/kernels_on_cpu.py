"""What the tests of all CUDA kernels share: the GPU build's sources compiled for the CPU, where
`tests/cuda_on_cpu` stands in for CUDA, and for a GPU by nvcc."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

__all__ = ["KERNELS", "ROOT", "STRICT", "assert_cases", "assert_stands_alone", "compiled", "need", "ptxas"]

ROOT = Path(__file__).resolve().parent.parent
KERNELS = ROOT / "runtime" / "cpp" / "kernels"
STAND_IN = ROOT / "tests" / "cuda_on_cpu"
STRICT = ("-std=c++17", "-Wall", "-Wextra", "-Wpedantic", "-Werror")
_SANITIZERS = ("-O1", "-g1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")


def need(tool: str) -> None:
    """Skip the test where a compiler is missing."""
    if shutil.which(tool) is None:
        pytest.skip(f"{tool} is not installed: the kernels cannot be compiled by it")


def compiled(
    output: Path, *flags: str, sources: Sequence[str], programs: Sequence[str] = (), kernels: Path = KERNELS
) -> Path:
    """What g++ makes of `sources` of the kernels and `programs` of the stand-in, whose headers are CUDA's."""
    need("g++")
    files = [kernels / name for name in sources]
    files += [STAND_IN / name for name in ("controls.cpp", *programs)]  # an absolute path stays what it is
    # -Wno-unknown-pragmas: `#pragma unroll` is nvcc's
    command = ["g++", *STRICT, "-Wno-unknown-pragmas", *flags, f"-I{STAND_IN}", f"-I{kernels}"]
    command += ["-o", str(output), "-x", "c++", *map(str, files)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return output


def assert_cases(folder: Path, program: str, count: int, *flags: str, sources: Sequence[str]) -> None:
    """A program of the stand-in runs all its cases, and the sanitizers see nothing."""
    path = compiled(folder / "cases", *_SANITIZERS, *flags, sources=sources, programs=(program,))
    done = subprocess.run([path], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, f"{count} cases\n"), done.stdout + done.stderr


def assert_stands_alone(header: str) -> None:
    """A header compiles by itself, without CUDA."""
    need("g++")
    command = ["g++", *STRICT, "-fsyntax-only", f"-I{KERNELS}", "-x", "c++", "-"]
    done = subprocess.run(
        command, input=f'#include "{header}"\n', capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


def ptxas(source: str, architecture: str, output: Path) -> str:
    """What ptxas says about the kernels of a source; skip where there is no nvcc."""
    need("nvcc")
    flags = ["-std=c++17", f"-arch={architecture}", "-cubin", "-Xptxas", "-v", "-Werror", "all-warnings"]
    command = ["nvcc", *flags, "-o", str(output), str(KERNELS / source)]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr
