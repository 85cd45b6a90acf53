"""A whole vision-language model at ratio 1, .5, .3 and .1, by our runtime and by others, in one run.

    python -m bench.vlm                                    LLaVA-OneVision-0.5B, every engine that is here
    python -m bench.vlm --engines "fopru fp32" "fopru int8" llama.cpp:q8_0
    python -m bench.vlm --model tiny --rounds 1

Same weights, picture, prompt and threads. Engines with a colon are those of `bench.peers`, and run the
language model alone. Before times count, logits are compared with PyTorch in float32; an engine that is not
installed, or fails, is a row that says so.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

import numpy as np

from bench.configurations import CONFIGURATIONS
from bench.costs import model_shape
from bench.errors import BenchError
from bench.node_times import profile_graph
from bench.options import Settings, add_common_options, report, run_script, settings_from, status
from bench.peers.models import language_model_of
from bench.peers.tables import peers_environment
from bench.processors import PROMPT
from bench.vlm.base import RATIOS, Task
from bench.vlm.engines import ENGINES, EngineSpec, choose
from bench.vlm.figures import VlmRun, activation_bytes, weight_bytes
from bench.vlm.plot import draw
from bench.vlm.rig import Bench, Entry, check, measure
from bench.vlm.tables import make_result
from bench.workspace import single_layout
from runtime import Generator, Request, contract, load_bundle
from runtime.bundle import Bundle
from runtime.counts import kept_count

__all__ = ["main"]

PROFILED_RUNS = 2


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m bench.vlm", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", choices=sorted(CONFIGURATIONS), default="llava-onevision-0.5b")
    parser.add_argument("--new", type=int, default=17, help="tokens of an answer (default 17)")
    parser.add_argument(
        "--engines", nargs="+", default=[], metavar="NAME", help=f"of {', '.join(ENGINES)}; or PEER:VARIANT"
    )
    add_common_options(parser, rounds=3)
    parser.set_defaults(warmup=0)  # each engine answers once unmeasured in every round
    return run_script(parser, _run, arguments)


def _run(options: argparse.Namespace) -> None:
    settings = settings_from(options)
    if options.new < 2:
        raise BenchError(f"--new is {options.new}: give at least 2, so that there is a token to decode")
    chosen = choose(options.engines)
    bench, whole = _bench(options, settings, chosen)
    entries = check(bench, chosen, status)
    status("profile of scoring and selection")
    selection = {ratio: _selection(whole, ratio, settings.threads) for ratio in RATIOS}
    measured = measure(bench, entries, status)
    run = _figures(bench, whole, (entries, measured, selection))
    packages = {name for spec in chosen if spec.peer and not spec.missing for name in spec.peer[0].packages}
    result = make_result(run, peers_environment(settings.threads, sorted({*packages, "openvino"})))
    report(result, settings)
    status(f"drawn: {draw(run, settings.results / f'{result.name}.png')}")


def _bench(options: argparse.Namespace, settings: Settings, chosen: list[EngineSpec]) -> tuple[Bench, Bundle]:
    """What is compared, and the float32 bundle."""
    from transformers import AutoConfig

    name, workspace = options.model, settings.workspace
    checkpoint = workspace.checkpoint(name)
    wanted = {"fp32"} | {spec.bundle for spec in chosen if spec.bundle is not None}
    bundles = {}
    for precision in sorted(wanted):
        status(f"bundle, decoder {precision}")
        if precision == "fp32":
            bundles[precision] = workspace.bundle_of(checkpoint, name).resolve()
        else:
            made = workspace.bundle_of(checkpoint, f"{name}-{precision}", f"decoder={precision}")
            bundles[precision] = made.resolve()
    whole = load_bundle(bundles["fp32"], verify=False)
    layout = single_layout(whole)
    side = layout.image_size[0]
    text = _text_tokens(whole, side)
    rows = {ratio: text + layout.prefix_tokens + kept_count(layout.tokens, ratio) for ratio in RATIOS}
    language = language_model_of(checkpoint, workspace.root / "peers" / name / "checkpoint")
    vocabulary = AutoConfig.from_pretrained(checkpoint).get_text_config().vocab_size
    common = name, checkpoint.resolve(), language.resolve(), bundles, settings
    return Bench(*common, side, vocabulary, rows, options.new), whole


def _text_tokens(bundle: Bundle, side: int) -> int:
    """Tokens of the prompt that are no image's."""
    generator = Generator(bundle)
    task = Task(bundle.path, bundle.path, 1, side)
    request = Request(PROMPT, (task.picture,))
    plans = [image.plan for image in generator.preprocess(request.images)]
    ids = generator.tokenize(request, plans)
    return int((ids != bundle.manifest.tokens.image).sum())


def _selection(bundle: Bundle, ratio: float, threads: int) -> float:
    """Seconds of scoring and selection; at ratio 1 the runtime runs the encoder without them."""
    if ratio == 1.0:
        return 0.0
    layout = single_layout(bundle)
    height, width = layout.image_size
    pixels = np.random.default_rng(0).standard_normal((1, 3, height, width), dtype=np.float32)
    feeds = {
        contract.PIXEL_VALUES: pixels,
        contract.NUM_KEEP: np.array([kept_count(layout.tokens, ratio)], np.int64),
    }
    path = bundle.graph(contract.VISION_ENCODER_FOPRU)
    times = profile_graph(path, feeds, threads=threads, runs=PROFILED_RUNS)
    return sum(times.seconds.get(name, 0.0) for name in ("score", "select"))


def _figures(bench: Bench, whole: Bundle, found: tuple[list[Entry], Any, dict[float, float]]) -> VlmRun:
    from transformers import AutoConfig

    entries, measured, selection = found
    config = AutoConfig.from_pretrained(bench.checkpoint)
    shape, layout = model_shape(config), single_layout(whole)
    keeps = {ratio: kept_count(layout.tokens, ratio) for ratio in RATIOS}
    text = bench.rows[1.0] - keeps[1.0] - layout.prefix_tokens
    memory = {}
    for entry in entries:
        if entry.state or entry.spec.bundle is None:
            continue
        bundle = load_bundle(bench.bundles[entry.spec.bundle], verify=False)
        decoder = _decoder(bundle, entry.spec)
        for ratio in entry.spec.ratios:
            answer = entry.answers[ratio]
            parts = (
                weight_bytes(bundle, decoder, pruned=ratio < 1.0),
                answer["kv_allocated"],
                activation_bytes(config, shape, answer["prompt_tokens"]),
            )
            memory[entry.name, ratio] = parts
    return VlmRun(bench.name, entries, measured, shape, keeps, text, selection, memory)


def _decoder(bundle: Bundle, spec: EngineSpec) -> str:
    """The decoder graph that an engine's backend runs."""
    caches = bundle.manifest.decoder.caches
    kind = contract.APPEND if spec.modules else contract.SHARED
    return next((name for name, found in caches.items() if found == kind), next(iter(caches)))


if __name__ == "__main__":
    sys.exit(main())
