"""`python -m calib.ratio BUNDLE --data DIR`: how low can the ratio go on your own pictures?"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from calib.bundle_default import check_writable, write_default
from calib.calibrate import Task, calibrate, key_parts
from calib.errors import CalibError, RunError
from calib.options import RatioOptions, parse_options
from calib.ratio_output import WIDE, pick_lines, skipped_lines, study_json, study_table
from calib.record import Record
from calib.search import Measure
from calib.settings import Setting
from calib.study import Study
from runtime.bundle import load_bundle
from runtime.lazy import require
from runtime.output import exit_code_of, write_whole

if TYPE_CHECKING:
    from calib.sweep import Sweep

__all__ = ["main"]

RESULTS = "results.arrow"
SUMMARY = "calibration.json"
SKIPPED = "skipped.txt"
_NEEDED = {"rich": "rich", "scipy.stats": "scipy", "pyarrow": "pyarrow"}
_REPORT_NEEDS = {"matplotlib": "matplotlib", "jinja2": "jinja2", "PIL": "pillow"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit codes: 0 a ratio was picked, 1 nothing meets the limits, 2 an error in one line on stderr, 130
    Ctrl-C, 141 the reader of stdout left."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    return exit_code_of(lambda: _main(words))


def _main(words: Sequence[str]) -> int:
    from calib.executors.base import WorkerError

    kept: list[Path] = []  # the results, once there are some
    try:
        return _run(parse_options(words), shlex.join(["python", "-m", "calib.ratio", *words]), kept)
    except (CalibError, WorkerError) as error:
        _say(f"error: {error}")
        return 2
    except KeyboardInterrupt:
        if kept:
            _say(f"stopped: what was measured is kept in {kept[0]}, run again to go on")
        else:
            _say("stopped: nothing was measured yet")
        return 130


def _run(options: RatioOptions, command: str, kept: list[Path]) -> int:
    from calib.data import open_data
    from calib.executors import make_executor
    from calib.store import ResultStore, store_key
    from calib.sweep import Sweep

    # What would otherwise fail only after hours of measuring comes first.
    for module, package in (_NEEDED | (_REPORT_NEEDS if options.report else {})).items():
        require(module, package, "calib")
    bundle = load_bundle(options.bundle)
    if not options.dry_run:
        check_writable(options.bundle)
    data = open_data(options.data, options.prompts, options.prompt, options.samples, options.seed)
    task = Task(options, command, bundle, data)
    results = options.work / RESULTS
    try:
        options.work.mkdir(parents=True, exist_ok=True)
        (options.work / SKIPPED).unlink(missing_ok=True)
        if data.skipped:
            lines = [f"{row.where}: {row.reason}\n" for row in data.skipped]
            write_whole(options.work / SKIPPED, "".join(lines).encode())
        if options.fresh:
            results.unlink(missing_ok=True)
    except OSError as error:
        raise RunError(
            f"{options.work} cannot be written ({error.strerror or error}): give another folder with --work"
        ) from error
    _say(*skipped_lines(data.skipped, len(data.samples), str(options.work / SKIPPED)))
    parts = key_parts(task)
    executor = make_executor(options.workers, options.ray)
    with ResultStore(results, store_key(parts), parts) as store, closing(executor):
        kept.append(results)
        sweep = Sweep(data, task.spec, store, executor)
        _say(*store.notes, *sweep.notes)
        study = calibrate(task, _measuring(task, sweep))
    return _finish(task, study)


def _measuring(task: Task, sweep: Sweep) -> Measure:
    """Rounds of a search, each with a line and a bar on stderr."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("left"),
        TimeRemainingColumn(),
    )  # fmt: skip

    def measure(settings: Sequence[Setting]) -> Sequence[Record]:
        ratios = sorted({setting.ratio for setting in settings if setting.ratio < 1.0}, reverse=True)
        samples = len(task.data.samples)
        _say(f"{samples} samples x {len(settings)} settings, ratios {', '.join(f'{r:g}' for r in ratios)}")
        with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
            row = bar.add_task("answers", total=samples * len(settings))
            return sweep.measure(settings, lambda done, total: bar.update(row, completed=done, total=total))

    return measure


def _finish(task: Task, study: Study) -> int:
    """Show first: a report that cannot be written does not take the answer back."""
    options, pick = task.options, study.pick
    ratio = None if pick is None or options.dry_run else pick.setting.ratio
    if not options.json:
        _show(study)
    if ratio is not None:
        write_default(options.bundle, ratio)
    report = None
    if options.report:
        from calib.report import Pictures, write_report

        pictures = Pictures(options.bundle, options.backend, options.threads)
        report = str(write_report(options.work, study, pictures))
    text = study_json(study, default_ratio=ratio, report=report, results=str(options.work / RESULTS))
    write_whole(options.work / SUMMARY, text.encode())
    if options.json:
        print(text, end="", flush=True)
    else:
        print("\n".join(_endings(task, ratio, report)), flush=True)
    return 0 if pick is not None else 1


def _show(study: Study) -> None:
    from rich.console import Console

    console = Console(width=None if sys.stdout.isatty() else WIDE)
    console.print(study_table(study, console.width))
    lines = ["nothing was picked"] if study.pick is None else pick_lines(study.pick)
    print("\n".join([*lines, *(f"  note: {note}" for note in study.notes)]), flush=True)


def _endings(task: Task, ratio: float | None, report: str | None) -> list[str]:
    options, pruning = task.options, task.bundle.manifest.pruning
    if ratio is not None:
        before = pruning.default_tokens if pruning.default_ratio is None else f"{pruning.default_ratio:g}"
        lines = [f"{options.bundle} now keeps {ratio:g} by default (before: {before})"]
    else:
        lines = [f"{options.bundle} is as it was"]
    if report is not None:
        lines.append(f"report: {report}")
    return [*lines, f"all measurements: {options.work / RESULTS}"]


def _say(*lines: str) -> None:
    for line in lines:
        print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
