"""Command-line options that every measurement has."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from bench.environment import usable_cores
from bench.errors import BenchError
from bench.results import RESULTS, Result, print_result, write_result
from bench.workspace import DEFAULT_WORK, Workspace
from calib.errors import CalibError
from export.errors import ExportError
from runtime.errors import FopruError

__all__ = ["Settings", "add_common_options", "report", "run_script", "settings_from", "status"]


@dataclass(frozen=True)
class Settings:
    """Where to work, where to write, and how long to measure."""

    workspace: Workspace
    results: Path
    threads: int
    rounds: int
    warmup: int


def add_common_options(parser: argparse.ArgumentParser, *, rounds: int | None, timed: bool = True) -> None:
    """`--work`, `--results`; `--rounds` unless `rounds` is None; `--threads`, `--warmup` where they apply.

    Args:
        rounds: the default number of rounds; None where nothing is repeated.
        timed: whether this process runs what is measured, so that threads can be set and rounds warm up.
    """
    parser.add_argument(
        "--work", type=Path, default=DEFAULT_WORK, help="checkpoints and bundles (default: bundles/bench)"
    )
    parser.add_argument(
        "--results", type=Path, default=RESULTS, help="where JSON is written (default: bench/results)"
    )
    parser.set_defaults(threads=usable_cores(), rounds=1, warmup=0)
    if timed:
        parser.add_argument("--threads", type=int, help="default: every usable core")
    if rounds is not None:
        parser.add_argument("--rounds", type=int, default=rounds, help=f"measured rounds (default {rounds})")
        if timed:
            parser.add_argument(
                "--warmup", type=int, default=1, help="rounds run first and thrown away (default 1)"
            )


def settings_from(options: argparse.Namespace) -> Settings:
    """Checked settings of a parsed command line: what is wrong is said before anything is built or measured.

    Raises:
        BenchError: fewer than one thread or round, a negative warm-up, or nowhere to write results.
    """
    if options.threads < 1:
        raise BenchError(f"threads is {options.threads}: give at least 1")
    if options.rounds < 1 or options.warmup < 0:
        raise BenchError(
            f"rounds is {options.rounds} and warmup {options.warmup}: "
            "measure at least 1 round after 0 or more"
        )
    _check_writable(options.results)
    return Settings(Workspace(options.work), options.results, options.threads, options.rounds, options.warmup)


def status(line: str) -> None:
    """Progress, on stderr so that stdout holds only the result."""
    print(f"  {line}", file=sys.stderr, flush=True)


def report(result: Result, settings: Settings) -> None:
    """Print the tables, then write the JSON: a disk that fails costs the file only."""
    print_result(result)
    sys.stdout.flush()
    status(f"written: {write_result(result, settings.results)}")


def run_script(
    parser: argparse.ArgumentParser, body: Callable[[argparse.Namespace], None], arguments: list[str] | None
) -> int:
    """Parse, run `body`, and turn what went wrong into one line on stderr and status 2."""
    try:
        body(parser.parse_args(arguments))
    except (BenchError, CalibError, ExportError, FopruError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


def _check_writable(directory: Path) -> None:
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BenchError(f"results cannot be written: {error}; give another --results") from error
    if not os.access(directory, os.W_OK):
        raise BenchError(f"results cannot be written to {directory}: give another --results")
