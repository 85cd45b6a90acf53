"""`inspect`: what is in an encoder, and whether it can be pruned."""

from __future__ import annotations

import argparse
from pathlib import Path

from fopru_graph.commands.printing import port_text, print_facts, print_json, print_table
from fopru_graph.commands.prune import HINT
from fopru_graph.commands.sizes import bytes_text
from fopru_graph.inspection import LOCATORS, InspectReport, Layer, inspect_file
from fopru_graph.options import PruneOptions

__all__ = ["HELP", "add_arguments", "run"]

HELP = (
    "Show the attention layers of an encoder and how they were found, and try to prune it with the defaults. "
    "Writes nothing."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The file, and the output that would be pruned."""
    parser.add_argument("encoder", type=Path, help="ONNX file of the encoder")
    parser.add_argument(
        "--features", metavar="TENSOR", help="output that would be pruned (default: the one of rank 3)"
    )


def run(args: argparse.Namespace) -> int:
    """Inspect and print; an encoder that cannot be pruned is no failure."""
    report = inspect_file(args.encoder, PruneOptions(features=args.features))
    if args.json:
        print_json(report.to_dict())
        return 0
    print_facts(report.path, _facts(report))
    if report.layers:
        columns = (
            *("layer", "node", "form", "heads", "queries x keys", "dtype", "mask"),
            *("float32 scores", "tensor to tap", "features"),
        )
        print_table("attention layers", columns, map(_row, report.layers))
    used = [layer for layer in report.layers if layer.upstream is not False]
    if not used and report.near_misses:
        misses = [(miss.op_type, miss.node, miss.reason) for miss in report.near_misses]
        print_table("nearly attention", ("operator", "node", "but"), misses)
    if report.fused:
        fused = [(miss.op_type, miss.node, miss.reason) for miss in report.fused]
        print_table("fused attention", ("operator", "node", "but"), fused)
    print_facts("pruning with the defaults", _verdict(report))
    return 0


def _facts(report: InspectReport) -> list[tuple[str, str]]:
    rows = [
        ("made by", f"{report.producer or 'unknown'}, opset {report.opset}, IR version {report.ir_version}"),
        ("weights", _weights(report)),
        *(("input", port_text(port)) for port in report.inputs),
    ]
    for port in report.outputs:
        taken = "  ← the features" if port.name == report.features else ""
        rows.append(("output", f"{port_text(port)}{taken}"))
    rows.append(("special tokens", _special(report.special_tokens)))
    if report.merge is not None:
        side = report.merge
        rows.append(("merged", f"looks merged {side} x {side}: state --merge {side} and --merge-order"))
    rows.append(("numbers from", LOCATORS[report.locator]))
    return rows + [("", f"not by {miss}") for miss in report.locator_misses]


def _weights(report: InspectReport) -> str:
    inside = report.weight_bytes - report.external_bytes
    text = f"{bytes_text(inside)} inside the file"
    if report.weight_files:
        text += f", {bytes_text(report.external_bytes)} in {', '.join(report.weight_files)}"
    return text


def _special(count: int | None) -> str:
    if count is None:
        return "the graph does not tell"
    return f"{count} leading rows of the attention (class token, registers)" if count else "none"


def _row(layer: Layer) -> tuple[str, ...]:
    return (
        "-" if layer.number is None else str(layer.number),
        layer.node,
        layer.form,
        str(layer.heads),
        f"{layer.queries} x {layer.keys}",
        layer.dtype,
        "yes" if layer.masked else "no",
        "varies" if layer.score_bytes is None else bytes_text(layer.score_bytes),
        layer.tap,
        {True: "upstream", False: "not upstream", None: "not known"}[layer.upstream],
    )


def _verdict(report: InspectReport) -> list[tuple[str, str]]:
    works = ("yes", report.verdict) if report.prunable else ("no", report.verdict)
    rows = [works, *(("note", note) for note in report.notes)]
    if report.prunable and report.verdict.startswith("late") and len(report.outputs) > 1:
        rows.append(("hint", HINT))
    return rows
