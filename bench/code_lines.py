"""Lines of Python: how long a file is, and how much of it is code."""

from __future__ import annotations

import ast
from pathlib import Path

__all__ = ["code_lines"]


def code_lines(file: Path) -> tuple[int, int]:
    """(lines of the file, lines of code: neither blank nor comment nor docstring)."""
    text = file.read_text(encoding="utf-8")
    lines = text.splitlines()
    documented: set[int] = set()
    for node in ast.walk(ast.parse(text)):
        if (
            isinstance(node, ast.Expr)
            and isinstance(node.value, ast.Constant)
            and isinstance(node.value.value, str)
        ):
            documented.update(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    code = [
        number
        for number, line in enumerate(lines, start=1)
        if number not in documented and line.strip() and not line.lstrip().startswith("#")
    ]
    return len(lines), len(code)
