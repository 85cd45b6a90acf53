"""Docs: links resolve, commands name modules and targets that exist, and the README's Python runs."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ELSEWHERE = {
    ".git",
    ".venv",
    "bundles",
    "build",
    ".mypy_cache",
    ".ruff_cache",
    ".pytest_cache",
    ".hypothesis",
    ".work",
}
PAGES = sorted(p for p in ROOT.rglob("*.md") if not ELSEWHERE & set(p.relative_to(ROOT).parts))


@pytest.mark.parametrize("page", PAGES, ids=[str(p.relative_to(ROOT)) for p in PAGES])
def test_links_resolve(page: Path) -> None:
    targets = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text())
    assert re.findall(r"@[A-Z]+@", page.read_text()) == []  # a figure still to be filled in
    broken = [t for t in targets if "://" not in t and not (page.parent / t).exists()]
    assert broken == []


@pytest.mark.parametrize("page", PAGES, ids=[str(p.relative_to(ROOT)) for p in PAGES])
def test_commands_name_things_that_exist(page: Path) -> None:
    text = page.read_text()
    packages = "export|runtime|fopru_graph|calib|demo|bench|tests"
    modules = set(re.findall(rf"python -m ((?:{packages})[\w.]*)", text))
    missing = [name for name in modules if importlib.util.find_spec(name.rstrip(".")) is None]
    assert missing == []
    targets = set(re.findall(r"`make ([a-z0-9-]+)", text)) | set(
        re.findall(r"^make ([a-z0-9-]+)", text, re.MULTILINE)
    )
    known = set(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert targets - known == set()


def test_no_file_speaks_of_where_it_was_written() -> None:
    # an absolute path of somebody's machine is useless to everybody else
    pattern = re.compile(r"(?<![\w.])/(?:home|root|work|Users)/\w")
    suffixes = {".py", ".md", ".toml", ".txt", ".json", ""}
    found = [
        f"{path.relative_to(ROOT)}: {line.strip()[:80]}"
        for path in ROOT.rglob("*")
        if path.is_file() and path.suffix in suffixes and not ELSEWHERE & set(path.relative_to(ROOT).parts)
        for line in path.read_text(errors="ignore").splitlines()
        if pattern.search(line)
    ]
    assert found == []
