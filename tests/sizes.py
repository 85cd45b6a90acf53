"""Print lines per package and the largest modules: `python -m tests.sizes`, the end of `make check`."""

from __future__ import annotations

from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("export", "fopru_graph", "calib", "runtime", "demo", "bench", "tests")


def module_lines(package: str) -> dict[str, int]:
    """Lines of every Python module of one package, by path from the repository root."""
    files = sorted((ROOT / package).rglob("*.py"))
    return {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in files}


def cpp_lines() -> dict[str, int]:
    """Lines of every C++, C and CUDA file, by path from the repository root."""
    kinds = {".h", ".hpp", ".cpp", ".c", ".cu", ".cuh"}
    files = sorted(path for top in ("runtime/cpp", "examples") for path in (ROOT / top).rglob("*.*"))
    return {
        str(path.relative_to(ROOT)): len(path.read_text(encoding="utf-8").splitlines())
        for path in files
        if path.suffix in kinds
    }


def main() -> None:
    for package in PACKAGES:
        lines = module_lines(package)
        largest = max(lines, key=lines.__getitem__)
        print(
            f"{package:12} {sum(lines.values()):6} lines in {len(lines):3} modules, "
            f"median {median(lines.values()):.0f}, largest {largest} {lines[largest]}"
        )
    for name, tests in (("C++", False), ("C++ tests", True)):
        lines = {path: n for path, n in cpp_lines().items() if ("/tests/" in path) == tests}
        largest = max(lines, key=lines.__getitem__)
        print(
            f"{name:12} {sum(lines.values()):6} lines in {len(lines):3} files, "
            f"median {median(lines.values()):.0f}, largest {largest} {lines[largest]}"
        )


if __name__ == "__main__":
    main()
