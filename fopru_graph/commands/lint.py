"""`lint`: what a target will refuse."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from fopru_graph.commands.printing import print_facts, print_json, print_table
from fopru_graph.commands.sizes import bytes_text
from fopru_graph.lint import SEVERITIES, TARGETS, Finding, lint_file
from fopru_graph.lint.rtx import BuildReport, build_check

__all__ = ["HELP", "add_arguments", "run"]

HELP = (
    "Say what a target's parser will refuse: the node, the reason, the fix. Exit code 1 if there is "
    "an error. Rules: docs/lint.md"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The file, the target, and whether to build."""
    parser.add_argument("model", type=Path, help="ONNX file, pruned or not")
    parser.add_argument(
        "--target",
        choices=tuple(TARGETS),
        required=True,
        metavar="NAME",
        help=f"one of {', '.join(TARGETS)}",
    )
    parser.add_argument(
        "--build",
        action="store_true",
        help="also parse the graph and build engines with TensorRT for RTX, on this machine, without a GPU "
        "(needs `pip install tensorrt-rtx`)",
    )


def run(args: argparse.Namespace) -> int:
    """Lint, build if asked to, and print."""
    report = lint_file(args.model, args.target)
    build = build_check(args.model) if args.build else None
    ok = report.ok and (build is None or build.ok)
    if args.json:
        content: dict[str, Any] = report.to_dict()
        if build is not None:
            content = {**content, "ok": ok, "build": build.to_dict()}
        print_json(content)
        return 0 if ok else 1
    title = f"{args.model} for {TARGETS[args.target].title}"
    if report.findings:
        _print_findings(title, report.findings)
    counts = ", ".join(_counted(len(report.of(severity)), severity) for severity in SEVERITIES)
    print_facts(title, [("ok" if report.ok else "error", counts)])
    if build is not None:
        _print_build(build)
    return 0 if ok else 1


def _counted(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"


def _print_findings(title: str, findings: Iterable[Finding]) -> None:
    columns = ("severity", "rule", "operator", "node", "message", "fix")
    rows = [
        (
            finding.severity,
            finding.rule,
            finding.op_type,
            ", ".join(part for part in (finding.node, finding.where) if part),
            finding.message,
            finding.fix,
        )
        for finding in findings
    ]
    print_table(title, columns, rows)


def _print_build(build: BuildReport) -> None:
    title = f"TensorRT for RTX {build.version or '(not started)'}"
    if build.findings:
        _print_findings(title, build.findings)
    rows = []
    if build.parse_seconds is not None:
        rows.append(("parsed", f"in {build.parse_seconds:.2f} s"))
    for point in build.points:
        rows.append((point.name, f"{_shapes(point.inputs) or 'as exported'} → {_shapes(point.outputs)}"))
    for engine in build.engines:
        rows.append((engine.capability, f"built in {engine.seconds:.1f} s, {bytes_text(engine.bytes)}"))
    print_facts(title, [*rows, ("ok", "built") if build.ok else ("error", "not built")])


def _shapes(shapes: dict[str, tuple[int, ...]]) -> str:
    return ", ".join(f"{name} {list(sizes)}" for name, sizes in shapes.items())
