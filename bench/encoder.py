"""Does early gather pay for the score? Time of the pruned vision encoder ÷ time of the unpruned one.

    python -m bench.encoder                       CLIP ViT-L/14-336, 576 tokens kept at ratios 1, .5, .3, .1
    python -m bench.encoder --model tiny --rounds 3

ONNX Runtime on the CPU; all variants run interleaved in one process. A second, profiled run says how much of
the pruned graph is scoring and selection; its absolute times are not mixed with the first ones.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from bench.configurations import CONFIGURATIONS
from bench.costs import ModelShape, gmac, model_shape
from bench.environment import describe_environment
from bench.interleave import Measurement, Variant, interleave, timed
from bench.node_times import NodeTimes, profile_graph
from bench.options import Settings, add_common_options, report, run_script, settings_from, status
from bench.results import Result, Table
from bench.workspace import single_layout
from runtime import contract
from runtime.backend import BackendOptions, create_backend
from runtime.bundle import Bundle, load_bundle
from runtime.counts import kept_count

__all__ = ["EncoderRun", "main", "measure_encoder"]

RATIOS = (1.0, 0.5, 0.3, 0.1)
HEADLINE = 0.3
BASELINE = "unpruned"


@dataclass(frozen=True)
class EncoderRun:
    """What was measured, and what it is compared with. `keeps` maps ratio → tokens kept."""

    bundle: Bundle
    shape: ModelShape
    keeps: dict[float, int]
    measured: Measurement
    profile: NodeTimes

    def predicted(self, keep: int) -> float:
        """Multiply-adds of the pruned vision graph ÷ of the unpruned one."""
        return self.shape.vision_stage(keep) / self.shape.vision_stage()


def measure_encoder(name: str, settings: Settings) -> Result:
    """Measure both encoder graphs of one configuration."""
    from transformers import AutoConfig

    bundle = load_bundle(settings.workspace.bundle(name), verify=False)
    layout = single_layout(bundle)
    keeps = {ratio: kept_count(layout.tokens, ratio) for ratio in RATIOS}
    pixels = np.random.default_rng(0).standard_normal((1, 3, *layout.image_size), dtype=np.float32)
    measured = _interleave(bundle, pixels, keeps, settings)
    status("profiled run")
    profile = profile_graph(
        bundle.graph(contract.VISION_ENCODER_FOPRU),
        _feeds(pixels, keeps[HEADLINE]),
        threads=settings.threads,
        runs=max(1, settings.rounds // 2),
    )
    shape = model_shape(AutoConfig.from_pretrained(settings.workspace.checkpoint(name)))
    return _result(name, EncoderRun(bundle, shape, keeps, measured, profile), settings.threads)


def _interleave(bundle: Bundle, pixels: Any, keeps: dict[float, int], settings: Settings) -> Measurement:
    backend = create_backend("onnxruntime", BackendOptions(settings.threads))
    unpruned = backend.open(bundle.graph(contract.VISION_ENCODER))
    pruned = backend.open(bundle.graph(contract.VISION_ENCODER_FOPRU))
    variants = [Variant(BASELINE, timed(partial(unpruned.run, {contract.PIXEL_VALUES: pixels})))]
    for keep in keeps.values():
        variants.append(Variant(_variant(keep), timed(partial(pruned.run, _feeds(pixels, keep)))))
    return interleave(variants, rounds=settings.rounds, warmup=settings.warmup, settle=True, progress=status)


def _feeds(pixels: Any, keep: int) -> dict[str, Any]:
    return {contract.PIXEL_VALUES: pixels, contract.NUM_KEEP: np.array([keep], dtype=np.int64)}


def _variant(keep: int) -> str:
    return f"keep {keep}"


def _result(name: str, run: EncoderRun, threads: int) -> Result:
    keep = run.keeps[HEADLINE]
    summary = run.measured.summary(_variant(keep))
    score_and_select = run.profile.share("score", "select")
    pruning = run.bundle.manifest.pruning
    figures = {
        "model": name,
        "tokens": single_layout(run.bundle).tokens,
        "kept": keep,
        "unpruned_seconds": run.measured.summary(BASELINE).median,
        "pruned_seconds": summary.median,
        "pruned_to_unpruned": summary.ratio,
        "pruned_to_unpruned_quartiles": summary.ratio_quartiles,
        "pruned_to_unpruned_predicted": run.predicted(keep),
        "score_and_select_share_of_pruned": score_and_select,
        "profile_seconds_by_pass": run.profile.seconds,
        "stamped_nodes": run.profile.stamped,
        "stamped_nodes_profiled": run.profile.seen,
        "by_keep": {
            str(kept): {
                "ratio": run.measured.summary(_variant(kept)).ratio,
                "ratio_quartiles": run.measured.summary(_variant(kept)).ratio_quartiles,
                "predicted": run.predicted(kept),
            }
            for kept in run.keeps.values()
        },
    }
    notes = (
        f"Score path {pruning.score_path}, gather {pruning.gather}, layer {pruning.layer}. "
        "÷ unpruned: median and quartiles of the ratios within a round.",
        "`keep` of all tokens scores and selects but saves nothing: an upper bound of a late gather.",
        "predicted: multiply-adds of the pruned vision graph ÷ unpruned, scoring by one pass.",
        f"Scoring and selection: {100 * score_and_select:.2f} % of the pruned graph's kernel time at {keep} "
        "tokens, by ONNX Runtime's profiler in a separate run; nodes found by their fopru.pass stamp "
        f"({run.profile.seen} of {run.profile.stamped} stamped nodes ran as nodes of their own).",
    )
    tables = (_timing_table(name, run), _profile_table(run.profile, keep))
    return Result(
        f"encoder-{name}",
        describe_environment(threads),
        figures,
        {"seconds": run.measured.samples},
        tables,
        notes,
    )


def _timing_table(name: str, run: EncoderRun) -> Table:
    tokens = single_layout(run.bundle).tokens
    rows = []
    for variant, macs, predicted in (
        (BASELINE, run.shape.vision_stage(), 1.0),
        *((_variant(keep), run.shape.vision_stage(keep), run.predicted(keep)) for keep in run.keeps.values()),
    ):
        found = run.measured.summary(variant)
        rows.append(
            (
                variant,
                f"{1e3 * found.median:.1f}",
                f"{1e3 * found.minimum:.1f} to {1e3 * found.maximum:.1f}",
                f"{found.ratio:.4f}",
                _range(found.ratio_quartiles),
                f"{predicted:.4f}",
                f"{gmac(macs):.1f}",
            )
        )
    title = f"Vision encoder of {name}, {tokens} tokens, {run.measured.rounds} interleaved rounds"
    columns = ("variant", "median ms", "range ms", "÷ unpruned", "quartiles", "predicted", "GMAC")
    return Table(title, columns, tuple(rows))


def _range(quartiles: tuple[float, float] | None) -> str:
    return "" if quartiles is None else f"{quartiles[0]:.4f} to {quartiles[1]:.4f}"


def _profile_table(profile: NodeTimes, keep: int) -> Table:
    ordered = sorted(profile.seconds.items(), key=lambda item: -item[1])
    rows = tuple(
        (name, f"{1e3 * seconds:.2f}", f"{100 * profile.share(name):.2f}") for name, seconds in ordered
    )
    return Table(f"Kernel time of the pruned graph by pass, {keep} tokens kept", ("pass", "ms", "%"), rows)


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.encoder", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--model", choices=sorted(CONFIGURATIONS), default="clip-l-336")
    add_common_options(parser, rounds=12)

    def body(options: argparse.Namespace) -> None:
        settings = settings_from(options)
        report(measure_encoder(options.model, settings), settings)

    return run_script(parser, body, arguments)


if __name__ == "__main__":
    sys.exit(main())
