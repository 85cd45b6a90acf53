"""`splice`: a vision encoder and a decoder become one graph."""

from __future__ import annotations

import argparse
from pathlib import Path

from fopru_graph.commands.printing import facts, print_json
from fopru_graph.splice import SpliceOptions, splice_files

__all__ = ["HELP", "NAME", "OPTIONS", "add_options", "run"]

NAME = "splice"
HELP = (
    "Join a vision encoder and a decoder into one graph, from pixels and prompt embeddings to the logits of "
    "the prefill. For static deployments."
)
OPTIONS = ("features", "embeds", "images_per_prompt", "logits")
"""Fields of `SpliceOptions`, each with an option of its name."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Arguments: one per field of `SpliceOptions`."""
    default = SpliceOptions()
    parser.add_argument("vision", type=Path, help="ONNX file of the encoder, pruned or not")
    parser.add_argument("decoder", type=Path, help="ONNX file of the decoder, in the same folder")
    parser.add_argument("-o", "--output", type=Path, required=True, help="file to write, in that folder")
    parser.add_argument(
        "--features", default=default.features, help=f"encoder output (default {default.features})"
    )
    parser.add_argument("--embeds", default=default.embeds, help=f"decoder input (default {default.embeds})")
    parser.add_argument("--images-per-prompt", type=int, default=1, metavar="N", help="default: 1")
    parser.add_argument(
        "--logits",
        type=int,
        default=1,
        metavar="N",
        help="logits of the last N positions (default 1), 0: all",
    )


def run(args: argparse.Namespace) -> int:
    """Splice, and print what came of it."""
    options = SpliceOptions(**{name: getattr(args, name) for name in OPTIONS})
    report = splice_files(args.vision, args.decoder, args.output, options)
    if args.json:
        print_json(report.to_dict() | {"output": str(args.output)})
        return 0
    rows = [("opset", str(report.opset)), ("nodes", str(report.nodes))]
    rows += [("in", f"{name} {list(sizes)}") for name, sizes in report.inputs]
    rows += [("out", f"{name} {list(sizes)}") for name, sizes in report.outputs]
    rows.append(("made inside", ", ".join(report.computed)))
    rows += [("cast", cast) for cast in report.casts]
    rows.append(("weights in", ", ".join(report.weight_files) or "the file itself"))
    facts(f"{args.vision} + {args.decoder} → {args.output}", rows)
    return 0
