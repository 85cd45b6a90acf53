"""`python -m export.info MODEL --image-size WxH --ratio R`: what images of a size cost, before and after
pruning.

Everything is counted from configuration and processor: no weight is loaded and nothing is run. MODEL is a
checkpoint, a hub id (of which the small files are fetched), or a bundle, whose defaults then apply. Exit
codes: 0 done, 2 an error in one sentence, 130 Ctrl-C.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from export.build import guarded
from export.errors import OptionError
from export.options import STRATEGIES, BuildOptions

if TYPE_CHECKING:
    from rich.console import Console

    from runtime.layouts import ImagePlan

__all__ = ["ImageCosts", "ModelCosts", "count_costs", "main"]


@dataclass(frozen=True)
class ImageCosts:
    """One image of one size.

    Attributes:
        width, height: of the image, in pixels.
        units: pictures that the encoder sees.
        grids: (rows, columns) of the tokens of each unit, padding included; None: they make no full grid.
        placeholders, placeholders_kept: visual tokens as the language model gets them: prefix rows and
            newline vectors count. Kept is the most, with newline policy `keep_nonempty`.
        prunable, prunable_kept: of these, the tokens that pruning decides about, padding not counted.
        kv_bytes, kv_bytes_kept: float32 keys and values of the placeholders.
        encoder_macs: multiply-adds of the unpruned encoder and projector, all units but padding.
        prefill_macs, prefill_macs_kept: multiply-adds of the language model's first pass over placeholders
            and text.
    """

    width: int
    height: int
    units: int
    grids: tuple[tuple[int, int] | None, ...]
    placeholders: int
    placeholders_kept: int
    prunable: int
    prunable_kept: int
    kv_bytes: int
    kv_bytes_kept: int
    encoder_macs: int
    prefill_macs: int
    prefill_macs_kept: int


@dataclass(frozen=True)
class ModelCosts:
    """All images, and what was asked; `text_tokens` is the text in the prefill."""

    model: str
    family: str
    ratio: float | None
    tokens: int | None
    strategy: str
    text_tokens: int
    images: tuple[ImageCosts, ...]


def count_costs(
    options: BuildOptions, sizes: Sequence[tuple[int, int]], text_tokens: int = 0, *, default: bool = False
) -> ModelCosts:
    """Count what images cost.

    Args:
        options: model, amount, strategy and policies; the rest is ignored.
        sizes: (width, height) of the images.
        text_tokens: text in the prompt.
        default: the amount is a bundle's own, which is all that a small image has.

    Raises:
        ExportError: a checkpoint or options that cannot be used, or an image that the model cannot take.
    """
    from export.checkpoint import load_config, load_processor, open_checkpoint
    from export.costs import decoder_shape
    from export.plan import kept_of, placeholders_of
    from runtime.errors import ImageError

    checkpoint = open_checkpoint(options.model, weights=False)
    config, family = load_config(checkpoint), checkpoint.family
    layout = family.layout(config, load_processor(checkpoint))
    options.check(family.encoder_info(config), layout)
    decoder = decoder_shape(config.text_config)

    def costs(width: int, height: int, plan: ImagePlan) -> ImageCosts:
        tokens = options.tokens
        own = replace(options, tokens=min(tokens, plan.prunable)) if default and tokens else options
        kept = kept_of(plan, own)
        after = placeholders_of(plan, kept, layout, options)
        return ImageCosts(
            width=width,
            height=height,
            units=len(plan.units),
            grids=tuple(unit.grid for unit in plan.units),
            placeholders=plan.placeholders,
            placeholders_kept=after,
            prunable=plan.prunable,
            prunable_kept=kept,
            kv_bytes=decoder.kv_bytes(plan.placeholders),
            kv_bytes_kept=decoder.kv_bytes(after),
            encoder_macs=sum(family.encoder_macs(config, unit) for unit in plan.units if unit.prunable),
            prefill_macs=decoder.prefill(plan.placeholders + text_tokens),
            prefill_macs_kept=decoder.prefill(after + text_tokens),
        )

    found = []
    for width, height in sizes:
        try:
            plan = layout.plan(height, width)
        except ImageError as error:
            raise OptionError(str(error)) from error
        found.append(costs(width, height, plan))
    return ModelCosts(
        model=checkpoint.name,
        family=family.model_type,
        ratio=options.keep_ratio,
        tokens=options.tokens,
        strategy=options.strategy,
        text_tokens=text_tokens,
        images=tuple(found),
    )


def main(argv: Sequence[str] | None = None) -> int:
    """The command line."""
    args = _parser().parse_args(argv)
    return guarded(lambda _: _run(args))


def _run(args: argparse.Namespace) -> int:
    from rich.console import Console

    from export.steps import quiet_libraries

    with quiet_libraries(args.verbose):
        default = args.ratio is None and args.tokens is None
        found = count_costs(_options(args), args.image_size, args.text_tokens, default=default)
    if args.json:
        print(json.dumps(dataclasses.asdict(found), indent=2))
    else:
        print_costs(found, Console())
    return 0


def _options(args: argparse.Namespace) -> BuildOptions:
    """What was asked; for a bundle, what it was built with fills the gaps."""
    asked: dict[str, Any] = {"ratio": args.ratio, "tokens": args.tokens}
    policies: dict[str, Any] = {}
    if Path(args.model, "bundle.json").is_file():
        from runtime.bundle import load_bundle

        pruning = load_bundle(args.model, verify=False).manifest.pruning
        policies = {"strategy": pruning.strategy, "row_scope": pruning.row_scope}
        policies["newline"] = None if pruning.newline == "keep_all" else pruning.newline
        if args.ratio is None and args.tokens is None:
            asked = {"ratio": pruning.default_ratio, "tokens": pruning.default_tokens}
            if pruning.default_ratio is None and pruning.default_tokens is None:
                asked["ratio"] = 1.0  # it keeps everything
    if args.strategy is not None:
        policies["strategy"] = args.strategy
        if args.strategy != "row":
            policies["row_scope"] = "tile"
    return BuildOptions(model=args.model, **asked, **policies)


def print_costs(found: ModelCosts, console: Console) -> None:
    """The table of the command."""
    from rich.table import Table
    from rich.text import Text

    amount = f"ratio {found.ratio}" if found.tokens is None else f"tokens {found.tokens}"
    title = f"{found.model} ({found.family}), {amount}, strategy {found.strategy}"
    table = Table(title=Text(title), title_justify="left")
    table.add_column("image")
    table.add_column("units")
    for name in ("tokens", "prunable", "KV MB", "encoder GMAC", "prefill GMAC"):
        table.add_column(name, justify="right")
    for image in found.images:
        table.add_row(
            f"{image.width} x {image.height}",
            _units(image),
            f"{image.placeholders} → {image.placeholders_kept}",
            f"{image.prunable} → {image.prunable_kept}",
            f"{_short(image.kv_bytes / 1e6)} → {_short(image.kv_bytes_kept / 1e6)}",
            _short(image.encoder_macs / 1e9),
            f"{_short(image.prefill_macs / 1e9)} → {_short(image.prefill_macs_kept / 1e9)}",
        )
    console.print(table)
    text = f" and {found.text_tokens} text tokens" if found.text_tokens else ""
    console.print(f"prefill: the visual tokens{text}; KV cache in float32", highlight=False)


def _units(image: ImageCosts) -> str:
    """`5 of 24 x 24`; grids of several sizes one after the other."""
    counts = {grid: image.grids.count(grid) for grid in image.grids}
    return ", ".join(
        f"{count} without a grid" if grid is None else f"{count} of {grid[0]} x {grid[1]}"
        for grid, count in counts.items()
    )


def _short(value: float) -> str:
    """Three digits, and all of a larger number."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


_MOST_DIGITS = 9


def _size(text: str) -> tuple[int, int]:
    width, _, height = text.lower().partition("x")
    digits = width.isdecimal() and height.isdecimal() and max(len(width), len(height)) <= _MOST_DIGITS
    if not (digits and int(width) and int(height)):
        raise argparse.ArgumentTypeError(f"{text!r} is no size: give WIDTHxHEIGHT in pixels, e.g. 1280x720")
    return int(width), int(height)


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is no number of tokens: give 0 or more")
    return int(text)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m export.info",
        description="Tokens, cache and multiply-adds of images, before and after pruning; nothing is run.",
        epilog="Exit codes: 0 done, 2 an error, 130 Ctrl-C.",
    )
    parser.add_argument("model", metavar="MODEL", help="checkpoint directory, hub id, or bundle directory")
    parser.add_argument(
        "--image-size",
        type=_size,
        action="append",
        required=True,
        metavar="WxH",
        help="width and height of an image in pixels, may be repeated",
    )
    amount = parser.add_mutually_exclusive_group()
    amount.add_argument(
        "--ratio",
        type=float,
        metavar="R",
        help="fraction of the visual tokens that is KEPT, in (0, 1] (default: the bundle's, or 0.3)",
    )
    amount.add_argument("--tokens", type=int, metavar="N", help="visual tokens kept per image")
    parser.add_argument(
        "--strategy",
        choices=STRATEGIES,
        help="best tokens, or best rows (default: the bundle's, or rank)",
    )
    parser.add_argument(
        "--text-tokens",
        type=_count,
        default=0,
        metavar="N",
        help="text of the prompt, counted in the prefill (default: %(default)s)",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of the table")
    parser.add_argument("--verbose", action="store_true", help="show what transformers has to say")
    return parser


if __name__ == "__main__":
    sys.exit(main())
