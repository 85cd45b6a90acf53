"""Large pictures: the encoder pruned and unpruned, and what scoring takes of its time and of memory.

    python -m bench.tiles                                  LLaVA-NeXT at 672 px, Qwen2.5-VL at 1,288 px
    python -m bench.tiles --families qwen2_5_vl --depth 8 --rounds 3
    python -m bench.tiles --tiny                           everything small: checks the script

Published tower sizes, projector as wide as the published decoder, random weights; encoder graphs only, all
units of the picture in one call. Every run is a process of its own (`bench/one_run.py`), so that its peak
memory is its own; variants take turns. What will not fit is refused by arithmetic before anything is built.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from PIL import Image

from bench.encoder_graphs import Graphs, Shape, ensure_graphs, shape_of
from bench.environment import describe_environment
from bench.errors import BenchError
from bench.family_models import FAMILY_MODELS, Cut, FamilyModel
from bench.images import block_image
from bench.interleave import SECONDS, Measurement, Variant, interleave
from bench.memory import run_measured
from bench.options import Settings, add_common_options, report, run_script, settings_from, status
from bench.results import Result, Table
from fopru_graph.commands.sizes import byte_size
from runtime import contract
from runtime.counts import kept_count
from runtime.preprocess import prepare

__all__ = ["Estimate", "available_memory", "main", "measure_tiles"]

RATIO = 0.3
UNPRUNED, PLAIN = "unpruned", "plain"
PEAK, SCORE, SELECT, KERNELS = "peak", "score", "select", "kernels"
FLOAT = 4  # bytes
ROUNDS = {"llava_next": 7, "qwen2_5_vl": 2}  # seconds and most of a minute for a run
SIDES = {"llava_next": 672, "qwen2_5_vl": 1288}
TINY_SIDES = {"llava_next": 224, "qwen2_5_vl": 168}
SCORE_MEMORY = {"llava_next": 4 << 20, "qwen2_5_vl": 64 << 20}  # less than a unit's plain probabilities
TINY_SCORE_MEMORY = 16 << 10
WIDTHS = {"llava_next": 4096, "qwen2_5_vl": 2048}  # of the published decoders: Vicuna-7B, Qwen2.5-3B


@dataclass(frozen=True)
class Estimate:
    """Bytes that a run will need, by arithmetic.

    `probabilities` are those of one layer that looks at whole units: units x heads x rows x rows float32. A
    graph holds one such tensor at a time, and scoring that computes them again a second one. Weights count
    twice: ONNX Runtime packs those of products once more.
    """

    weights: int
    probabilities: int

    @property
    def total(self) -> int:
        """Of the variant that needs most, a tenth added for all other tensors."""
        return int(1.1 * (2 * self.weights + 2 * self.probabilities))

    def check(self, available: int | None) -> None:
        """Refuse what will not fit.

        Raises:
            BenchError: it will not.
        """
        if available is not None and self.total > available:
            raise BenchError(
                f"a run needs about {_gib(self.total)} ({_gib(2 * self.weights)} for weights, "
                f"{_gib(2 * self.probabilities)} for attention), but {_gib(available)} are free: "
                "give a smaller --depth or --size"
            )


def _gib(count: int) -> str:
    return f"{count / 2**30:.1f} GiB"


def available_memory() -> int | None:
    """Bytes that a new process can get without swapping; None where the system does not tell."""
    listing = Path("/proc/meminfo")
    if not listing.is_file():
        return None
    return int(listing.read_text().split("MemAvailable:")[1].split()[0]) * 1024


def measure_tiles(model: FamilyModel, cut: Cut, side: int, score_memory: int, settings: Settings) -> Result:
    """Measure one family on one picture of `side` x `side` pixels."""
    shape = shape_of(model, cut, side)
    estimate = Estimate(shape.weights, shape.units * shape.heads * shape.rows**2 * FLOAT)
    available = available_memory()
    status(
        f"{model.name}: about {_gib(estimate.total)} of memory for a run"
        + ("" if available is None else f", {_gib(available)} are free")
    )
    estimate.check(available)
    name = f"tiles-{model.name}-{_suffix(cut)}"
    folder = settings.workspace.root / "encoders" / name
    status(f"{model.name}: exporting the encoder")
    graphs = ensure_graphs(model, cut, folder, score_memory)
    feeds = _write_feeds(graphs, side, folder / f"feeds-{side}.npz")
    variants = [
        Variant(variant, partial(_run, path, feeds, settings)) for variant, path in graphs.paths.items()
    ]
    measured = interleave(variants, rounds=settings.rounds, warmup=0, progress=status)
    return _result(model, cut, (shape, estimate, graphs), (measured, score_memory, settings))


def _suffix(cut: Cut) -> str:
    if cut.tiny:
        return "tiny"
    return "published" if cut.depth is None else f"depth{cut.depth}"


def _write_feeds(graphs: Graphs, side: int, target: Path) -> Path:
    """Inputs of all variants for one picture, its units in one call."""
    prepared = prepare(Image.fromarray(block_image(side, side, seed=0)), graphs.layout, graphs.preprocess)
    units = prepared.plan.units
    feeds: Mapping[str, Any] = {
        contract.PIXEL_VALUES: prepared.pixel_values,
        **prepared.plan.inputs,
        contract.NUM_KEEP: np.array([kept_count(units[0].tokens, RATIO)], np.int64),
        contract.TOKEN_MASK: np.ones((len(units), units[0].tokens), np.bool_),
    }
    np.savez(target, **feeds)
    return target


def _run(graph: Path, feeds: Path, settings: Settings) -> dict[str, float]:
    """One run in a process of its own."""
    command = [sys.executable, "-m", "bench.one_run", str(graph), str(feeds)]
    command += ["--threads", str(settings.threads), "--warmup", str(settings.warmup)]
    usage = run_measured(command)
    if usage.returncode != 0:
        raise BenchError(
            f"a run of {graph.name} ended with status {usage.returncode}: if it was killed, memory was too "
            "small, give a smaller --depth or --size"
        )
    said = json.loads(usage.stdout)
    kernel = said["kernel"]
    return {
        SECONDS: said["seconds"],
        PEAK: usage.peak_anonymous_bytes or usage.peak_rss_bytes,
        KERNELS: sum(kernel.values()),
        SCORE: kernel.get("score", 0.0),
        SELECT: kernel.get("select", 0.0),
    }


def _share(measured: Measurement, variant: str) -> float:
    """Part of the kernel time that scoring and selection take: the median over rounds."""
    parts = (measured.values(variant, figure) for figure in (SCORE, SELECT, KERNELS))
    return median((score + select) / whole for score, select, whole in zip(*parts, strict=True))


def _result(
    model: FamilyModel,
    cut: Cut,
    what: tuple[Shape, Estimate, Graphs],
    run: tuple[Measurement, int, Settings],
) -> Result:
    (shape, estimate, graphs), (measured, score_memory, settings) = what, run
    kept = shape.units * kept_count(shape.tokens, RATIO)
    unpruned_peak = measured.summary(UNPRUNED, PEAK).median
    rows, figures = [], {}
    for variant in graphs.paths:
        found, peak = measured.summary(variant), measured.summary(variant, PEAK).median
        low, high = found.ratio_quartiles or (1.0, 1.0)
        share = None if variant == UNPRUNED else _share(measured, variant)
        rows.append(
            (
                variant,
                f"{found.median:.2f}",
                f"{found.minimum:.2f} to {found.maximum:.2f}",
                f"{found.ratio:.3f}",
                f"{low:.3f} to {high:.3f}",
                "" if share is None else f"{100 * share:.2f}",
                f"{peak / 2**30:.2f}",
                f"{(peak - unpruned_peak) / 2**30:+.2f}",
            )
        )
        figures[variant] = {
            "seconds": found.median,
            "ratio": found.ratio,
            "ratio_quartiles": (low, high),
            "score_and_select_share": share,
            "peak_bytes": peak,
            "peak_over_unpruned_bytes": peak - unpruned_peak,
        }
    reports = graphs.reports
    paths = {name: report.score_path for name, report in reports.items()}
    left = ", everything cut down" if cut.tiny else f", tower cut to {cut.depth} layers"
    left = left if cut.tiny or cut.depth is not None else ""
    columns = (
        *("variant", "seconds", "range", "÷ unpruned", "quartiles", "score + select %"),
        *("peak GiB", "over unpruned"),
    )
    title = f"{model.about}{left}, {shape.side} x {shape.side} pixels, {measured.rounds} rounds"
    notes = (
        f"Units in one call: {shape.units}, each of {shape.rows} attention rows and {shape.heads} heads; "
        f"{shape.units * shape.tokens} -> {kept} tokens; gather {reports[PLAIN].gather}, layer "
        f"{reports[PLAIN].layer}.",
        "Scores: "
        + ", ".join(f"{name} by {path}" for name, path in paths.items())
        + f" of at most {score_memory / 2**20:g} MiB per unit. One plain set of probabilities is "
        f"{estimate.probabilities / 2**30:.2f} GiB.",
        "Peak: anonymous memory of a process that runs this graph once. Share: of the kernel time by ONNX "
        "Runtime's profiler, which was on in all runs.",
    )
    data = {
        "family": model.name,
        "cut": asdict(cut),
        "shape": asdict(shape),
        "ratio": RATIO,
        "kept": kept,
        "score_memory": score_memory,
        "probabilities_bytes": estimate.probabilities,
        "estimated_bytes": estimate.total,
        "paths": paths,
        "gather": reports[PLAIN].gather,
        "layer": reports[PLAIN].layer,
        "variants": figures,
    }
    suffix = "" if cut == Cut(width=cut.width) else f"-{_suffix(cut)}"
    return Result(
        f"tiles-{model.name}-{shape.side}{suffix}",
        describe_environment(settings.threads),
        data,
        {"runs": measured.samples},
        (Table(title, columns, tuple(rows)),),
        notes,
    )


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.tiles", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument(
        "--families", nargs="+", choices=list(SIDES), default=list(SIDES), help="default: both"
    )
    parser.add_argument("--size", type=int, help="side of the picture in pixels (default: 672 and 1288)")
    parser.add_argument("--depth", type=int, help="layers of the towers (default: as published)")
    parser.add_argument("--tiny", action="store_true", help="everything small")
    parser.add_argument(
        "--score-memory", type=byte_size, help="of the chunked form, per unit (default: 4MiB and 64MiB)"
    )
    parser.add_argument("--rounds", type=int, help="measured rounds (default: 7 and 2)")
    parser.add_argument("--warmup", type=int, default=0, help="runs before the measured one (default 0)")
    add_common_options(parser, rounds=None)
    parser.set_defaults(rounds=None, warmup=0)

    def body(options: argparse.Namespace) -> None:
        chosen, options.rounds = options.rounds, 1 if options.rounds is None else options.rounds
        settings = settings_from(options)
        for name in dict.fromkeys(options.families):
            side = options.size or (TINY_SIDES if options.tiny else SIDES)[name]
            width = None if options.tiny else WIDTHS[name]
            memory = options.score_memory or (TINY_SCORE_MEMORY if options.tiny else SCORE_MEMORY[name])
            cut = Cut(tiny=options.tiny, depth=options.depth, width=width)
            own = replace(settings, rounds=ROUNDS[name] if chosen is None else chosen)
            result = measure_tiles(FAMILY_MODELS[name], cut, side, memory, own)
            report(result, settings)

    return run_script(parser, body, arguments)


if __name__ == "__main__":
    sys.exit(main())
