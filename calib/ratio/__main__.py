"""`python -m calib.ratio BUNDLE --data DIR`: how low can the ratio go on your own pictures?"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from calib.bundle_default import check_writable, default_text, write_default
from calib.measuring import RESULTS, measuring, need_packages, run_command
from calib.ratio.calibrate import Task, calibrate, key_parts
from calib.ratio.options import RatioOptions, parse_options
from calib.ratio.output import WIDE, pick_lines, study_json, study_table
from calib.study import Study
from runtime.bundle import load_bundle
from runtime.output import write_whole

__all__ = ["main"]

SUMMARY = "calibration.json"


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit codes: 0 a ratio was picked, 1 nothing meets the limits, 2 an error in one line on stderr, 130
    Ctrl-C, 141 the reader of stdout left."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    command = shlex.join(["python", "-m", "calib.ratio", *words])
    return run_command(lambda kept: _run(parse_options(words), command, kept))


def _run(options: RatioOptions, command: str, kept: list[Path]) -> int:
    from calib.data import open_data

    need_packages(report=options.report)
    bundle = load_bundle(options.bundle)
    if not options.dry_run:
        check_writable(options.bundle)
    data = open_data(options.data, options.prompts, options.prompt, options.samples, options.seed)
    task = Task(options, command, bundle, data)
    with measuring(options, data, task.spec, key_parts(task), kept) as measure:
        study = calibrate(task, measure)
    return _finish(task, study)


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
        lines = [f"{options.bundle} now keeps {ratio:g} by default (before: {default_text(pruning)})"]
    else:
        lines = [f"{options.bundle} is as it was"]
    if report is not None:
        lines.append(f"report: {report}")
    return [*lines, f"all measurements: {options.work / RESULTS}"]


if __name__ == "__main__":
    sys.exit(main())
