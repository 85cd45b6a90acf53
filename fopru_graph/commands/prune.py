"""`prune`: an encoder becomes one that selects its tokens."""

from __future__ import annotations

import argparse
import math
from pathlib import Path

from fopru_graph.api import prune_file
from fopru_graph.commands.printing import facts, print_json
from fopru_graph.commands.sizes import byte_size, grid_size, in_bytes
from fopru_graph.options import AGGREGATIONS, KEPT_INDICES, NUM_KEEP, TOKEN_SCORES, PruneOptions
from fopru_graph.report import PruneReport
from fopru_graph.selectors import SELECTORS

__all__ = ["HELP", "NAME", "OPTIONS", "add_options", "options_from", "run"]

NAME = "prune"
HELP = (
    "Insert token pruning into a vision encoder. How many tokens are kept is said at run time, by the input "
    "num_keep; the weights stay where they are."
)
RATIOS = (0.5, 0.3, 0.1)
OPTIONS = {
    "strategy": "strategy",
    "aggregation": "aggregation",
    "layer": "layer",
    "first_layer": "first_layer",
    "tap": "tap",
    "prefix_tokens": "prefix_tokens",
    "special_tokens": "special_tokens",
    "grid": "grid",
    "features": "features",
    "keep_other_outputs": "drop_other_outputs",
    "scores_output": "no_scores_output",
    "scores_only": "scores_only",
    "score_memory": "score_memory",
    "similarity": "similarity",
    "seed": "seed",
    "dropped_rows": "dropped_rows",
}
"""Field of `PruneOptions` → the command-line option that sets it; `drop_…` and `no_…` turn one off."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Arguments: one per field of `PruneOptions`."""
    parser.add_argument("encoder", type=Path, help="ONNX file of the encoder, as exported, before any fusion")
    parser.add_argument("-o", "--output", type=Path, required=True, help="file to write, beside the encoder")
    what = parser.add_argument_group("what is kept")
    what.add_argument("--strategy", choices=tuple(SELECTORS), default="rank", help="default: rank")
    what.add_argument(
        "--grid", metavar="RxC", help="grid of the tokens, e.g. 24x24; `input`: given at run time"
    )
    what.add_argument("--seed", type=int, default=0, help="of --strategy random (default 0)")
    what.add_argument("--similarity", metavar="TENSOR", help="rows that --strategy scope compares")
    how = parser.add_argument_group("how tokens are scored")
    how.add_argument(
        "--aggregation", choices=AGGREGATIONS, help="default: what the strategy is published with"
    )
    layer = how.add_mutually_exclusive_group()
    layer.add_argument("--layer", type=int, help="number of the scoring layer, from 0 (default: the deepest)")
    layer.add_argument(
        "--tap", metavar="TENSOR", help="probabilities [images, heads, queries, keys] to score by"
    )
    how.add_argument("--first-layer", type=int, default=0, help="first layer of --aggregation cls_sum")
    how.add_argument(
        "--score-memory", metavar="SIZE", help="most that scoring may hold per image, e.g. 64MiB"
    )
    where = parser.add_argument_group("what the encoder looks like; found in the graph where not given")
    where.add_argument("--features", metavar="TENSOR", help="output to prune (default: the one of rank 3)")
    where.add_argument(
        "--special-tokens", type=int, metavar="S", help="leading attention rows that are no patches"
    )
    where.add_argument(
        "--prefix-tokens", type=int, metavar="P", help="leading feature rows that are always kept"
    )
    where.add_argument(
        "--dropped-rows", type=int, metavar="O", help="leading attention rows that are no features"
    )
    outputs = parser.add_argument_group("what comes out")
    outputs.add_argument("--drop-other-outputs", action="store_true", help="only the features stay an output")
    outputs.add_argument("--no-scores-output", action="store_true", help=f"leave out {TOKEN_SCORES}")
    outputs.add_argument("--scores-only", action="store_true", help=f"add {TOKEN_SCORES}, prune nothing")


def options_from(args: argparse.Namespace) -> PruneOptions:
    """The options that a command line says."""
    chosen = {field: getattr(args, option) for field, option in OPTIONS.items()}
    chosen["keep_other_outputs"] = not args.drop_other_outputs
    chosen["scores_output"] = not args.no_scores_output
    chosen["grid"] = None if args.grid is None else grid_size(args.grid)
    chosen["score_memory"] = None if args.score_memory is None else byte_size(args.score_memory)
    return PruneOptions(**chosen)


def run(args: argparse.Namespace) -> int:
    """Prune, and print what was found and done."""
    options = options_from(args)
    report = prune_file(args.encoder, args.output, options)
    if args.json:
        print_json(report.to_dict() | {"output": str(args.output)})
    else:
        facts(f"{args.encoder} → {args.output}", _rows(report, options))
    return 0


def _rows(report: PruneReport, options: PruneOptions) -> list[tuple[str, str]]:
    rows = [
        ("scoring layer", f"{report.layer}, found by {report.locator}: {report.attention} ({report.form})"),
        *(("", f"not by {miss}") for miss in report.locator_misses),
        ("tokens", _tokens(report)),
        ("scores", _scores(report)),
    ]
    if report.gather != "none":
        rows.append(("selection", report.strategy))
        rows.append(("gather", f"{report.gather}: {report.gather_reason}"))
        rows += _contract(report, options)
    else:
        rows.append(("out", f"{TOKEN_SCORES} float32 [images, {report.tokens}]; the features are unpruned"))
    if report.dropped_outputs:
        rows.append(("outputs gone", ", ".join(report.dropped_outputs)))
    counts = ", ".join(f"{count.name} {count.modified}" for count in report.passes)
    rows.append(("nodes", f"{report.nodes_added} added, {report.nodes_removed} removed ({counts})"))
    return rows + [("note", note) for note in report.notes]


def _tokens(report: PruneReport) -> str:
    count = f"{report.tokens} per image" if isinstance(report.tokens, int) else "as many as the image gives"
    special = f"{report.special_tokens} special rows" if report.special_tokens else "no special rows"
    return f"{count}; {special} in the attention; '{report.features}' keeps {report.prefix_tokens} rows in any case"


def _scores(report: PruneReport) -> str:
    if report.score_path == "none":
        return "none: the strategy needs none"
    held = f", {in_bytes(report.score_bytes)} of probabilities per image" if report.score_bytes else ""
    chunk = f", in chunks of {report.score_chunk} queries" if report.score_chunk else ""
    return f"{report.aggregation} over {report.heads} heads, {report.score_path}{held}{chunk}"


def _contract(report: PruneReport, options: PruneOptions) -> list[tuple[str, str]]:
    feed = f"{NUM_KEEP} int64 [1], from 1 to the number of tokens"
    if options.grid == "input":
        feed += "; grid int64 [2], rows and columns of the image"
    rows_out = f"{report.prefix_tokens} + {NUM_KEEP}" if report.prefix_tokens else NUM_KEEP
    out = f"{report.features} [images, {rows_out}, width], {KEPT_INDICES} int64 [images, {NUM_KEEP}]"
    if options.scores_output and report.score_path != "none":
        out += f", {TOKEN_SCORES} float32 [images, {report.tokens}]"
    rows = [("feed", feed), ("out", out)]
    rule = f"{NUM_KEEP} = clamp(floor(tokens * ratio + 0.5), 1, tokens), ratio = fraction kept"
    if isinstance(report.tokens, int) and not SELECTORS[report.strategy].needs_grid:
        counts = (f"{ratio} → {_kept_count(report.tokens, ratio)}" for ratio in RATIOS)
        rule += f": {', '.join(counts)}"
    elif report.strategy == "row":
        rule = f"{NUM_KEEP} = columns * clamp(floor(rows * ratio + 0.5), 1, rows), ratio = fraction kept"
        if isinstance(options.grid, tuple):
            high, wide = options.grid
            rule += f": {', '.join(f'{ratio} → {wide * _kept_count(high, ratio)}' for ratio in RATIOS)}"
    return [*rows, ("count", rule)]


def _kept_count(tokens: int, ratio: float) -> int:
    """FoPru specification, section 4; the runtime has the function that a host uses."""
    return min(max(math.floor(tokens * ratio + 0.5), 1), tokens)
