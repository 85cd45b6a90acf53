"""`lint`: what a target will refuse."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from fopru_graph.commands.printing import facts, print_json, table
from fopru_graph.lint import TARGETS, Finding, lint_file
from fopru_graph.lint.rtx import BuildReport, build_check

__all__ = ["HELP", "NAME", "add_options", "run"]

NAME = "lint"
HELP = "Say what a target's parser will refuse, with the node and the fix. Exit code 1 if there are errors."


def add_options(parser: argparse.ArgumentParser) -> None:
    """Arguments."""
    parser.add_argument("model", type=Path, help="ONNX file")
    parser.add_argument("--target", choices=tuple(TARGETS), required=True, help="where the graph is to run")
    parser.add_argument(
        "--build",
        action="store_true",
        help="also parse and build with TensorRT for RTX here (pip install tensorrt-rtx; needs no GPU)",
    )


def run(args: argparse.Namespace) -> int:
    """Lint, build if asked to, and print."""
    report = lint_file(args.model, args.target)
    build = build_check(args.model) if args.build else None
    ok = report.ok and (build is None or build.ok)
    if args.json:
        content: dict[str, Any] = report.to_dict() | ({"build": build.to_dict()} if build else {})
        print_json(content | {"ok": ok})
        return int(not ok)
    if report.findings:
        _print_findings(f"{args.model} for {args.target}", report.findings)
    counts = ", ".join(f"{len(report.of(severity))} {severity}s" for severity in ("error", "warning", "note"))
    facts(f"{args.model} for {args.target}", [("found", counts)])
    if build is not None:
        _print_build(build)
    return int(not ok)


def _print_findings(title: str, findings: tuple[Finding, ...]) -> None:
    rows = [
        (one.severity, one.rule, f"{one.op_type} {one.node} {one.where}".strip(), one.message, one.fix)
        for one in findings
    ]
    table(title, ("severity", "rule", "node", "what", "fix"), rows)


def _print_build(build: BuildReport) -> None:
    if build.findings:
        _print_findings("TensorRT for RTX", build.findings)
    rows = [("version", build.version or "not started")]
    if build.parse_seconds is not None:
        rows.append(("parsed in", f"{build.parse_seconds:.2f} s"))
    for point in build.points:
        outputs = ", ".join(f"{name} {list(sizes)}" for name, sizes in point.outputs.items())
        rows.append((point.name, f"{_inputs(point.inputs)} → {outputs}"))
    rows += [
        (engine.capability, f"built in {engine.seconds:.1f} s, {engine.bytes / 1e6:.1f} MB")
        for engine in build.engines
    ]
    facts("TensorRT for RTX", rows)


def _inputs(inputs: dict[str, tuple[int, ...]]) -> str:
    return ", ".join(f"{name} {list(sizes)}" for name, sizes in inputs.items()) or "as exported"
