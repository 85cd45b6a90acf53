"""Engines that others wrote, on one decoder: prefill and decode, in one interleaved run.

    python -m bench.peers --model qwen2-0.5b --rows 240,800 --new 32
    python -m bench.peers --visual-tokens 729 --text-tokens 40          rows at ratio 1, .5, .3 and .1
    python -m bench.peers --peers "llama.cpp:q4_0" transformers
    python -m bench.peers --configuration smolvlm-256m-decoder          with our runtime: builds the bundle
    python -m bench.peers --checkpoint DIR --bundle DIR                 the same with your own

Same weights, same ids, same threads. Before times count, logits are compared with PyTorch in float32; an
engine that is not installed, or fails, is a row that says so.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from bench.configurations import CONFIGURATIONS
from bench.errors import BenchError
from bench.options import Settings, add_common_options, report, run_script, settings_from, status
from bench.peers.models import DECODERS, ensure_decoder, language_model_of, rows_at
from bench.peers.registry import PEERS, choose
from bench.peers.rig import Bench, check, measure
from bench.peers.tables import Costs, make_result, peers_environment

__all__ = ["main", "rows_of"]

RATIOS = (1.0, 0.5, 0.3, 0.1)


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.peers", description=(__doc__ or "").splitlines()[0]
    )
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--model", choices=sorted(DECODERS), default="qwen2-0.5b", help="published decoder")
    what.add_argument(
        "--configuration",
        choices=sorted(CONFIGURATIONS),
        help="published model; its bundle is built",
    )
    what.add_argument("--checkpoint", type=Path, help="of a language model, or with one inside")
    parser.add_argument("--bundle", type=Path, help="of that checkpoint: for engines that run our ONNX files")
    parser.add_argument("--rows", default="240,800", help="prompt lengths, with commas (default 240,800)")
    parser.add_argument("--visual-tokens", type=int, help="instead of --rows: those of an image at ratio 1")
    parser.add_argument("--text-tokens", type=int, default=40, help="beside them (default 40)")
    parser.add_argument("--new", type=int, default=32, help="tokens of an answer (default 32)")
    parser.add_argument(
        "--peers", nargs="+", default=[], metavar="NAME[:VARIANT]", help=f"of {', '.join(PEERS)}"
    )
    add_common_options(parser, rounds=5)
    return run_script(parser, _run, arguments)


def rows_of(options: argparse.Namespace) -> dict[int, float | None]:
    """Prompt lengths, longest first, and the ratio that each stands for, if any.

    Raises:
        BenchError: not positive whole numbers.
    """
    if options.visual_tokens is not None:
        if options.visual_tokens < 1 or options.text_tokens < 1:
            raise BenchError(
                f"--visual-tokens is {options.visual_tokens} and --text-tokens {options.text_tokens}: "
                "give at least 1"
            )
        return dict(rows_at(RATIOS, options.visual_tokens, options.text_tokens))
    try:
        rows = sorted({int(part) for part in options.rows.split(",")}, reverse=True)
    except ValueError:
        rows = []
    if not rows or rows[-1] < 1:
        raise BenchError(f"--rows is {options.rows!r}: give whole numbers with commas, such as 240,800")
    return dict.fromkeys(rows)


def _run(options: argparse.Namespace) -> None:
    settings, rows = settings_from(options), rows_of(options)
    if options.new < 2:
        raise BenchError(f"--new is {options.new}: give at least 2, so that there is a token to decode")
    if options.bundle is not None and options.checkpoint is None:
        raise BenchError("--bundle needs --checkpoint: the one that the bundle was built from")
    chosen = choose(options.peers)
    reference = choose(["transformers:fp32 sdpa"])[0]
    chosen = [reference, *(pair for pair in chosen if pair != reference)]
    if reference[0].missing():
        raise BenchError(f"logits are compared with PyTorch: {reference[0].install}")
    if options.configuration is not None:
        options.checkpoint = settings.workspace.checkpoint(options.configuration)
        options.bundle = settings.workspace.bundle(options.configuration)
    bench, costs, name = _bench(options, settings, tuple(rows))
    entries = check(bench, chosen, status)
    measured, entries = measure(bench, entries, (settings.rounds, settings.warmup), status)
    environment = peers_environment(settings.threads, _packages(chosen))
    result = make_result(name, (entries, measured), (rows, costs), environment)
    report(result, settings)


def _bench(
    options: argparse.Namespace, settings: Settings, rows: tuple[int, ...]
) -> tuple[Bench, Costs, str]:
    """What is compared, its multiply-adds, and the name of the result."""
    from transformers import AutoConfig

    from export.costs import decoder_shape

    name = options.model if options.checkpoint is None else options.checkpoint.resolve().name
    work = settings.workspace.root / "peers" / name
    if options.checkpoint is None:
        checkpoint = ensure_decoder(name, work / "checkpoint")
    else:
        checkpoint = language_model_of(options.checkpoint, work / "checkpoint")
    config = AutoConfig.from_pretrained(checkpoint)
    longest = max(rows) + options.new
    if longest > config.max_position_embeddings:
        raise BenchError(
            f"{longest} positions are asked for, and {name} has {config.max_position_embeddings}: "
            "give fewer --rows or --new"
        )
    bundle = None if options.bundle is None else options.bundle.resolve()
    common = checkpoint.resolve(), bundle, work.resolve(), config.vocab_size
    shape = decoder_shape(config)
    costs = {count: shape.prefill(count) for count in rows}
    return Bench(*common, rows, options.new, settings.threads), costs, f"peers-{name}"


def _packages(chosen: Sequence[tuple[object, object]]) -> list[str]:
    """Distributions whose versions decide the figures of these peers."""
    names = {package for peer, _ in chosen for package in getattr(peer, "packages", ())}
    return sorted(names)


if __name__ == "__main__":
    sys.exit(main())
