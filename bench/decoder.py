"""Decode and prefill of each kind of KV cache, and the bytes that a token costs.

    python -m bench.decoder                      decoder of LLaVA-OneVision-0.5B, behind 64, 800, 2,048 rows
    python -m bench.decoder --model tiny --rounds 3

Variants are the bundle's two graphs, run in place, and the same decoder with present = concat(past, new), all
interleaved in one process on ONNX Runtime's CPU provider. The bytes of a token are those that the profiler
says its kernels read and write, of a run of their own.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from bench.concat_decoder import write_concat_decoder
from bench.configurations import CONFIGURATIONS
from bench.environment import describe_environment
from bench.interleave import Measurement, Variant, interleave
from bench.options import Settings, add_common_options, report, run_script, settings_from, status
from bench.results import Result, Table
from runtime import contract
from runtime.backend import Backend, BackendOptions, Session, create_backend
from runtime.backends.onnxruntime import OrtSession, session_options
from runtime.bundle import Bundle, load_bundle
from runtime.decoder import DecoderGraph, DecoderRun, Room
from runtime.kv_cache import cache_bytes
from runtime.manifest import DecoderInfo
from runtime.positions import Positions

__all__ = ["DecoderBench", "main", "measure_decoder"]

PAST = (64, 800, 2048)
PREFILL = (240, 800)
STEPS = 8
_SIZES = ("activation_size", "output_size")  # weights come on top: the profiler does not see packed ones


@dataclass(frozen=True)
class DecoderBench:
    """The graphs by kind of cache, and what they have in common."""

    info: DecoderInfo
    backend: Backend
    embed: Session
    decoders: dict[str, Session]
    files: dict[str, Path]

    def run_of(self, kind: str, length: int) -> DecoderRun:
        """A run with room for a prompt of `length` and a few steps."""
        positions = Positions(np.arange(length, dtype=np.int64)[None], length)
        graph = DecoderGraph(self.embed, self.decoders[kind], kind)
        return DecoderRun(self.backend, graph, self.info, Room(length + STEPS, positions))

    def embeds(self, length: int) -> Any:
        """Rows of a prompt, the same for every kind."""
        shape = (1, length, self.info.hidden_size)
        return np.random.default_rng(length).standard_normal(shape, dtype=np.float32) * np.float32(0.02)


def measure_decoder(name: str, settings: Settings) -> Result:
    """Measure the decoder of one configuration."""
    bundle = load_bundle(settings.workspace.bundle(name), verify=False)
    bench = _open(bundle, settings, name)
    past = [rows for rows in PAST if rows + STEPS <= bench.info.max_positions]
    prefill = [rows for rows in PREFILL if rows <= bench.info.max_positions]
    variants = [Variant(kind, partial(_run, bench, kind, past, prefill)) for kind in bench.decoders]
    _check(bench)
    measured = interleave(
        variants, rounds=settings.rounds, warmup=settings.warmup, settle=True, progress=status
    )
    status("bytes of a token")
    touched = {
        kind: {rows: _token_bytes(bench, kind, rows, settings.threads) for rows in past}
        for kind in bench.decoders
    }
    weights = {kind: _weight_bytes(file) for kind, file in bench.files.items()}
    return _result(name, bench, (measured, touched, weights), settings.threads)


def _open(bundle: Bundle, settings: Settings, name: str) -> DecoderBench:
    checkpoint = settings.workspace.checkpoint(name)
    concat = write_concat_decoder(checkpoint, settings.workspace.root / f"concat-{name}")
    backend = create_backend("onnxruntime", BackendOptions(settings.threads))
    info = bundle.manifest.decoder
    files = {kind: bundle.graph(graph) for graph, kind in info.caches.items()} | {contract.CONCAT: concat}
    status("opening the graphs")
    return DecoderBench(
        info,
        backend,
        backend.open(bundle.graph(contract.EMBED_TOKENS)),
        {kind: backend.open(file) for kind, file in files.items()},
        files,
    )


def _check(bench: DecoderBench) -> None:
    """All kinds give the same logits before their times count; float32 sums in another order."""
    found = {kind: bench.run_of(kind, 16).prefill(bench.embeds(16)).copy() for kind in bench.decoders}
    reference = found[contract.CONCAT]
    for logits in found.values():
        assert np.abs(logits - reference).max() <= 1e-4 * np.abs(reference).max()


def _run(bench: DecoderBench, kind: str, past: list[int], prefill: list[int]) -> Mapping[str, float]:
    figures: dict[str, float] = {}
    for rows in prefill:
        run, embeds = bench.run_of(kind, rows), bench.embeds(rows)
        start = time.perf_counter()
        run.prefill(embeds)
        figures[f"prefill {rows}"] = time.perf_counter() - start
    for rows in past:
        run = _filled(bench, kind, rows)
        start = time.perf_counter()
        for _ in range(STEPS):
            run.step(5)
        figures[f"decode {rows}"] = (time.perf_counter() - start) / STEPS
    return figures


def _filled(bench: DecoderBench, kind: str, rows: int) -> DecoderRun:
    """A run whose cache has `rows` rows of zeros: what they hold does not change the work."""
    run = bench.run_of(kind, rows)
    for view in run.cache.past().values():
        view.buffer[...] = 0
    run.cache.advance(rows)
    return run


def _token_bytes(bench: DecoderBench, kind: str, rows: int, threads: int) -> int:
    """Bytes that the kernels of one step read and write, by ONNX Runtime's profiler."""
    import onnxruntime

    with tempfile.TemporaryDirectory() as scratch:
        options = session_options(onnxruntime, threads)
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(scratch) / "profile")
        session = onnxruntime.InferenceSession(str(bench.files[kind]), options)
        decoders = bench.decoders | {kind: OrtSession(session, kind)}
        profiled = DecoderBench(bench.info, bench.backend, bench.embed, decoders, bench.files)
        _filled(profiled, kind, rows).step(5)
        events = json.loads(Path(session.end_profiling()).read_text())
    kernels = [event["args"] for event in events if str(event.get("name", "")).endswith("_kernel_time")]
    touched = sum(int(args.get(size, 0)) for args in kernels for size in _SIZES)
    # The fused operator lists its one buffer as output too, of which it writes a row.
    return touched - (cache_bytes(bench.info, rows + STEPS) if kind == contract.SHARED else 0)


def _weight_bytes(graph: Path) -> int:
    """Bytes of the weights that a graph reads, wherever they are stored."""
    import onnx_ir as ir

    initializers = ir.load(graph).graph.initializers.values()
    return sum(value.const_value.nbytes for value in initializers if value.const_value is not None)


def _result(
    name: str,
    bench: DecoderBench,
    found: tuple[Measurement, dict[str, dict[int, int]], dict[str, int]],
    threads: int,
) -> Result:
    measured, touched, weights = found
    figures = {
        kind: {figure: measured.summary(kind, figure).median for figure in samples}
        for kind, samples in measured.samples.items()
    }
    names = list(next(iter(figures.values())))
    times = tuple((kind, *(f"{1e3 * own[name]:.1f}" for name in names)) for kind, own in figures.items())
    rows, by_kind = [], {}
    for kind, own in touched.items():
        ratios = {
            past: (weights[kind] + total) / (weights[kind] + cache_bytes(bench.info, past))
            for past, total in own.items()
        }
        by_kind[kind] = {
            str(past): {"bytes": weights[kind] + own[past], "over_floor": ratio}
            for past, ratio in ratios.items()
        }
        rows.append((kind, *(f"{ratio:.2f}" for ratio in ratios.values())))
    table = Table(
        f"Milliseconds, decoder of {name}, {measured.rounds} interleaved rounds", ("cache", *names), times
    )
    bytes_table = Table(
        "Bytes that the kernels of a token touch ÷ (weights + KV cache)",
        ("cache", *(f"past {past}" for past in next(iter(touched.values())))),
        tuple(rows),
    )
    return Result(
        f"decoder-{name}",
        describe_environment(threads),
        {"model": name, "seconds": figures, "token_bytes": by_kind, "weight_bytes": weights},
        measured.samples,
        (table, bytes_table),
        (
            "shared: GroupQueryAttention over one buffer; append: standard operators, new rows bound behind "
            "the old; concat: present = concat(past, new).",
            f"Decode: mean of {STEPS} tokens behind so many rows. Prefill in chunks of the runtime's size.",
            "Bytes: the weights once, and what the profiler says the inputs and outputs of each kernel hold.",
        ),
    )


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.decoder", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--model", choices=sorted(CONFIGURATIONS), default="llava-onevision-0.5b")
    add_common_options(parser, rounds=7)

    def body(options: argparse.Namespace) -> None:
        settings = settings_from(options)
        report(measure_decoder(options.model, settings), settings)

    return run_script(parser, body, arguments)


if __name__ == "__main__":
    sys.exit(main())
