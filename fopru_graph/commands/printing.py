"""Tables and JSON on stdout."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from typing import Any

__all__ = ["facts", "print_json", "table"]

_PIPE_WIDTH = 120  # rich assumes 80 columns where there is no terminal, and would cut tables


def print_json(content: dict[str, Any]) -> None:
    """One JSON object."""
    print(json.dumps(content, indent=2, ensure_ascii=False))


def facts(title: str, rows: Iterable[tuple[str, str]]) -> None:
    """Names and values, one per line."""
    from rich.table import Table
    from rich.text import Text

    drawn = Table.grid(padding=(0, 2))
    drawn.add_column(style="bold", no_wrap=True)
    drawn.add_column()
    for name, value in rows:
        drawn.add_row(name, Text(value))  # as it is: names of nodes hold brackets
    console = _console()
    console.print(Text(title, style="bold underline"))
    console.print(drawn)


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Rows under column names."""
    from rich.table import Table
    from rich.text import Text

    drawn = Table(title=Text(title), title_justify="left")
    for column in columns:
        drawn.add_column(column, overflow="fold")
    for row in rows:
        drawn.add_row(*(Text(cell) for cell in row))
    _console().print(drawn)


def _console() -> Any:
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else _PIPE_WIDTH, highlight=False)
