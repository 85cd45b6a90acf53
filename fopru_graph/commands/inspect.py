"""`inspect`: what is in an encoder, and whether it can be pruned."""

from __future__ import annotations

import argparse
from pathlib import Path

from fopru_graph.commands.printing import facts, print_json, table
from fopru_graph.commands.sizes import in_bytes
from fopru_graph.inspection import InspectReport, inspect_file

__all__ = ["HELP", "NAME", "add_options", "run"]

NAME = "inspect"
HELP = (
    "Show the attention layers of an encoder, how they were found, and whether it can be pruned. Writes "
    "nothing."
)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Arguments."""
    parser.add_argument("encoder", type=Path, help="ONNX file")
    parser.add_argument("--features", metavar="TENSOR", help="output to prune (default: the one of rank 3)")


def run(args: argparse.Namespace) -> int:
    """Inspect and print."""
    report = inspect_file(args.encoder, args.features)
    if args.json:
        print_json(report.to_dict())
    else:
        _print(report)
    return 0


def _print(report: InspectReport) -> None:
    outside = (
        f"{in_bytes(report.external_bytes)} in {report.weight_files} files" if report.weight_files else "none"
    )
    weights = f"{in_bytes(report.weight_bytes)}, outside of the file: {outside}"
    rows = [
        ("made by", report.producer or "unknown"),
        ("opset", f"{report.opset} (IR {report.ir_version})"),
        ("weights", weights),
        *(("input", f"{port.name} {port.dtype} {_dims(port.dims)}") for port in report.inputs),
        *(
            ("output", f"{port.name} {port.dtype} {_dims(port.dims)}{_taken(report, port.name)}")
            for port in report.outputs
        ),
        ("special tokens", _special(report.special_tokens)),
        ("layers numbered by", report.locator or "nothing"),
        *(("", f"not by {miss}") for miss in report.locator_misses),
    ]
    facts(report.path, rows)
    if report.layers:
        columns = ("layer", "form", "node", "heads", "queries x keys", "dtype", "mask", "P per image", "tap")
        table(
            "Attention layers"
            + ("" if report.features else " (no features output is told: of the whole graph)"),
            columns,
            [
                (
                    str(layer.number),
                    layer.form,
                    layer.node,
                    str(layer.heads),
                    f"{layer.queries} x {layer.keys}",
                    layer.dtype,
                    "yes" if layer.masked else "no",
                    in_bytes(layer.probability_bytes) if layer.probability_bytes else "?",
                    layer.tap,
                )
                for layer in report.layers
            ],
        )
    if report.near_misses:
        table(
            "Nearly attention",
            ("op", "node", "but"),
            [(one.op_type, one.node, one.reason) for one in report.near_misses],
        )
    facts("Pruning with defaults", [("works", "yes" if report.prunable else "no"), ("", report.verdict)])


def _dims(sizes: tuple[int | str | None, ...] | None) -> str:
    return (
        "of unknown shape"
        if sizes is None
        else f"[{', '.join('?' if size is None else str(size) for size in sizes)}]"
    )


def _taken(report: InspectReport, name: str) -> str:
    return "  ← features" if name == report.features else ""


def _special(count: int | None) -> str:
    if count is None:
        return "not told by the graph"
    return f"{count} leading rows of the attention (class token, registers)" if count else "none"
