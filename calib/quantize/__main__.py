"""`python -m calib.quantize BUNDLE --precision vision=int8,decoder=int4 --data DIR`: fewer bits, with scales
from your own pictures."""

from __future__ import annotations

import errno
import shlex
import sys
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from calib.errors import CalibError
from runtime.lazy import require
from runtime.output import exit_code_of, write_whole

if TYPE_CHECKING:
    from calib.quantize.options import QuantizeOptions
    from calib.quantize.run import Outcome
    from calib.quantize.task import Task

__all__ = ["main"]

SUMMARY = "quantize.json"
WIDE = 100  # columns of a table that goes to a file
_NEEDED = {"rich": "rich", "onnx_ir": "onnx-ir", "ml_dtypes": "ml_dtypes", "onnxruntime": "onnxruntime"}
_Progress: TypeAlias = Callable[[str, int, int], None]


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit codes: 0 the bundle is written, 1 it is, and below what was asked for, 2 an error in one line on
    stderr, 130 Ctrl-C, 141 the reader of stdout left."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    return exit_code_of(lambda: _main(words))


def _main(words: Sequence[str]) -> int:
    for module, package in _NEEDED.items():
        require(module, package, "calib")
    from calib.quantize.options import parse_options
    from fopru_graph.errors import GraphError

    kept: list[Path] = []  # where work lies, once there is some
    try:
        return _run(parse_options(words), kept)
    except (CalibError, GraphError) as error:
        _say(f"error: {error}")
        return 2
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT) or not kept:
            raise
        _say(
            f"error: the disk is full while {kept[0]} is written: free some space, or give --work on another "
            "disk; what was done is kept"
        )
        return 2
    except KeyboardInterrupt:
        if kept:
            _say(f"stopped: what was done is kept in {kept[0]}, run again to go on")
        else:
            _say("stopped: nothing was done yet")
        return 130


def _run(options: QuantizeOptions, kept: list[Path]) -> int:
    from calib.bundle_writer import BundleWriter
    from calib.data import open_data
    from calib.data.skipped import list_skipped
    from calib.quantize.report import outcome_text
    from calib.quantize.run import quantise
    from calib.quantize.task import open_task
    from runtime.bundle import load_bundle

    bundle = load_bundle(options.bundle)
    BundleWriter(options.output)  # what cannot be written is said before hours of work
    data = open_data(options.data, options.prompts, options.prompt, options.samples, options.seed)
    task = open_task(options, bundle, data)
    with task.memory.begin(fresh=options.fresh):
        kept.append(task.memory.folder)
        _say(*list_skipped(data, task.memory.folder))
        with _bar() as progress:
            outcome = quantise(task, _command(task), _say, progress)
        text = outcome_text(outcome)
        write_whole(task.memory.folder / SUMMARY, text.encode())
    if options.json:
        print(text, end="", flush=True)
    else:
        _show(outcome)
    return 1 if outcome.failures else 0


def _command(task: Task) -> str:
    """What made the bundle, without where it was written and where work was kept."""
    options = task.options
    words: list[object] = ["python", "-m", "calib.quantize", options.bundle.name]
    words += ["--precision", options.text, "--data", options.data.name, "--samples", options.samples]
    words += ["--ratio", task.ratio]
    words += ["--ranges", options.ranges.text(), "--keep-float", ",".join(options.keep_float)]
    words += ["--min-cosine", options.min_cosine, "--seed", options.seed]
    words += [] if options.target is None else ["--target", options.target]
    words += ["--prompt", options.prompt] if options.prompts is None else ["--prompts", options.prompts.name]
    words += [] if options.awq else ["--no-awq"]
    return shlex.join(str(word) for word in words)


def _show(outcome: Outcome) -> None:
    from rich.console import Console

    from calib.quantize.report import group_table, outcome_lines, part_table

    console = Console(width=None if sys.stdout.isatty() else WIDE)
    groups = group_table(outcome)
    for table in (*([groups] if groups is not None else []), part_table(outcome)):
        console.print(table)
    print("\n".join(outcome_lines(outcome)), flush=True)


@contextmanager
def _bar() -> Generator[_Progress]:
    """A bar on stderr, where that is a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        row = bar.add_task("", total=None)

        def progress(what: str, done: int, total: int) -> None:
            bar.update(row, description=what, completed=done, total=total)

        yield progress


def _say(*lines: str) -> None:
    for line in lines:
        print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
