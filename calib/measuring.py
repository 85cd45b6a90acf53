"""From a command's options to a measure: the work folder, the store, the workers, a bar on stderr.

with measuring(options, data, spec, parts, kept) as measure:
    records = measure(settings)
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from calib.errors import CalibError, OptionError, RunError
from calib.measure.spec import RunnerSpec
from calib.ratio.search import Measure
from calib.record import Record
from calib.run_options import RunOptions
from calib.settings import Setting
from runtime.backend import BackendOptions, create_backend
from runtime.lazy import require
from runtime.output import exit_code_of

if TYPE_CHECKING:
    from calib.data.sample import Data
    from calib.sweep import Sweep

__all__ = ["RESULTS", "measuring", "need_packages", "run_command", "say"]

RESULTS = "results.arrow"
_NEEDED = {"rich": "rich", "scipy.stats": "scipy", "pyarrow": "pyarrow"}
_REPORT_NEEDS = {"matplotlib": "matplotlib", "jinja2": "jinja2", "PIL": "pillow"}


def run_command(run: Callable[[list[Path]], int]) -> int:
    """The exit code of a command: what it returns, 2 after an error in one line on stderr, 130 after Ctrl-C.

    `run` is given a list for the file that keeps its results, once there is one.
    """
    return exit_code_of(lambda: _caught(run))


def need_packages(*, report: bool) -> None:
    """What would otherwise fail only after hours of measuring.

    Raises:
        BackendError: a package is not installed.
    """
    for module, package in (_NEEDED | (_REPORT_NEEDS if report else {})).items():
        require(module, package, "calib")


@contextmanager
def measuring(
    options: RunOptions, data: Data, spec: RunnerSpec, parts: Mapping[str, str], kept: list[Path]
) -> Iterator[Measure]:
    """A measure whose results are kept in `options.work`, each of its rounds with a line and a bar on stderr.

    Args:
        options: where results go, and who measures.
        data: the samples; skipped rows are said, and listed in a file.
        spec: how they are measured.
        parts: what makes results comparable, by name.
        kept: gets the path of the results.

    Raises:
        OptionError: the work folder is inside the data, or inside a bundle.
        BackendError: the backend, or Ray, is unknown or not installed.
        RunError: the work folder cannot be written.
        StoreError: it holds results that cannot be compared with these.
    """
    from calib.executors import make_executor
    from calib.store import ResultStore, store_key
    from calib.sweep import Sweep

    _check_work(options, spec)
    # What is not installed is refused before anything is written, or forgotten.
    create_backend(options.backend, BackendOptions(options.threads))
    if options.ray is not None:
        require("ray", "ray", "ray")
    executor = make_executor(options.workers, options.ray)
    _prepare(options, data)
    results = options.work / RESULTS
    opened = ResultStore(results, store_key(parts), parts, fresh=options.fresh)
    with opened as store, closing(executor):
        kept.append(results)
        sweep = Sweep(data, spec, store, executor)
        say(*store.notes, *sweep.notes)
        yield _with_a_bar(sweep)


def say(*lines: str) -> None:
    """On stderr, at once."""
    for line in lines:
        print(line, file=sys.stderr, flush=True)


def _caught(run: Callable[[list[Path]], int]) -> int:
    from calib.executors.base import WorkerError

    kept: list[Path] = []
    try:
        return run(kept)
    except (CalibError, WorkerError) as error:
        say(f"error: {error}")
        return 2
    except KeyboardInterrupt:
        if kept:
            say(f"stopped: what was measured is kept in {kept[0]}, run again to go on")
        else:
            say("stopped: nothing new was measured")
        return 130


def _check_work(options: RunOptions, spec: RunnerSpec) -> None:
    """Plots among the pictures would be data of the next run, and a bundle holds what its manifest lists."""
    work = options.work.resolve()
    for what, folder in (("data", options.data), *(("bundle", path) for _, path in spec.bundles)):
        if folder.is_dir() and work.is_relative_to(folder.resolve()):
            raise OptionError(
                f"results would be written to {options.work}, which is inside the {what}: give another "
                "folder with --work"
            )


def _prepare(options: RunOptions, data: Data) -> None:
    """The work folder, with what was skipped."""
    from calib.data.skipped import list_skipped

    try:
        options.work.mkdir(parents=True, exist_ok=True)
        lines = list_skipped(data, options.work)
    except OSError as error:
        raise RunError(
            f"{options.work} cannot be written ({error.strerror or error}): give another folder with --work"
        ) from error
    say(*lines)


def _with_a_bar(sweep: Sweep) -> Measure:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("left"),
        TimeRemainingColumn(),
    )  # fmt: skip

    def measure(settings: Sequence[Setting]) -> Sequence[Record]:
        ratios = sorted({setting.ratio for setting in settings if setting.ratio < 1.0}, reverse=True)
        samples = len(sweep.data.samples)
        say(f"{samples} samples x {len(settings)} settings, ratios {', '.join(f'{r:g}' for r in ratios)}")
        with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
            row = bar.add_task("answers", total=samples * len(settings))
            return sweep.measure(settings, lambda done, total: bar.update(row, completed=done, total=total))

    return measure
