"""`python -m runtime.device_report BUNDLE`: measure a bundle on this device, for one JSON and one Markdown
page.

Each backend runs in a process of its own: its memory counts alone, and one that the system ends leaves the
rest.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path

from runtime.backend import available_backends
from runtime.bundle import MANIFEST_FILE, Bundle, load_bundle
from runtime.device_report.machine import find_machine
from runtime.device_report.measure import RATIOS, Plan, measure_backend, request_of
from runtime.device_report.page import page_of
from runtime.device_report.record import BackendRecord, BundleRecord, Refusal, Report
from runtime.errors import BackendError, RequestError
from runtime.output import exit_code_of, write_whole

__all__ = ["main", "make_report"]

_GPU_BACKENDS = ("tensorrt", "ort-tensorrt", "ort-cuda")
_CPU_BACKEND = "onnxruntime"
_ABSENT = 3  # exit code of a child whose backend is not there

_EPILOG = """
Without --backend, every backend of a GPU that is there is run, and the default one where none is. Send both
files back: they hold versions, times, memory and this command, no picture of yours.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Exit codes: 0 everything ran and agrees, 1 something does not, 2 an error in one line, 130 Ctrl-C."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    args = _parser().parse_args(arguments)
    return exit_code_of(lambda: _measured(args, arguments))


def _measured(args: argparse.Namespace, arguments: Sequence[str]) -> int:
    bundle = load_bundle(args.bundle, verify=args.child is None)
    plan = _plan(args)
    if args.child is not None:
        return _child(bundle, args.backend[0], plan, Path(args.child))
    command = shlex.join(["python", "-m", "runtime.device_report", *arguments])
    report = make_report(bundle, args.backend, plan, command)
    _write(report, Path(args.output))
    return 0 if report.ok else 1


def make_report(bundle: Bundle, backends: Sequence[str], plan: Plan, command: str) -> Report:
    """Run backends one after the other, each in a process of its own.

    Args:
        bundle: what to run.
        backends: names; none: those of the GPU that are there, else the default one.
        plan: how much of it.
        command: what made the report, for its reader.

    Raises:
        BackendError: an unknown name.
    """
    for name in backends:
        if name not in available_backends():
            raise BackendError(f'backend is "{name}", expected one of {", ".join(available_backends())}')
    known = [name for name in _GPU_BACKENDS if name in available_backends()]
    asked = list(backends) or known
    ran: list[BackendRecord] = []
    missing: list[Refusal] = []
    machine = find_machine()  # before it is warm
    for name in asked:
        _run(bundle, name, plan, ran, missing)
    if not ran and not backends:
        asked.append(_CPU_BACKEND)
        _run(bundle, _CPU_BACKEND, plan, ran, missing)
    for name in available_backends():
        if name not in asked:
            missing.append(Refusal(name, f"not asked for: add --backend {name}"))
    return Report(
        made=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        command=command,
        machine=machine,
        bundle=_bundle_record(bundle),
        prompt=request_of(bundle)[0],
        backends=tuple(ran),
        not_run=tuple(missing),
    )


def _parser() -> argparse.ArgumentParser:
    plan = Plan()
    parser = argparse.ArgumentParser(
        prog="python -m runtime.device_report",
        description="Measure a bundle on this device, for one JSON and one Markdown page.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("bundle", help="directory with bundle.json")
    add("--output", default="device-report", metavar="DIR", help="where report.json and report.md go")
    add(
        "--backend", action="append", default=[], help=f"repeatable; one of {', '.join(available_backends())}"
    )
    add("--ratio", action="append", type=float, default=[], metavar="R", help="fraction KEPT; repeatable "
        f"(default {', '.join(f'{ratio:g}' for ratio in RATIOS)})")  # fmt: skip
    add("--runs", type=int, default=plan.runs, metavar="N", help=f"of each ratio (default {plan.runs})")
    add("--warmup", type=int, default=plan.warmups, metavar="N", help=f"before (default {plan.warmups})")
    add("--new-tokens", type=int, default=plan.new_tokens, metavar="N", help="of an answer (default 64)")
    add("--requests", type=int, default=plan.requests, metavar="N",
        help=f"in a row, with changing ratios; 0: none (default {plan.requests})")  # fmt: skip
    add("--threads", type=int, metavar="N", help="threads inside one operator (default: all cores)")
    add("--child", metavar="FILE", help=argparse.SUPPRESS)
    return parser


def _plan(args: argparse.Namespace) -> Plan:
    for name, least in (("runs", 1), ("warmup", 1), ("new_tokens", 1), ("requests", 0)):
        value = getattr(args, name)
        if value < least:
            raise RequestError(
                f"--{name.replace('_', '-')} is {value}, expected {least} or more: leave it out for the "
                "default"
            )
    for ratio in args.ratio:
        if not 0.0 < ratio <= 1.0:
            raise RequestError(f"--ratio is {ratio}, expected a fraction kept in (0, 1], e.g. 0.3")
    ratios = tuple(args.ratio) or RATIOS
    return Plan(ratios, args.runs, args.warmup, args.new_tokens, args.requests, args.threads)


def _run(bundle: Bundle, name: str, plan: Plan, ran: list[BackendRecord], missing: list[Refusal]) -> None:
    """Run one backend in a child, and put what came of it into one of the lists."""
    print(f"{name} ...", file=sys.stderr, flush=True)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "record.json"
        done = subprocess.run(
            [sys.executable, "-m", "runtime.device_report", *_child_arguments(bundle, name, plan, file)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            check=False,
        )
        why = done.stderr.strip().splitlines()[-1:] or ["no message"]
        if done.returncode == _ABSENT or (done.returncode and not file.exists()):
            missing.append(Refusal(name, _reason(done.returncode, why[0])))
            return
        record = BackendRecord.from_dict(json.loads(file.read_text(encoding="utf-8")), name)
    if done.returncode:
        ended = Refusal("the rest", _reason(done.returncode, why[0]))
        record = replace(record, refusals=(*record.refusals, ended))
    ran.append(record)


def _child_arguments(bundle: Bundle, name: str, plan: Plan, file: Path) -> list[str]:
    arguments = [str(bundle.path), "--backend", name, "--child", str(file)]
    for ratio in plan.ratios:
        arguments += ["--ratio", str(ratio)]
    numbers = {
        "--runs": plan.runs,
        "--warmup": plan.warmups,
        "--new-tokens": plan.new_tokens,
        "--requests": plan.requests,
        "--threads": plan.threads,
    }
    for flag, number in numbers.items():
        arguments += [] if number is None else [flag, str(number)]
    return arguments


def _reason(code: int, said: str) -> str:
    if code < 0:
        killed = " (which Linux does when memory runs out: see docs/jetson.md)" if code == -9 else ""
        return f"its process was ended by signal {-code}{killed}; it said: {said}"
    return said.removeprefix("error: ")


def _child(bundle: Bundle, name: str, plan: Plan, file: Path) -> int:
    def save(record: BackendRecord) -> None:
        partial = file.with_suffix(".partial")
        partial.write_text(json.dumps(record.to_dict(), allow_nan=False), encoding="utf-8")
        partial.replace(file)

    try:
        measure_backend(bundle, name, plan, save)
    except BackendError as error:
        print(f"error: {error}", file=sys.stderr)
        return _ABSENT
    return 0


def _bundle_record(bundle: Bundle) -> BundleRecord:
    manifest = bundle.manifest
    digest = hashlib.sha256((bundle.path / MANIFEST_FILE).read_bytes()).hexdigest()
    return BundleRecord(
        name=manifest.model.name,
        family=manifest.model.family,
        architecture=manifest.model.architecture,
        sha256=digest,
        nbytes=sum(file.bytes for file in manifest.files.values()),
        default_ratio=manifest.pruning.default_ratio,
        precisions={name: graph.precision for name, graph in manifest.graphs.items()},
    )


def _write(report: Report, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(report.to_dict(), indent=2, allow_nan=False) + "\n"
    for name, content in (("report.json", text), ("report.md", page_of(report))):
        write_whole(folder / name, content.encode())
    print(f"{folder / 'report.json'} and {folder / 'report.md'}: send both back")


if __name__ == "__main__":
    sys.exit(main())
