"""What building a bundle costs: seconds, and peak memory against the size of the weights.

    python -m bench.export_cost                   LLaVA-OneVision-0.5B shapes
    python -m bench.export_cost --model tiny

The build runs in a process of its own, whose memory counters are read until it ends; it uses
as many threads as it likes.
"""

from __future__ import annotations

import argparse
import sys

from bench.configurations import CONFIGURATIONS
from bench.environment import describe_environment
from bench.memory import ChildUsage
from bench.options import Settings, add_common_options, report, run_script, settings_from, status
from bench.results import Result, Table
from bench.workspace import BuildCost

__all__ = ["main", "measure_export"]


def measure_export(name: str, settings: Settings) -> Result:
    """Build the bundle of one configuration, `settings.rounds` times."""
    settings.workspace.checkpoint(name)
    costs = []
    for number in range(settings.rounds):
        status(f"build {number + 1} of {settings.rounds}")
        costs.append(settings.workspace.rebuild(name))
    return _result(name, costs)


def _result(name: str, costs: list[BuildCost]) -> Result:
    weights = costs[0].weight_bytes
    seconds = [cost.usage.seconds for cost in costs]
    peaks = [cost.usage.peak_rss_bytes for cost in costs]
    anonymous = [
        cost.usage.peak_anonymous_bytes for cost in costs if cost.usage.peak_anonymous_bytes is not None
    ]
    figures = {
        "model": name,
        "build_command": costs[0].command,
        "weight_bytes": weights,
        "bundle_bytes": costs[0].bundle_bytes,
        "seconds": min(seconds),
        "peak_rss_bytes": max(peaks),
        "peak_rss_to_weights": max(peaks) / weights,
        "peak_anonymous_bytes": max(anonymous, default=None),
        "peak_anonymous_to_weights": max(anonymous) / weights if anonymous else None,
    }
    rows = tuple(_row(number, cost.usage, weights) for number, cost in enumerate(costs, start=1))
    title = f"Bundle of {name}: {weights / 1e9:.3f} GB of weights → {costs[0].bundle_bytes / 1e9:.3f} GB"
    columns = ("build", "seconds", "peak RSS GB", "÷ weights", "peak anonymous GB", "÷ weights")
    notes = (
        f"Measured: `{costs[0].command}`",
        "Peak RSS counts pages of memory-mapped weight files too, which the system can drop; "
        "anonymous memory is what it cannot.",
    )
    steps = [cost.steps for cost in costs]
    samples = {"seconds": seconds, "peak_rss_bytes": peaks, "peak_anonymous_bytes": anonymous, "steps": steps}
    parts = tuple((step, f"{taken:.1f}") for step, taken in steps[0].items())
    tables = (Table(title, columns, rows), Table("Steps of the first build", ("step", "seconds"), parts))
    return Result(f"export-{name}", describe_environment(None), figures, samples, tables, notes)


def _row(number: int, usage: ChildUsage, weights: int) -> tuple[str, ...]:
    anonymous = usage.peak_anonymous_bytes
    return (
        str(number),
        f"{usage.seconds:.1f}",
        f"{usage.peak_rss_bytes / 1e9:.2f}",
        f"{usage.peak_rss_bytes / weights:.2f}",
        "" if anonymous is None else f"{anonymous / 1e9:.2f}",
        "" if anonymous is None else f"{anonymous / weights:.2f}",
    )


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.export_cost", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--model", choices=sorted(CONFIGURATIONS), default="llava-onevision-0.5b")
    add_common_options(parser, rounds=1, timed=False)

    def body(options: argparse.Namespace) -> None:
        settings = settings_from(options)
        report(measure_export(options.model, settings), settings)

    return run_script(parser, body, arguments)


if __name__ == "__main__":
    sys.exit(main())
