"""`prune`: an encoder becomes one that selects its tokens."""

from __future__ import annotations

import argparse
import dataclasses
import math
from pathlib import Path

from fopru_graph.api import load_graph, prune_file
from fopru_graph.commands.printing import port_text, print_facts, print_json
from fopru_graph.commands.sizes import byte_size, bytes_text, grid_size
from fopru_graph.inspection import LOCATORS, Port, ports
from fopru_graph.options import (
    AGGREGATIONS,
    GRID,
    KEPT_INDICES,
    MERGE_ORDERS,
    NUM_KEEP,
    STRATEGIES,
    TOKEN_MASK,
    TOKEN_SCORES,
    PruneOptions,
)
from fopru_graph.report import PruneReport
from fopru_graph.shapes import Dim

__all__ = ["HELP", "HINT", "add_arguments", "options_from", "run"]

HELP = (
    "Insert token pruning into a vision encoder. How many tokens are kept is said at run time, by the input "
    f"{NUM_KEEP}; where a ratio is meant, it is the fraction kept. Weights in files beside the encoder stay "
    "where they are and are shared."
)
HINT = "an output besides the features may be why the gather is late: try --drop-other-outputs"
_RATIOS = (0.5, 0.3, 0.1)
_SCORE_PATHS = {
    "one_pass": "QK^T is computed once and its softmax is tapped",
    "side_branch": "by a second QK^T in float32",
    "cls_row": "by the class token's row alone, in float32",
    "chunked": "by a second QK^T in float32, a block of queries at a time",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """One option per field of `PruneOptions`, by its name; the rest is files."""
    parser.add_argument("encoder", type=Path, help="ONNX file of the encoder, as exported, before any fusion")
    parser.add_argument(
        "-o", "--output", type=Path, required=True, metavar="FILE", help="file to write, beside the encoder"
    )
    _add_choice(parser.add_argument_group("which tokens are kept"))
    _add_scores(parser.add_argument_group("how tokens are scored"))
    _add_rows(parser.add_argument_group("what the encoder looks like (found in the graph where not given)"))
    _add_outputs(parser.add_argument_group("what comes out"))


def _add_choice(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--strategy",
        choices=STRATEGIES,
        default="rank",
        metavar="NAME",
        help=f"one of {', '.join(STRATEGIES)} (default: %(default)s)",
    )
    group.add_argument(
        "--grid",
        type=grid_size,
        metavar="RxC",
        help=f"rows x columns of the tokens, as in 24x24; `input` makes the graph ask for it (input {GRID})",
    )
    group.add_argument(
        "--mask",
        action="store_true",
        help=f"the graph asks which tokens show image (input {TOKEN_MASK}); padding is then never kept",
    )
    group.add_argument(
        "--similarity", metavar="TENSOR", help="rows that --strategy scope compares (default: the features)"
    )
    group.add_argument(
        "--seed", type=int, default=0, metavar="N", help="of --strategy random (default: %(default)s)"
    )


def _add_scores(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--aggregation",
        choices=AGGREGATIONS,
        metavar="NAME",
        help=f"one of {', '.join(AGGREGATIONS)} (default: what the strategy is published with)",
    )
    group.add_argument(
        "--layer", type=int, metavar="L", help="layer whose attention scores, from 0 (default: the deepest)"
    )
    group.add_argument(
        "--tap",
        metavar="TENSOR",
        help="score by these probabilities [images, heads, queries, keys], instead of --layer",
    )
    group.add_argument(
        "--first-layer",
        type=int,
        default=0,
        metavar="L",
        help="first layer of --aggregation cls_sum (default: %(default)s)",
    )
    group.add_argument(
        "--score-memory",
        type=byte_size,
        metavar="SIZE",
        help="most that scoring may hold per image, as in 64MiB (default: no limit)",
    )


def _add_rows(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--features", metavar="TENSOR", help="output to prune, [images, tokens, width]")
    group.add_argument(
        "--prefix-tokens", type=int, metavar="P", help="leading rows of the features that are always kept"
    )
    group.add_argument(
        "--special-tokens",
        type=int,
        metavar="S",
        help="leading rows of the attention that are no patches: class token, registers",
    )
    group.add_argument(
        "--dropped-rows",
        type=int,
        metavar="O",
        help="leading rows of the attention that never become features",
    )
    group.add_argument(
        "--merge",
        type=int,
        default=1,
        metavar="S",
        help="S x S patches become one token before the features (default: %(default)s)",
    )
    group.add_argument(
        "--merge-order",
        choices=MERGE_ORDERS,
        default="row_major",
        metavar="ORDER",
        help="row_major: patches lie in reading order, needs --grid; packed: those of a token lie together "
        "(default: %(default)s)",
    )
    group.add_argument(
        "--token-order",
        metavar="INPUT",
        help="input int64 [N] that says which merged token each token is, where the encoder works in another "
        "order (windows)",
    )


def _add_outputs(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--drop-other-outputs",
        dest="keep_other_outputs",
        action="store_false",
        help="of the encoder's outputs, only the features stay",
    )
    group.add_argument(
        "--scores-output",
        action=argparse.BooleanOptionalAction,
        default=True,
        help=f"whether {TOKEN_SCORES} becomes an output (default: it does)",
    )
    group.add_argument(
        "--scores-only",
        action="store_true",
        help=f"prune nothing, only add {TOKEN_SCORES}, for a host that selects itself",
    )


def options_from(args: argparse.Namespace) -> PruneOptions:
    """The options that a command line says.

    Raises:
        OptionError: they do not go together.
    """
    return PruneOptions(
        **{field.name: getattr(args, field.name) for field in dataclasses.fields(PruneOptions)}
    )


def run(args: argparse.Namespace) -> int:
    """Prune, and print what was found and done."""
    options = options_from(args)
    report = prune_file(args.encoder, args.output, options)
    if args.json:
        print_json(report.to_dict())
        return 0
    graph = load_graph(args.output).graph  # as it was written: names, dtypes and dims of what goes in and out
    rows = [*_found(report), *_done(report), *_ports(report, ports(graph.inputs), ports(graph.outputs))]
    rows += [("count", line) for line in _count(report, options)]
    rows += [("note", note) for note in report.notes]
    ours = {report.features, KEPT_INDICES, TOKEN_SCORES}
    if report.gather == "late" and {value.name for value in graph.outputs} - ours:
        rows.append(("hint", HINT))
    print_facts(f"{args.encoder} → {args.output}", rows)
    return 0


def _found(report: PruneReport) -> list[tuple[str, str]]:
    form = {"softmax": "Softmax between two MatMuls", "attention_op": "the ONNX operator Attention"}
    per_image = f"{report.tokens} per image" if isinstance(report.tokens, int) else "as many as an image has"
    return [
        ("scored by", f"layer {report.layer}, known from {LOCATORS[report.locator]}"),
        *(("", f"not by {miss}") for miss in report.locator_misses),
        ("attention", f"{form[report.form]}, {report.heads} heads, node '{report.attention}'"),
        ("tokens", f"{per_image}, in output '{report.features}'"),
        ("special rows", f"{report.special_tokens} leading attention rows are no patches: not scored"),
        ("dropped rows", f"{report.dropped_rows} leading attention rows never become features"),
        ("prefix rows", f"{report.prefix_tokens} leading rows of the features are always kept"),
        *_mapped(report),
    ]


def _mapped(report: PruneReport) -> list[tuple[str, str]]:
    """How patches become tokens, and which of these may be kept, where the options said so."""
    rows = []
    if report.merge > 1:
        side, order = report.merge, report.merge_order
        rows.append(
            ("merged", f"{side} x {side} patches make one token, in order {order}: scores are their mean")
        )
    if report.token_order is not None:
        rows.append(("token order", f"as input '{report.token_order}' says"))
    if report.mask:
        rows.append(("mask", f"only tokens that input '{TOKEN_MASK}' shows are kept, up to their number"))
    return rows


def _done(report: PruneReport) -> list[tuple[str, str]]:
    """What the passes did; a report of `scores_only` has no selection and no gather."""
    rows = [("scores", _scores(report))]
    if report.gather == "none":
        rows.append(("pruned", f"nothing: {report.gather_reason}"))
    else:
        rows.append(("strategy", f"{report.strategy} (docs/selectors.md)"))
        rows.append(("gather", f"{report.gather}: {report.gather_reason}"))
        rows.append(("", f"rows are taken from {', '.join(report.gathered)}"))
    if report.dropped_outputs:
        rows.append(("outputs gone", ", ".join(report.dropped_outputs)))
    counts = ", ".join(f"{count.name} {count.modified}" for count in report.passes)
    rows.append(("nodes", f"{report.nodes_added} added, {report.nodes_removed} removed"))
    rows.append(("passes", f"{counts} (nodes that each added, changed or removed)"))
    return rows


def _scores(report: PruneReport) -> str:
    if report.score_path == "none":
        return "none, as the strategy needs none"
    text = f"{report.aggregation}, {_SCORE_PATHS[report.score_path]}"
    chunked = report.score_path == "chunked"
    if chunked:
        text += f"; block: {report.score_chunk or 'a computed number of'} queries"
    if report.score_bytes is not None:
        held = f"{bytes_text(report.score_bytes)} of probabilities per image"
        text += f", instead of {held}" if chunked else f"; {held}"
    return text


def _ports(report: PruneReport, inputs: tuple[Port, ...], outputs: tuple[Port, ...]) -> list[tuple[str, str]]:
    """What to feed and what comes out, with `num_keep` and N where the graph has names of its own."""
    pruned = report.gather != "none"
    kept = NUM_KEEP if pruned and report.strategy != "none" else "N"
    rows = f"{report.prefix_tokens} + {kept}" if report.prefix_tokens else kept
    tokens = report.tokens if isinstance(report.tokens, int) else "N"
    sizes = {KEPT_INDICES: kept, TOKEN_SCORES: tokens, **({report.features: rows} if pruned else {})}
    renamed = [
        # exporters give the images of an output names of their own
        dataclasses.replace(port, dims=(_images(port.dims[0]), sizes[port.name], *port.dims[2:]))
        if port.name in sizes and port.dims
        else port
        for port in outputs
    ]
    return [*(("feed", port_text(port)) for port in inputs), *(("get", port_text(port)) for port in renamed)]


def _images(size: Dim) -> Dim:
    return size if isinstance(size, int) else "images"


def _count(report: PruneReport, options: PruneOptions) -> list[str]:
    """How to choose `num_keep`, in words and for some ratios."""
    if report.gather == "none":
        return []
    if report.strategy == "none":
        return [f"{NUM_KEEP} is read and ignored: strategy none keeps every token"]
    if report.strategy != "row":
        rule = f"{NUM_KEEP} = clamp(floor(N * ratio + 0.5), 1, N), N tokens, ratio = fraction kept"
        return [rule, *_examples(report.tokens, 1)]
    rule = f"{NUM_KEEP} = C * clamp(floor(R * ratio + 0.5), 1, R), R x C tokens, ratio = fraction kept"
    rows, columns = options.grid if isinstance(options.grid, tuple) else (None, 1)
    return [rule, *_examples(rows, columns)]


def _examples(units: int | str | None, size: int) -> list[str]:
    """`num_keep` for some ratios, where the number of units (tokens, or rows of `size` tokens) is fixed."""
    if not isinstance(units, int):
        return []
    # FoPru specification, section 4; `runtime/counts.py` has it for hosts, and a test compares them.
    counts = [size * min(max(math.floor(units * ratio + 0.5), 1), units) for ratio in _RATIOS]
    return [
        f"N = {units * size}: "
        + ", ".join(
            f"ratio {ratio} → {NUM_KEEP} {count}" for ratio, count in zip(_RATIOS, counts, strict=True)
        )
    ]
