"""`splice`: a vision encoder and a decoder become one graph."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path

from fopru_graph.commands.printing import print_facts, print_json, sizes_text
from fopru_graph.shapes import Dim
from fopru_graph.splice import SpliceOptions, SpliceReport, splice_files

__all__ = ["HELP", "add_arguments", "run"]

HELP = (
    "Join a vision encoder and a decoder into one graph, from pixels and prompt embeddings to the logits of "
    "the prefill, for static deployments. Both and the result lie in one folder if they have weight files."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """One option per field of `SpliceOptions`, by its name; the rest is files."""
    default = SpliceOptions()
    parser.add_argument("vision", type=Path, help="ONNX file of the encoder, pruned or not")
    parser.add_argument("decoder", type=Path, help="ONNX file of the decoder")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FILE", help="file to write")
    parser.add_argument(
        "--features",
        default=default.features,
        metavar="TENSOR",
        help="output of the encoder that the decoder gets (default: %(default)s)",
    )
    parser.add_argument(
        "--embeds",
        default=default.embeds,
        metavar="TENSOR",
        help="input of the decoder that takes it (default: %(default)s)",
    )
    parser.add_argument(
        "--images-per-prompt",
        type=int,
        default=default.images_per_prompt,
        metavar="N",
        help="images of each prompt, one behind the other (default: %(default)s)",
    )
    parser.add_argument(
        "--logits",
        type=int,
        default=default.logits,
        metavar="N",
        help="compute logits of the last N positions, 0 for all, if the decoder has num_logits_to_keep "
        "(default: %(default)s)",
    )


def run(args: argparse.Namespace) -> int:
    """Splice, and print what came of it."""
    fields = [field.name for field in dataclasses.fields(SpliceOptions)]
    options = SpliceOptions(**{name: getattr(args, name) for name in fields})
    report = splice_files(args.vision, args.decoder, args.output, options)
    if args.json:
        print_json(report.to_dict())
        return 0
    print_facts(f"{args.vision} + {args.decoder} → {args.output}", _facts(report))
    return 0


def _facts(report: SpliceReport) -> list[tuple[str, str]]:
    return [
        ("graph", f"{report.nodes} nodes, opset {report.opset}"),
        *_ports("feed", report.inputs),
        *_ports("get", report.outputs),
        ("made inside", ", ".join(report.computed) or "no input of the decoder"),
        *(("cast", cast) for cast in report.casts),
        ("weights", ", ".join(report.weight_files) or "inside the file"),
    ]


def _ports(name: str, ports: Sequence[tuple[str, Sequence[Dim]]]) -> list[tuple[str, str]]:
    return [(name, f"{port} {sizes_text(sizes)}") for port, sizes in ports]
