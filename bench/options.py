"""Command-line options that every measurement has."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from bench.environment import usable_cores
from bench.errors import BenchError
from bench.results import RESULTS, Result, print_result, write_result
from bench.workspace import DEFAULT_WORK, Workspace

__all__ = ["Settings", "add_common_options", "report", "run_script", "settings_from", "status"]


@dataclass(frozen=True)
class Settings:
    """Where to work, where to write, and how long to measure."""

    workspace: Workspace
    results: Path
    threads: int
    rounds: int
    warmup: int


def add_common_options(parser: argparse.ArgumentParser, *, rounds: int | None) -> None:
    """`--work`, `--results`, `--threads`; and `--rounds`, `--warmup` unless `rounds` is None."""
    parser.add_argument(
        "--work", type=Path, default=DEFAULT_WORK, help="checkpoints and bundles (default: bundles/bench)"
    )
    parser.add_argument(
        "--results", type=Path, default=RESULTS, help="where JSON is written (default: bench/results)"
    )
    parser.add_argument("--threads", type=int, default=usable_cores(), help="default: every usable core")
    if rounds is None:
        parser.set_defaults(rounds=1, warmup=0)
        return
    parser.add_argument("--rounds", type=int, default=rounds, help=f"measured rounds (default {rounds})")
    parser.add_argument("--warmup", type=int, default=1, help="rounds run first and thrown away (default 1)")


def settings_from(options: argparse.Namespace) -> Settings:
    """Checked settings of a parsed command line.

    Raises:
        BenchError: fewer than one thread.
    """
    if options.threads < 1:
        raise BenchError(f"threads is {options.threads}: give at least 1")
    return Settings(Workspace(options.work), options.results, options.threads, options.rounds, options.warmup)


def status(line: str) -> None:
    """Progress, on stderr so that stdout holds only the result."""
    print(f"  {line}", file=sys.stderr, flush=True)


def report(result: Result, settings: Settings) -> None:
    """Write the JSON and print the tables."""
    print_result(result, write_result(result, settings.results))


def run_script(
    parser: argparse.ArgumentParser, body: Callable[[argparse.Namespace], None], arguments: list[str] | None
) -> int:
    """Parse, run `body`, and turn a `BenchError` into one line and status 2."""
    try:
        body(parser.parse_args(arguments))
    except BenchError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0
