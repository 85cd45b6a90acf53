"""What pruning a large encoder costs: seconds and peak memory of `python -m fopru_graph prune`.

    python -m bench.rewrite_cost                   CLIP ViT-H/14-224, 2.5 GB of weights
    python -m bench.rewrite_cost --encoder tiny

Each run is a process of its own, from start to end, imports included; weights stay on disk.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from bench.encoders import ENCODERS, ensure_encoder
from bench.environment import describe_environment
from bench.errors import BenchError
from bench.memory import ChildUsage, run_measured
from bench.options import Settings, add_common_options, report, run_script, settings_from, status
from bench.results import Result, Table

__all__ = ["main", "measure_rewrite"]

OPSET = 20
GOAL_SECONDS, GOAL_BYTES = 5.0, 0.5e9


def measure_rewrite(name: str, settings: Settings) -> Result:
    """Prune one encoder `settings.rounds` times."""
    status(f"exporting {name}")
    source = ensure_encoder(name, OPSET, settings.workspace.root / "encoders")
    target = source.with_name("pruned.onnx")
    weights = sum(path.stat().st_size for path in source.parent.glob("encoder.onnx.data*"))
    usages, idle = [], _run([sys.executable, "-c", "import fopru_graph.api"])
    for number in range(settings.rounds):
        status(f"rewrite {number + 1} of {settings.rounds}")
        usages.append(
            _run([sys.executable, "-m", "fopru_graph", "prune", str(source), "-o", str(target), "--json"])
        )
    return _result(name, weights, target, (idle, usages))


def _run(command: list[str]) -> ChildUsage:
    usage = run_measured(command)
    if usage.returncode != 0:
        raise BenchError(f"`{' '.join(command)}` ended with status {usage.returncode}: see its message above")
    return usage


def _result(name: str, weights: int, target: Path, runs: tuple[ChildUsage, list[ChildUsage]]) -> Result:
    idle, usages = runs
    seconds = [usage.seconds for usage in usages]
    peaks = [usage.peak_rss_bytes for usage in usages]
    figures = {
        "encoder": name,
        "weight_bytes": weights,
        "pruned_file_bytes": target.stat().st_size,
        "seconds": sorted(seconds)[len(seconds) // 2],
        "peak_rss_bytes": max(peaks),
        "import_seconds": idle.seconds,
        "import_peak_rss_bytes": idle.peak_rss_bytes,
        "goal_seconds": GOAL_SECONDS,
        "goal_bytes": GOAL_BYTES,
    }
    rows = [("import alone", f"{idle.seconds:.2f}", f"{idle.peak_rss_bytes / 1e6:.0f}")]
    rows += [
        (f"prune {number}", f"{usage.seconds:.2f}", f"{usage.peak_rss_bytes / 1e6:.0f}")
        for number, usage in enumerate(usages, start=1)
    ]
    title = f"Pruning {ENCODERS[name].about}: {weights / 1e9:.2f} GB of weights"
    note = (
        f"Goal: below {GOAL_SECONDS:.0f} s and {GOAL_BYTES / 1e6:.0f} MB. The pruned file has "
        f"{target.stat().st_size / 1e6:.2f} MB and points to the weights of the unpruned one."
    )
    samples = {"seconds": seconds, "peak_rss_bytes": peaks}
    tables = (Table(title, ("process", "seconds", "peak RSS MB"), tuple(rows)),)
    return Result(f"rewrite-{name}", describe_environment(None), figures, samples, tables, (note,))


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.rewrite_cost", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--encoder", choices=sorted(ENCODERS), default="clip-h-224")
    add_common_options(parser, rounds=5, timed=False)

    def body(options: argparse.Namespace) -> None:
        settings = settings_from(options)
        report(measure_rewrite(options.encoder, settings), settings)

    return run_script(parser, body, arguments)


if __name__ == "__main__":
    sys.exit(main())
