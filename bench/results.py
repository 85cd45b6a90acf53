"""Results: one JSON file per measurement, with every sample and the machine, and the table people read."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from bench.environment import ROOT, Environment
from bench.errors import BenchError

__all__ = ["RESULTS", "Result", "Table", "print_result", "read_result", "write_markdown", "write_result"]

RESULTS = ROOT / "bench" / "results"
FORMAT = 1
WIDTH = 132


@dataclass(frozen=True)
class Table:
    """What is printed: the first column is text, the others are aligned to the right."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.columns):
                raise BenchError(f"a table of {len(self.columns)} columns got a row of {len(row)}: {row}")


@dataclass(frozen=True)
class Result:
    """One measurement.

    `figures` are the numbers to quote, `samples` every round behind them, `notes` what a reader must know
    to read them.
    """

    name: str
    environment: Environment
    figures: dict[str, Any]
    samples: dict[str, Any] = field(default_factory=dict)
    tables: tuple[Table, ...] = ()
    notes: tuple[str, ...] = ()


def write_result(result: Result, directory: Path = RESULTS) -> Path:
    """Write `<name>.json` whole or not at all, and return its path."""
    directory.mkdir(parents=True, exist_ok=True)
    target = directory / f"{result.name}.json"
    partial = target.with_suffix(".partial")
    partial.write_text(json.dumps({"format": FORMAT} | asdict(result), indent=2, allow_nan=False) + "\n")
    partial.replace(target)
    return target


def read_result(path: Path) -> Result:
    """The result written at `path`.

    Raises:
        BenchError: there is no such file, or it has another format.
    """
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise BenchError(
            f"no result can be read from {path} ({error}): give a file of {RESULTS.relative_to(ROOT)}, or "
            "run the measurement that writes it"
        ) from error
    if not isinstance(content, dict) or content.pop("format", None) != FORMAT:
        raise BenchError(f"{path} is not a result of format {FORMAT}: run the measurement again")
    content["environment"] = Environment(**content["environment"])
    content["tables"] = tuple(
        Table(table["title"], tuple(table["columns"]), tuple(tuple(row) for row in table["rows"]))
        for table in content["tables"]
    )
    content["notes"] = tuple(content["notes"])
    return Result(**content)


def write_markdown(result: Result, directory: Path = RESULTS) -> Path:
    """Write `<name>.md`, for reading in the repository, and return its path."""
    target = directory / f"{result.name}.md"
    target.write_text(_markdown(result))
    return target


def _markdown(result: Result) -> str:
    """The tables, notes, machine and command of a result, as a page."""
    lines = []
    for table in result.tables:
        rows = [" | ".join(row) for row in (table.columns, ["---"] * len(table.columns), *table.rows)]
        lines += [f"# {table.title}", "", *(f"| {row} |" for row in rows), ""]
    about = result.environment
    versions = ", ".join(f"{name} {version}" for name, version in about.versions.items())
    lines += [
        *(f"- {note}" for note in result.notes),
        "",
        f"{about.cpu}, {about.cores} cores; {versions}.",
        "",
    ]
    lines += [f"`{about.command}`, {about.date}, commit {about.commit}.", ""]
    return "\n".join(lines)


def print_result(result: Result) -> None:
    """Tables, notes, then the machine and the command."""
    from rich.console import Console

    # Into a file or a pipe, rich assumes 80 columns and would cut the tables.
    console = Console(highlight=False, width=None if sys.stdout.isatty() else WIDTH)
    for table in result.tables:
        console.print(_rich_table(table))
    for note in result.notes:
        console.print(f"- {note}", markup=False)
    about = result.environment
    versions = ", ".join(f"{name} {version}" for name, version in about.versions.items())
    cores = f"{about.cores} cores" if about.threads is None else f"{about.threads} of {about.cores} cores"
    console.print(f"{about.cpu}, {cores}; {versions}", style="dim", markup=False)
    console.print(about.command, style="dim", markup=False)


def _rich_table(table: Table) -> Any:
    from rich.table import Table as RichTable

    drawn = RichTable(title=table.title, title_justify="left")
    for number, column in enumerate(table.columns):
        drawn.add_column(column, justify="right" if number else "left")
    _add_rows(drawn, table.rows)
    return drawn


def _add_rows(drawn: Any, rows: Sequence[tuple[str, ...]]) -> None:
    from rich.markup import escape

    for row in rows:
        drawn.add_row(*map(escape, row))  # a cell may hold brackets
