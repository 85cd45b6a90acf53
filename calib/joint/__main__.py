"""`python -m calib.joint BUNDLE OTHER... --data DIR`: which precision at which ratio, on your pictures?"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from calib.bundle_default import check_writable, default_text, write_default
from calib.joint.options import JointOptions, parse_joint_options
from calib.measuring import RESULTS, measuring, need_packages, run_command
from runtime.bundle import load_bundle
from runtime.output import write_whole

if TYPE_CHECKING:
    from calib.joint.study import JointStudy

__all__ = ["main"]

SUMMARY = "joint.json"


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit codes: 0 something was picked, 1 nothing meets the limits, 2 an error in one line on stderr, 130
    Ctrl-C, 141 the reader of stdout left."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    command = shlex.join(["python", "-m", "calib.joint", *words])
    return run_command(lambda kept: _run(parse_joint_options(words), command, kept))


def _run(options: JointOptions, command: str, kept: list[Path]) -> int:
    from calib.data import open_data
    from calib.joint.bundles import variants_of
    from calib.joint.study import JointTask, study_jointly
    from calib.ratio.calibrate import check_labelled

    need_packages(report=options.report)
    bundles = [load_bundle(path) for path in (options.bundle, *options.others)]
    variants = variants_of(bundles, options.backend)
    if not options.dry_run:
        for variant in variants:
            check_writable(variant.bundle.path)
    data = open_data(options.data, options.prompts, options.prompt, options.samples, options.seed)
    check_labelled(options.limits.metric, data)
    task = JointTask(options, command, variants, data)
    with measuring(options, data, task.spec, task.parts, kept) as measure:
        joint = study_jointly(task, measure)
    return _finish(options, joint)


def _finish(options: JointOptions, joint: JointStudy) -> int:
    """Show first: a report that cannot be written does not take the answer back."""
    from calib.joint.output import JOINT_WIDE, choice_lines, joint_json, joint_table

    taken = joint.taken
    ratio = None if joint.chosen is None or options.dry_run else joint.chosen.setting.ratio
    if not options.json:
        from rich.console import Console

        console = Console(width=None if sys.stdout.isatty() else JOINT_WIDE)
        console.print(joint_table(joint, console.width))
        print("\n".join(choice_lines(joint)), flush=True)
    if ratio is not None and taken is not None:
        write_default(taken.bundle.path, ratio)
    report = None
    if options.report:
        from calib.report.joint import write_joint_report

        report = str(write_joint_report(options.work, joint))
    text = joint_json(joint, default_ratio=ratio, report=report, results=str(options.work / RESULTS))
    write_whole(options.work / SUMMARY, text.encode())
    if options.json:
        print(text, end="", flush=True)
    else:
        print("\n".join(_endings(options, joint, ratio, report)), flush=True)
    return 0 if joint.chosen is not None else 1


def _endings(options: JointOptions, joint: JointStudy, ratio: float | None, report: str | None) -> list[str]:
    """What to do with the choice, and where everything is."""
    taken, lines = joint.taken, []
    if taken is not None and joint.chosen is not None:
        path, pruning = taken.bundle.path, taken.bundle.manifest.pruning
        before = default_text(pruning)
        if ratio is None:
            lines.append(f"copy {path} to the device, and ask it for --ratio {joint.chosen.setting.ratio:g}")
        else:
            lines.append(f"copy {path} to the device: it now keeps {ratio:g} by default (before: {before})")
    if ratio is None:
        lines.append("all bundles are as they were")
    if report is not None:
        lines.append(f"report: {report}")
    return [*lines, f"all measurements: {options.work / RESULTS}"]


if __name__ == "__main__":
    sys.exit(main())
