"""Scoring and selection as a share of encoder time, plain and in chunks.

    python -m bench.score_share --encoder clip-l-336
    python -m bench.score_share --encoder patches-4096 --opset 23 --score-memory 64MiB

The encoder is pruned with every token kept, so that nothing is saved and what is added is seen: time of the
scored graph ÷ time of the encoder as exported, interleaved; then with a third kept, where early gather pays.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from bench.encoders import ENCODERS, EncoderShape, ensure_encoder
from bench.environment import describe_environment
from bench.interleave import Measurement, Variant, interleave, timed
from bench.node_times import profile_graph
from bench.options import Settings, add_common_options, report, run_script, settings_from, status
from bench.results import Result, Table
from fopru_graph import PruneOptions, PruneReport, prune_file
from fopru_graph.commands.sizes import byte_size
from runtime.counts import kept_count

__all__ = ["main", "measure_score_share"]

RATIO = 0.3
EXPORTED = "as exported"
REOPENED = 2048  # patches from which on each variant has the memory for itself


@dataclass(frozen=True)
class Form:
    """One pruned file, with its report."""

    name: str
    path: Path
    report: PruneReport


def measure_score_share(shape: EncoderShape, opset: int, score_memory: int, settings: Settings) -> Result:
    """Measure an encoder as exported, and pruned with plain and with chunked scores."""
    status(f"exporting {shape.name}, opset {opset}")
    source = ensure_encoder(shape.name, opset, settings.workspace.root / "encoders")
    forms = [
        _form("plain", source, PruneOptions()),
        _form("chunked", source, PruneOptions(score_memory=score_memory)),
    ]
    size = int(shape.config["image_size"])
    pixels = np.random.default_rng(0).standard_normal((1, 3, size, size), dtype=np.float32)
    measured = _interleave(shape, source, forms, pixels, settings)
    return _result(shape, opset, forms, (measured, _shares(forms, pixels, settings), settings.threads))


def _shares(forms: list[Form], pixels: Any, settings: Settings) -> dict[str, float]:
    """Part of the kernel time that scoring and selection take, with a third kept; a run of its own each."""
    found = {}
    for form in forms:
        status(f"profile of {form.name}")
        keep = kept_count(int(form.report.tokens or 0), RATIO)
        feeds = {"pixel_values": pixels, "num_keep": np.array([keep], np.int64)}
        times = profile_graph(form.path, feeds, threads=settings.threads, runs=max(1, settings.rounds // 2))
        found[form.name] = times.share("score", "select")
    return found


def _form(name: str, source: Path, options: PruneOptions) -> Form:
    path = source.with_name(f"pruned-{name}.onnx")
    return Form(name, path, prune_file(source, path, options))


def _interleave(
    shape: EncoderShape, source: Path, forms: list[Form], pixels: Any, settings: Settings
) -> Measurement:
    runs = [(EXPORTED, source, {"pixel_values": pixels})]
    for form in forms:
        tokens = int(form.report.tokens or 0)
        for keep in (tokens, kept_count(tokens, RATIO)):
            feeds = {"pixel_values": pixels, "num_keep": np.array([keep], np.int64)}
            runs.append((_variant(form, keep), form.path, feeds))
    big = shape.tokens > REOPENED
    sessions = {} if big else {path: _session(path, settings.threads) for _, path, _ in runs}
    variants = [
        Variant(
            name,
            partial(_alone, path, feeds, settings.threads)
            if big
            else timed(partial(sessions[path].run, None, feeds)),
        )
        for name, path, feeds in runs
    ]
    rounds, warmup = settings.rounds, settings.warmup
    return interleave(variants, rounds=rounds, warmup=warmup, settle=not big, progress=status)


def _alone(path: Path, feeds: dict[str, Any], threads: int) -> dict[str, float]:
    """The second run of a session that is opened for it: the arenas of several would not fit into memory."""
    session = _session(path, threads)
    session.run(None, feeds)
    return timed(partial(session.run, None, feeds))()


def _session(path: Path, threads: int) -> Any:
    import onnxruntime

    from runtime.backends.onnxruntime import session_options

    options = session_options(onnxruntime, threads)
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def _variant(form: Form, keep: int) -> str:
    return f"{form.name}, keep {keep}"


def _result(
    shape: EncoderShape, opset: int, forms: list[Form], run: tuple[Measurement, dict[str, float], int]
) -> Result:
    measured, shares, threads = run
    names = [EXPORTED] + [
        _variant(form, keep)
        for form in forms
        for keep in (int(form.report.tokens or 0), kept_count(int(form.report.tokens or 0), RATIO))
    ]
    rows, figures = [], {}
    for name in names:
        found = measured.summary(name)
        low, high = found.ratio_quartiles or (1.0, 1.0)
        rows.append((name, f"{found.median:.3f}", f"{found.ratio:.3f}", f"{low:.3f} to {high:.3f}"))
        figures[name] = {"seconds": found.median, "ratio": found.ratio, "ratio_quartiles": (low, high)}
    paths = {form.name: form.report.score_path for form in forms}
    title = f"{shape.about}; opset {opset}, {shape.tokens} patches"
    said = ", ".join(f"{name} ({paths[name]}) {100 * share:.2f} %" for name, share in shares.items())
    notes = (
        f"Scoring and selection, part of the kernel time by ONNX Runtime's profiler: {said}.",
        "With every token kept nothing is saved: what the ratio differs from 1 is scoring, selection, noise. "
        "Median and quartiles of ratios within a round.",
    )
    tables = (Table(title, ("variant", "seconds", "÷ as exported", "quartiles"), tuple(rows)),)
    data = {
        "encoder": shape.name,
        "opset": opset,
        "tokens": shape.tokens,
        "paths": paths,
        "shares": shares,
        "variants": figures,
    }
    return Result(
        f"score-share-{shape.name}-opset{opset}",
        describe_environment(threads),
        data,
        {"seconds": measured.samples},
        tables,
        notes,
    )


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.score_share", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--encoder", choices=sorted(ENCODERS), default="clip-l-336")
    parser.add_argument("--opset", type=int, choices=(20, 23), default=20)
    parser.add_argument("--score-memory", type=byte_size, default="4MiB", help="of the chunked form")
    add_common_options(parser, rounds=7)

    def body(options: argparse.Namespace) -> None:
        settings = settings_from(options)
        shape = ENCODERS[options.encoder]
        report(measure_score_share(shape, options.opset, options.score_memory, settings), settings)

    return run_script(parser, body, arguments)


if __name__ == "__main__":
    sys.exit(main())
