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


def main() -> None:
    for package in PACKAGES:
        lines = module_lines(package)
        largest = max(lines, key=lines.__getitem__)
        print(
            f"{package:12} {sum(lines.values()):6} lines in {len(lines):3} modules, "
            f"median {median(lines.values()):.0f}, largest {largest} {lines[largest]}"
        )


if __name__ == "__main__":
    main()
