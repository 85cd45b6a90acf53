"""The size budgets that keep the code readable in an evening."""

from __future__ import annotations

from statistics import median

import pytest

from tests.sizes import PACKAGES, cpp_lines, module_lines

PRODUCT = tuple(package for package in PACKAGES if package != "tests")


@pytest.mark.parametrize("package", PRODUCT)
def test_no_module_over_500_lines(package: str) -> None:
    assert {path: n for path, n in module_lines(package).items() if n > 500} == {}


def test_median_module_is_short() -> None:
    sizes = [
        n
        for package in PRODUCT
        for path, n in module_lines(package).items()
        if not path.endswith("__init__.py")
    ]
    assert median(sizes) <= 150


def test_graph_passes_stay_under_300_lines() -> None:
    passes = {path: n for path, n in module_lines("fopru_graph").items() if "/passes/" in path}
    assert passes
    assert {path: n for path, n in passes.items() if n > 300} == {}


def test_test_files_stay_under_600_lines() -> None:
    assert {path: n for path, n in module_lines("tests").items() if n > 600} == {}


def test_cpp_files_stay_short() -> None:
    """Headers 200 lines, sources 400. The C interface is one file: what it promises is said nowhere else."""
    limits = {"runtime/cpp/include/fopru/fopru.h": 300}
    lines = cpp_lines()
    assert len(lines) > 100
    headers = (".h", ".hpp", ".cuh")
    long = {
        path: n for path, n in lines.items() if n > limits.get(path, 200 if path.endswith(headers) else 400)
    }
    assert long == {}
