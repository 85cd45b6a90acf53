"""Tables and JSON on stdout."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from fopru_graph.inspection import Port
from fopru_graph.shapes import Dim

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["port_text", "print_facts", "print_json", "print_table", "sizes_text"]

_PIPE_WIDTH = 160  # rich takes 80 columns where there is no terminal, and long node names need more
_STYLES = {"note": "yellow", "hint": "cyan", "warning": "yellow", "error": "red", "no": "red"}


def print_json(content: dict[str, Any]) -> None:
    """One JSON object."""
    print(json.dumps(content, indent=2, ensure_ascii=False))


def print_facts(title: str, rows: Iterable[tuple[str, str]]) -> None:
    """Names and values below a title; a row without a name goes on with the one above it."""
    from rich.table import Table
    from rich.text import Text

    drawn = Table.grid(padding=(0, 2))
    drawn.add_column(no_wrap=True)
    drawn.add_column(overflow="fold")
    for name, value in rows:
        # As it is: names of nodes hold brackets, which rich would read as markup.
        drawn.add_row(Text(name, style=_STYLES.get(name, "bold")), Text(value, style=_STYLES.get(name, "")))
    console = _console()
    console.print(Text(title, style="bold underline"))
    console.print(drawn)
    console.print()


def print_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Rows under column names."""
    from rich.table import Table
    from rich.text import Text

    drawn = Table(title=Text(title, style="bold"), title_justify="left")
    for column in columns:
        drawn.add_column(column, overflow="fold")
    for row in rows:
        drawn.add_row(*(Text(cell, style=_STYLES.get(cell, "")) for cell in row))
    console = _console()
    console.print(drawn)
    console.print()


def port_text(port: Port) -> str:
    """`pixel_values float32 [images, 3, 336, 336]`."""
    return f"{port.name} {port.dtype} {sizes_text(port.dims)}"


def sizes_text(sizes: Sequence[Dim] | None) -> str:
    """`[images, 3, 336, 336]`; `?` is a size that nobody named."""
    if sizes is None:
        return "of unknown shape"
    return f"[{', '.join('?' if size is None else str(size) for size in sizes)}]"


def _console() -> Console:
    from rich.console import Console

    class Honest(Console):
        """Leaves a reader that left to `main`; rich would end the process with exit code 1."""

        def on_broken_pipe(self) -> None:
            raise BrokenPipeError

    return Honest(width=None if sys.stdout.isatty() else _PIPE_WIDTH, highlight=False)
