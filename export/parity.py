"""`python -m export.parity BUNDLE`: compare a bundle with PyTorch, stage by stage, on any picture and ratio.

Unlike `python -m runtime.check`, which replays the golden tensors, this runs PyTorch anew and needs the
checkpoint. Exit codes: 0 every stage agrees, 1 a stage diverges, 2 an error in one sentence, 130 Ctrl-C.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from export.build import guarded
from export.errors import OptionError

if TYPE_CHECKING:
    from export.checkpoint import Checkpoint
    from runtime.bundle import Bundle
    from runtime.parity import ParityReport

__all__ = ["ParityOptions", "compare_with_torch", "main"]


@dataclass(frozen=True)
class ParityOptions:
    """One comparison; None means what the bundle or its golden record says."""

    model: str | None = None
    images: tuple[Path, ...] = ()
    prompt: str | None = None
    ratio: float | None = None
    tokens: int | None = None
    new_tokens: int = 32
    backend: str = "onnxruntime"


def compare_with_torch(bundle: Bundle, options: ParityOptions) -> ParityReport:
    """Run PyTorch and the bundle on the same request.

    Raises:
        ExportError: the checkpoint cannot be loaded, is not the bundle's model, or an image cannot be read.
        FopruError: the request is outside what the bundle can do, or the bundle cannot be run.
    """
    from export.checkpoint import load_model, load_processor, open_checkpoint
    from export.golden import open_images
    from export.oracle import Oracle, PruningChoice
    from export.plan import check_question
    from runtime.generator import Generator
    from runtime.golden import load_record
    from runtime.parity import compare, measure
    from runtime.plan import plan_pruning
    from runtime.request import Request
    from runtime.reuse import NO_REUSE

    manifest = bundle.manifest
    prompt, paths = options.prompt, options.images
    if prompt is None or not paths:  # a bundle may come without golden tensors
        golden = load_record(bundle)
        prompt = golden.prompt if prompt is None else prompt
        paths = paths or tuple(bundle.file(name) for name in golden.images)
    prompt = prompt.strip()  # many chat templates trim; without outer blanks all of them write the same
    request = Request(prompt, paths, ratio=options.ratio, tokens=options.tokens)
    images = open_images(paths)
    plans = [manifest.layout.plan(image.height, image.width) for image in images]
    amount = plan_pruning(request, manifest, plans).amount
    checkpoint = open_checkpoint(options.model or manifest.model.source)
    processor = load_processor(checkpoint)
    _check_same_model(checkpoint, processor, bundle)
    pruning = manifest.pruning
    choice = PruningChoice(
        layer=pruning.layer,
        ratio=amount.ratio,
        tokens=amount.tokens,
        strategy=pruning.strategy,
        aggregation=pruning.aggregation,
        row_scope=pruning.row_scope,
        newline=pruning.newline,
        position_ids=pruning.position_ids,
    )
    check_question(prompt, processor)
    model = load_model(checkpoint)
    oracle = Oracle(checkpoint.family.reference(model, processor), model, processor)
    reference = oracle.run(images, prompt, choice, options.new_tokens)
    # Two sets of weights would be in memory from here on.
    del oracle, model
    generator = Generator(bundle, options.backend, reuse=NO_REUSE)
    measured, units = measure(generator, list(paths), prompt, amount, options.new_tokens)
    return compare(reference, measured, units)


def _check_same_model(checkpoint: Checkpoint, processor: Any, bundle: Bundle) -> None:
    """Compare what the configuration says with what the bundle was built from.

    Raises:
        OptionError: another model.
    """
    from export.checkpoint import load_config
    from runtime.decode import encode

    config, manifest = load_config(checkpoint), bundle.manifest
    layout = checkpoint.family.layout(config, processor)
    layers, text = checkpoint.family.encoder_info(config).layers, config.text_config
    found_layout, built_layout = encode(layout), encode(manifest.layout)
    pairs = {
        **{
            f"layout.{name}": (found_layout.get(name), built_layout.get(name))
            for name in found_layout | built_layout
        },
        "encoder layers, at least": (max(layers, manifest.pruning.layer + 1), layers),
        "decoder layers": (text.num_hidden_layers, manifest.decoder.layers),
        "decoder width": (text.hidden_size, manifest.decoder.hidden_size),
        "image token": (config.image_token_id, manifest.tokens.image),
    }
    for name, (found, built) in pairs.items():
        if found != built:
            raise OptionError(
                f"{checkpoint.path} is not the model of {bundle.path} ({name}: {found} and {built}): give "
                "--model the bundle's checkpoint"
            )


def main(argv: Sequence[str] | None = None) -> int:
    """The command line."""
    args = _parser().parse_args(argv)
    return guarded(lambda _: _run(args))


def _run(args: argparse.Namespace) -> int:
    from rich.console import Console

    from export.golden import reference_name
    from export.report import parity_table
    from export.steps import quiet_libraries
    from runtime.bundle import load_bundle

    bundle = load_bundle(args.bundle)
    options = ParityOptions(
        model=args.model,
        images=tuple(args.image),
        prompt=args.prompt,
        ratio=args.ratio,
        tokens=args.tokens,
        backend=args.backend,
    )
    with quiet_libraries(args.verbose):
        report = compare_with_torch(bundle, options).to_dict()
    if args.json:
        print(json.dumps({"bundle": str(bundle.path), "reference": reference_name(), **report}, indent=2))
    else:
        Console().print(parity_table(report, reasons=True))
    return 0 if report["ok"] else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m export.parity",
        description="Compare a bundle with PyTorch; exits 1 and names the first stage that diverges.",
    )
    parser.add_argument("bundle", help="directory with bundle.json")
    parser.add_argument(
        "--model", metavar="DIR|HUB_ID", help="its checkpoint (default: the one it was built from)"
    )
    parser.add_argument(
        "--image",
        type=Path,
        action="append",
        default=[],
        metavar="FILE",
        help="picture, may be repeated (default: the golden ones)",
    )
    parser.add_argument("--prompt", metavar="TEXT", help="question (default: the golden one)")
    amount = parser.add_mutually_exclusive_group()
    amount.add_argument(
        "--ratio", type=float, metavar="R", help="fraction of the visual tokens that is KEPT, in (0, 1]"
    )
    amount.add_argument("--tokens", type=int, metavar="N", help="visual tokens kept per image")
    parser.add_argument("--backend", default="onnxruntime", help="runtime backend (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of the table")
    parser.add_argument("--verbose", action="store_true", help="show what transformers has to say")
    return parser


if __name__ == "__main__":
    sys.exit(main())
