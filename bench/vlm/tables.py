"""The tables of a run, and the JSON behind them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from bench.costs import gmac
from bench.environment import Environment
from bench.results import Result, Table
from bench.vlm.base import DECODE, PREFILL, TTFT, VISION
from bench.vlm.figures import VlmRun
from bench.vlm.rig import FIGURES, Entry, figure_name

__all__ = ["make_result"]

NOTHING = "-"
MIB = 2**20


def make_result(run: VlmRun, environment: Environment) -> Result:
    """Everything that a run says."""
    engines = {entry.name: _figures(run, entry) for entry in run.entries}
    record = {
        "model": run.name,
        "text_tokens": run.text,
        "visual_tokens": {f"{ratio:g}": keep for ratio, keep in run.keeps.items()},
        "prefill_gmac": {
            f"{ratio:g}": gmac(run.shape.prefill_stage(run.text, keep)) for ratio, keep in run.keeps.items()
        },
        "engines": engines,
    }
    tables = (_main_table(run), _gains(run), _memory_table(run), _engine_table(run))
    return Result(f"vlm-{run.name}", environment, record, run.measured.samples, tables, _notes(run))


def _figures(run: VlmRun, entry: Entry) -> dict[str, Any]:
    found: dict[str, Any] = {
        "state": entry.state or "measured",
        "precision": entry.spec.precision,
        "cosine": entry.cosine,
        "same_tokens": entry.same_tokens,
    }
    if entry.state:
        return found
    ratios = {}
    for ratio in entry.spec.ratios:
        own: dict[str, Any] = {
            figure: asdict(run.measured.summary(entry.name, figure_name(figure, ratio)))
            for figure in FIGURES
            if run.values(entry.name, figure, ratio) is not None
        }
        for figure in (TTFT, PREFILL):
            own[f"{figure}_speedup"] = run.speedup(entry.name, figure, ratio)
            own[f"{figure}_speedup_predicted"] = run.predicted(entry.name, figure, ratio)
            own[f"{figure}_achieved"] = run.achieved(entry.name, figure, ratio)
        kept = ("visual_tokens", "prompt_tokens", "kv_bytes", "kv_allocated", "peak_rss", "anonymous")
        own |= {name: entry.answers[ratio].get(name) for name in kept}
        parts = run.memory.get((entry.name, ratio))
        if parts is not None:
            own |= dict(zip(("weight_bytes", "kv_cache_bytes", "activation_bytes"), parts, strict=True))
            own["peak_rss_over_floor"] = run.over_floor(entry.name, ratio)
        ratios[f"{ratio:g}"] = own
    return found | {"ratios": ratios}


def _main_table(run: VlmRun) -> Table:
    rows = []
    for entry in run.good:
        for ratio in entry.spec.ratios:
            vision, prefill, ttft, decode = (
                run.seconds(entry.name, figure, ratio) for figure in (VISION, PREFILL, TTFT, DECODE)
            )
            answer = entry.answers[ratio]
            rows.append(
                (
                    entry.name + ("" if entry.spec.peer is None else " (decoder)"),
                    f"{ratio:g}",
                    str(answer["prompt_tokens"]),
                    _text(vision, lambda value: f"{value:.2f}"),
                    _selection(run, entry, ratio),
                    _text(prefill, lambda value: f"{value:.3f}"),
                    _text(ttft, lambda value: f"{value:.2f}"),
                    _text(run.speedup(entry.name, TTFT, ratio), lambda value: f"{value:.2f}"),
                    _text(decode, lambda value: f"{1 / value:.1f}"),
                    _text(answer.get("kv_bytes"), lambda value: f"{value / MIB:.1f}"),
                    _text(answer.get("peak_rss"), lambda value: f"{value / 1e9:.2f}"),
                )
            )
    columns = (
        "engine",
        "ratio",
        "prompt rows",
        "vision s",
        "score+select ms",
        "prefill s",
        "TTFT s",
        "× ratio 1",
        "tokens/s",
        "KV MiB",
        "peak RSS GB",
    )
    title = f"{run.name}, {run.text} text tokens, {run.measured.rounds} rounds over all engines"
    return Table(title, columns, tuple(rows))


def _selection(run: VlmRun, entry: Entry, ratio: float) -> str:
    ours = entry.spec.bundle is not None and not entry.spec.modules
    return f"{1e3 * run.selection[ratio]:.1f}" if ours else NOTHING


def _gains(run: VlmRun) -> Table:
    """Speed-up by ratio, with the part of what multiply-adds predict."""
    smaller = [ratio for ratio in run.keeps if ratio < 1.0]
    rows = []
    for entry in run.good:
        for figure in (TTFT, PREFILL):
            cells = [_gain(run, entry.name, figure, ratio) for ratio in smaller]
            if any(cell != NOTHING for cell in cells):
                rows.append((f"{entry.name}, {figure}", *cells))
    columns = ("speed-up (÷ predicted)", *(f"ratio {ratio:g}" for ratio in smaller))
    return Table("Against ratio 1, and against the multiply-adds", columns, tuple(rows))


def _gain(run: VlmRun, engine: str, figure: str, ratio: float) -> str:
    found, achieved = run.speedup(engine, figure, ratio), run.achieved(engine, figure, ratio)
    return NOTHING if found is None or achieved is None else f"{found:.2f} ({achieved:.2f})"


def _memory_table(run: VlmRun) -> Table:
    rows = []
    for (engine, ratio), parts in run.memory.items():
        over = run.over_floor(engine, ratio)
        entry = next(entry for entry in run.entries if entry.name == engine)
        peak = entry.answers[ratio].get("peak_rss")
        rows.append(
            (
                engine,
                f"{ratio:g}",
                *(f"{part / MIB:,.0f}" for part in parts),
                _text(peak, lambda value: f"{value / MIB:,.0f}"),
                _text(over, lambda value: f"{value:.2f}"),
            )
        )
    columns = ("MiB", "ratio", "weights", "KV cache", "activations", "peak RSS", "peak ÷ sum")
    return Table("Memory of a process that answers once", columns, tuple(rows))


def _engine_table(run: VlmRun) -> Table:
    rows = [
        (
            entry.name,
            _text(entry.cosine, lambda value: f"{value:.5f}"),
            _text(entry.same_tokens, str),
            entry.state or "measured",
        )
        for entry in run.entries
    ]
    return Table(
        "Unpruned, against PyTorch in float32", ("engine", "cosine", "same tokens", "state"), tuple(rows)
    )


def _text(value: Any, form: Callable[[Any], str]) -> str:
    return NOTHING if value is None else form(value)


def _notes(run: VlmRun) -> tuple[str, ...]:
    peers = {entry.spec.peer[0].about for entry in run.good if entry.spec.peer is not None}
    return (
        "TTFT: vision, embedding, prefill and choice of the first token; preprocessing is left out. "
        "Tokens/s: the tokens after the first. Every figure is a median over rounds; a round opens each "
        "engine in a process of its own, one at a time, and measures the second of two answers at each "
        "ratio.",
        "score+select: kernel time of these nodes in a profiled run of the pruned encoder; part of vision.",
        "Predicted: each stage of the engine's own ratio 1, in proportion to its multiply-adds.",
        "(decoder): the language model alone, with as many random text ids as the pruned prompt has rows.",
        "Cosine and same tokens: at the end of the unpruned prompt, and of the unpruned answer. Of a "
        "language model alone: the mean over 8 positions behind 96 random ids; not to be compared with the "
        "others.",
        "Peak RSS counts mapped weight files; a language model alone has room for ratio 1 at every ratio. "
        "Activations: the largest layer, by arithmetic.",
        *sorted(peers),
    )
