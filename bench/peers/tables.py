"""What a run of peers says: engines, times by prompt length, and what shorter prompts gain."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from bench.environment import Environment, describe_environment
from bench.interleave import Measurement
from bench.peers.rig import DECODE, PREFILL, Entry
from bench.results import Result, Table

__all__ = ["Costs", "make_result", "peers_environment"]

Costs = Mapping[int, int]
"""Multiply-adds of a prefill by rows."""
Found = tuple[Sequence[Entry], Mapping[int, Measurement]]


def make_result(
    name: str, found: Found, asked: tuple[Mapping[int, float | None], Costs], environment: Environment
) -> Result:
    """The result of a run: `found` by `rig.check` and `rig.measure`, for the rows and ratios `asked` for."""
    entries, measured = found
    ratios, costs = asked
    good = [entry for entry in entries if not entry.state]
    tables = [_engines(name, entries)]
    tables += [_times(rows, ratios[rows], good, measurement) for rows, measurement in measured.items()]
    if len(measured) > 1:
        tables.append(_gains(good, measured, costs))
    figures = {
        "engines": [_engine_figures(entry) for entry in entries],
        "rows": {
            str(rows): {
                "ratio": ratios[rows],
                "multiply_adds": costs[rows],
                "engines": {
                    entry.name: {
                        figure: asdict(measurement.summary(entry.name, figure))
                        for figure in (PREFILL, DECODE)
                    }
                    for entry in good
                },
            }
            for rows, measurement in measured.items()
        },
    }
    samples = {str(rows): measurement.samples for rows, measurement in measured.items()}
    return Result(name, environment, figures, samples, tuple(tables), _notes(good, measured))


def peers_environment(threads: int, packages: Sequence[str]) -> Environment:
    """The machine at hand, with the versions of these packages too."""
    found = describe_environment(threads)
    versions = dict(found.versions)
    for package in packages:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return replace(found, versions=versions)


def _engine_figures(entry: Entry) -> dict[str, Any]:
    return {
        "peer": entry.peer.name,
        "variant": entry.variant.name,
        "state": entry.state or "measured",
        "cosine": entry.cosine,
        "same_first_tokens": entry.same_tokens,
        "peak_rss_bytes": entry.peak_rss,
    }


def _engines(name: str, entries: Sequence[Entry]) -> Table:
    rows = [
        (
            entry.name,
            "-" if entry.cosine is None else f"{entry.cosine:.5f}",
            "-" if entry.same_tokens is None else f"{entry.same_tokens:.0%}",
            "-" if entry.peak_rss is None else f"{entry.peak_rss / 1e9:.2f}",
            entry.state or "measured",
        )
        for entry in entries
    ]
    columns = ("engine", "cosine", "same token", "peak RSS GB", "state")
    return Table(f"{name}: logits against PyTorch float32", columns, tuple(rows))


def _times(rows: int, ratio: float | None, good: Sequence[Entry], measured: Measurement) -> Table:
    base = good[0].name
    lines = []
    for entry in good:
        prefill, decode = (measured.summary(entry.name, figure) for figure in (PREFILL, DECODE))
        lines.append(
            (
                entry.name,
                f"{prefill.median:.3f}",
                _faster(measured, base, entry.name, PREFILL),
                f"{decode.median * 1e3:.1f}",
                f"{1 / decode.median:.1f}",
                _faster(measured, base, entry.name, DECODE),
            )
        )
    title = f"{rows} prompt rows" + ("" if ratio is None else f" (ratio {ratio:g})")
    against = f"× {base}"
    columns = ("engine", "prefill s", against, "ms per token", "tokens/s", against)
    return Table(title, columns, tuple(lines))


def _faster(measured: Measurement, base: str, name: str, figure: str) -> str:
    """How many times as fast as the base: median over rounds, and quartiles."""
    low, high = measured.paired_quartiles(base, name, figure)
    return f"{measured.paired_ratio(base, name, figure):.2f} [{low:.2f}, {high:.2f}]"


def _gains(good: Sequence[Entry], measured: Mapping[int, Measurement], costs: Costs) -> Table:
    """Prefill of the longest prompt ÷ prefill of each: what an engine makes of fewer rows."""
    longest, *shorter = sorted(measured, reverse=True)
    floor = ("multiply-adds", *(f"{costs[longest] / costs[rows]:.2f}" for rows in shorter))
    seconds = {
        (entry.name, rows): measurement.summary(entry.name, PREFILL).median
        for entry in good
        for rows, measurement in measured.items()
    }
    lines = [
        (
            entry.name,
            *(f"{seconds[entry.name, longest] / seconds[entry.name, rows]:.2f}" for rows in shorter),
        )
        for entry in good
    ]
    columns = ("prefill", *(f"{longest} ÷ {rows} rows" for rows in shorter))
    return Table("What fewer rows gain", columns, (floor, *lines))


def _notes(good: Sequence[Entry], measured: Mapping[int, Measurement]) -> tuple[str, ...]:
    first = next(iter(measured.values()))
    peers = {entry.peer.name: entry.peer.about for entry in good}
    return (
        f"{first.rounds} rounds, interleaved; × is the median over rounds of {good[0].name} ÷ the engine in "
        "the same round, with quartiles: above 1 is faster.",
        "Every engine takes the same random text ids, as many as kept visual tokens and text together: what "
        "a pruned prompt costs the language model. Vision and image preprocessing are not in it.",
        "Prefill ends with the first token chosen; ms per token is the mean of the others, with the choice.",
        *(about for about in peers.values() if about),
    )
