"""Engines opened one at a time, each in a process of its own: checked first, then measured in rounds.

One at a time, because nine copies of a model do not fit into memory, and because an engine that is open keeps
threads and caches. Within a round every engine is opened, and at every ratio answers once unmeasured and then
measured; rounds start with another engine and another ratio each.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from bench import interleave
from bench.child import Child
from bench.errors import BenchError
from bench.options import Settings
from bench.peers import rig as peers
from bench.peers.base import PRECISIONS
from bench.peers.models import prompt_ids
from bench.vlm.base import DECODE, EMBED, PREFILL, TTFT, VISION, Logits
from bench.vlm.engines import EngineSpec

__all__ = ["FIGURES", "Bench", "Entry", "check", "figure_name", "measure"]

FIGURES = (TTFT, VISION, EMBED, PREFILL, DECODE)
Progress = Callable[[str], None]


@dataclass(frozen=True)
class Bench:
    """What all engines have in common.

    Attributes:
        name: of the configuration.
        checkpoint: the whole model.
        language: its language model alone.
        bundles: the bundle by precision of its decoder.
        settings: threads, rounds, where to work.
        side: pixels of the picture.
        vocabulary: text ids are below it.
        rows: prompt tokens of the language model by ratio.
        new: tokens of an answer.
    """

    name: str
    checkpoint: Path
    language: Path
    bundles: Mapping[str, Path]
    settings: Settings
    side: int
    vocabulary: int
    rows: Mapping[float, int]
    new: int

    @property
    def work(self) -> Path:
        """Where logs and converted files go; that of `bench.peers`, which has the same language model."""
        return self.settings.workspace.root / "peers" / self.name

    @property
    def peers(self) -> peers.Bench:
        """The same for engines of the language model."""
        rows = tuple(self.rows.values())
        bundle = self.bundles.get("fp32")
        work = self.work.resolve()
        return peers.Bench(
            self.language, bundle, work, self.vocabulary, rows, self.new, self.settings.threads
        )


@dataclass(frozen=True)
class Entry:
    """An engine and what became of it.

    `state` is "" for one whose times count, else why they do not. `cosine` is that of its logits with
    PyTorch's in float32, `same_tokens` how many tokens of the unpruned answer are PyTorch's before the first
    other one (None for a language model alone). `answers` are counts and memory by ratio, each of a process
    that did nothing else.
    """

    spec: EngineSpec
    state: str = ""
    cosine: float | None = None
    same_tokens: int | None = None
    answers: dict[float, dict[str, Any]] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The engine's."""
        return self.spec.name


class _Model:
    """An engine of the whole model, opened."""

    def __init__(self, bench: Bench, spec: EngineSpec) -> None:
        command = ["bench.vlm.worker", spec.name, "--checkpoint", str(bench.checkpoint)]
        command += ["--threads", str(bench.settings.threads), "--side", str(bench.side)]
        if spec.bundle is not None:
            command += ["--bundle", str(bench.bundles[spec.bundle])]
        self._child = Child(command, bench.work / f"{spec.name}.log".replace(" ", "-"))

    def __enter__(self) -> _Model:
        self._child.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._child.__exit__(kind, error, trace)

    def answer(self, ratio: float, new: int) -> dict[str, Any]:
        return self._child.order({"order": "answer", "ratio": ratio, "new": new})

    def logits(self) -> Logits:
        with tempfile.TemporaryDirectory() as scratch:
            path = Path(scratch) / "logits.npy"
            self._child.order({"order": "logits", "to": str(path)})
            found: Logits = np.load(path)
        return found


class _LanguageModel:
    """An engine of the language model alone, opened: it gets as many text ids as a pruned prompt has rows."""

    def __init__(self, bench: Bench, spec: EngineSpec) -> None:
        assert spec.peer is not None
        self._bench = bench
        self._worker = peers.Worker(spec.peer[0], bench.peers.task(*spec.peer))

    def __enter__(self) -> _LanguageModel:
        self._worker.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._worker.__exit__(kind, error, trace)

    def answer(self, ratio: float, new: int) -> dict[str, Any]:
        ids = prompt_ids(self._bench.vocabulary, self._bench.rows[ratio])
        return self._worker.generate(ids, new)


def _opened(bench: Bench, spec: EngineSpec) -> _Model | _LanguageModel:
    return _Model(bench, spec) if spec.peer is None else _LanguageModel(bench, spec)


def check(bench: Bench, chosen: Sequence[EngineSpec], progress: Progress) -> list[Entry]:
    """Compare every engine with the first one, PyTorch in float32, and take its memory at each ratio.

    What cannot be had, or is not the same model, is an entry with a `state`.

    Raises:
        BenchError: the first one fails.
    """
    reference = chosen[0]
    progress(f"reference: {reference.name}")
    with _Model(bench, reference) as model:
        answer, logits = model.answer(1.0, bench.new), model.logits()
    tokens = list(answer["tokens"])
    entries = [Entry(reference, "", 1.0, len(tokens), {1.0: answer})]
    for spec in chosen[1:]:
        progress(f"checking {spec.name}")
        if spec.missing:
            missing = f"not installed ({', '.join(spec.missing)}): {spec.install}"
            entries.append(Entry(spec, missing))
        elif spec.peer is not None:
            entries.append(_check_language(bench, spec, progress))
        else:
            entries.append(_check_model(bench, spec, (tokens, logits)))
    return entries


def _check_model(bench: Bench, spec: EngineSpec, expected: tuple[list[int], Logits]) -> Entry:
    entry, (tokens, reference) = Entry(spec), expected
    try:
        for ratio in spec.ratios:
            with _Model(bench, spec) as model:
                entry.answers[ratio] = model.answer(ratio, bench.new)
                if ratio == 1.0:
                    cosine, _ = peers.agreement(model.logits()[None], reference[None])
                    entry = replace(entry, cosine=cosine)
    except BenchError as error:
        return replace(entry, state=f"failed: {error}")
    entry = replace(entry, same_tokens=_common(entry.answers[1.0]["tokens"], tokens))
    least = PRECISIONS[spec.precision]
    assert entry.cosine is not None
    if entry.cosine >= least:
        return entry
    state = f"not the same model: cosine {entry.cosine:.4f} of logits with PyTorch, at least {least}"
    return replace(entry, state=state)  # also where it is not a number


def _check_language(bench: Bench, spec: EngineSpec, progress: Progress) -> Entry:
    """By `bench.peers`: the language model of the same checkpoint in PyTorch is the reference."""
    assert spec.peer is not None
    transformers = peers_reference()
    _, found = peers.check(bench.peers, [transformers, spec.peer], lambda line: progress(f"  {line}"))
    if found.state:
        return Entry(spec, found.state, found.cosine)
    entry = Entry(spec, "", found.cosine)
    try:
        for ratio in spec.ratios:
            with _LanguageModel(bench, spec) as model:
                entry.answers[ratio] = model.answer(ratio, bench.new) | {"prompt_tokens": bench.rows[ratio]}
    except BenchError as error:
        return replace(entry, state=f"failed: {error}")
    return entry


def peers_reference() -> Any:
    """The peer and variant that language models are compared with."""
    from bench.peers.registry import choose

    return choose(["transformers:fp32 sdpa"])[0]


def _common(found: Sequence[int], expected: Sequence[int]) -> int:
    same = [one == two for one, two in zip(found, expected, strict=True)]
    return same.index(False) if False in same else len(same)


def figure_name(figure: str, ratio: float) -> str:
    """The name of a figure at a ratio, as it stands in the samples."""
    return f"{figure} at {ratio:g}"


def measure(bench: Bench, entries: Sequence[Entry], progress: Progress) -> interleave.Measurement:
    """Rounds over all engines whose times count.

    Raises:
        BenchError: one fails while it is measured.
    """
    good = [entry.spec for entry in entries if not entry.state]
    turns = {spec.name: 0 for spec in good}

    def run(spec: EngineSpec) -> Mapping[str, float]:
        first = turns[spec.name] % len(spec.ratios)
        turns[spec.name] += 1
        found: dict[str, float] = {}
        with _opened(bench, spec) as engine:
            for ratio in (*spec.ratios[first:], *spec.ratios[:first]):
                engine.answer(ratio, 2)
                answer = engine.answer(ratio, bench.new)
                present = [figure for figure in FIGURES if answer.get(figure) is not None]
                found |= {figure_name(figure, ratio): answer[figure] for figure in present}
        return found

    variants = [interleave.Variant(spec.name, partial(run, spec)) for spec in good]
    rounds, warmup = bench.settings.rounds, bench.settings.warmup
    return interleave.interleave(variants, rounds=rounds, warmup=warmup, progress=progress)
