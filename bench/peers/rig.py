"""Engines in processes of their own: converting, checking and measuring them."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bench import interleave
from bench.child import Child
from bench.errors import BenchError
from bench.peers.base import PRECISIONS, Peer, Task, Variant
from bench.peers.models import prompt_ids

__all__ = [
    "DECODE",
    "PREFILL",
    "Bench",
    "Entry",
    "Worker",
    "agreement",
    "available_bytes",
    "check",
    "measure",
]

PREFILL, DECODE = "prefill", "decode"
CHECKED_ROWS, CHECKED_TOKENS = 96, 8
Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Bench:
    """What all engines have in common.

    Attributes:
        checkpoint: a causal language model.
        bundle: the bundle with its weights, if there is one.
        work: the folder that converted files go to.
        vocabulary: ids of prompts are below it.
        rows: lengths of the prompts.
        new: tokens of an answer.
        threads: of every engine.
    """

    checkpoint: Path
    bundle: Path | None
    work: Path
    vocabulary: int
    rows: tuple[int, ...]
    new: int
    threads: int

    def task(self, peer: Peer, variant: Variant) -> Task:
        """What a variant of a peer is opened for."""
        capacity = max(*self.rows, CHECKED_ROWS) + max(self.new, CHECKED_TOKENS)
        folder = self.work / peer.name
        return Task(self.checkpoint, folder, variant, self.threads, capacity, self.bundle)


@dataclass(frozen=True)
class Entry:
    """One variant of one peer, and what became of it.

    `cosine` is the mean over checked positions, `same_tokens` the share of them with PyTorch's first choice;
    `state` is "" for one whose times count, else why they do not.
    """

    peer: Peer
    variant: Variant
    state: str = ""
    cosine: float | None = None
    same_tokens: float | None = None
    peak_rss: int | None = None

    @property
    def name(self) -> str:
        """`peer variant`."""
        return f"{self.peer.name} {self.variant.name}"


class Worker(Child):
    """A peer's engine in a child process."""

    def __init__(self, peer: Peer, task: Task, *, prepare: bool = False) -> None:
        """Start the process; it is ready when entered."""
        options = {
            "--checkpoint": task.checkpoint,
            "--folder": task.folder,
            "--threads": task.threads,
            "--capacity": task.capacity,
        }
        if task.bundle is not None:
            options["--bundle"] = task.bundle
        command = ["bench.peers.worker", peer.name, task.variant.name]
        command += [str(part) for option in options.items() for part in option]
        log = task.folder.parent / f"{peer.name} {task.variant.name}.log".replace(" ", "-")
        super().__init__(command + ["--prepare"] * prepare, log)

    def __enter__(self) -> Worker:
        super().__enter__()
        return self

    def generate(self, ids: Array, new: int) -> dict[str, Any]:
        """Seconds, tokens and memory of an answer."""
        return self.order({"order": "generate", "ids": ids.tolist(), "new": new})

    def logits(self, ids: Array, more: Sequence[int]) -> Array:
        """float32 [1 + len(more), V]; see `Engine.logits`."""
        with tempfile.TemporaryDirectory() as scratch:
            path = Path(scratch) / "logits.npy"
            self.order({"order": "logits", "ids": ids.tolist(), "more": list(more), "to": str(path)})
            found: Array = np.load(path)
        return found


def check(
    bench: Bench, chosen: Sequence[tuple[Peer, Variant]], progress: Callable[[str], None]
) -> list[Entry]:
    """Convert and check every variant against the first one, PyTorch in float32.

    Each is opened alone and closed again, so that its memory is its own. What cannot be had, or is not the
    same model, is an entry with a `state`.

    Raises:
        BenchError: the first one fails.
    """
    ids = prompt_ids(bench.vocabulary, CHECKED_ROWS, seed=1)
    (peer, variant), *_ = chosen
    progress(f"reference: {peer.name} {variant.name}")
    with Worker(peer, bench.task(peer, variant)) as worker:
        answer = worker.generate(ids, CHECKED_TOKENS)
        tokens = answer["tokens"][:-1]
        reference = worker.logits(ids, tokens)
    entries = [Entry(peer, variant, "", 1.0, 1.0, answer.get("peak_rss"))]
    for peer, variant in chosen[1:]:
        entry = Entry(peer, variant)
        progress(f"checking {entry.name}")
        entries.append(_checked(bench, entry, (ids, tokens), reference))
    return entries


def _checked(bench: Bench, entry: Entry, prompt: tuple[Array, list[int]], reference: Array) -> Entry:
    missing = entry.peer.missing()
    if missing:
        return replace(entry, state=f"not installed ({', '.join(missing)}): {entry.peer.install}")
    if entry.peer.needs_bundle and bench.bundle is None:
        return replace(entry, state="needs the ONNX files of a bundle: give --bundle DIR")
    task = bench.task(entry.peer, entry.variant)
    try:
        if entry.peer.prepare is not None:
            _forget_another_checkpoint(task)
            with Worker(entry.peer, task, prepare=True):
                pass
        with Worker(entry.peer, task) as worker:
            peak = worker.generate(prompt[0], 2).get("peak_rss")
            cosine, same = agreement(worker.logits(*prompt), reference)
    except BenchError as error:
        return replace(entry, state=f"failed: {error}")
    found = replace(entry, cosine=cosine, same_tokens=same, peak_rss=peak)
    least = PRECISIONS[entry.variant.precision]
    if not cosine >= least:  # also where it is not a number
        return replace(
            found, state=f"not the same model: cosine {cosine:.4f} of logits with PyTorch, at least {least}"
        )
    return found


def _forget_another_checkpoint(task: Task) -> None:
    """Remove what a peer converted from other weights than those that are there now."""
    files = [path.stat() for path in sorted(task.checkpoint.glob("*.safetensors"))]
    weights = json.dumps([(status.st_size, status.st_mtime_ns) for status in files])
    stamp = task.folder.with_name(f"{task.folder.name}.weights")
    if not stamp.is_file() or stamp.read_text() != weights:
        shutil.rmtree(task.folder, ignore_errors=True)
        task.folder.parent.mkdir(parents=True, exist_ok=True)
        stamp.write_text(weights)


def agreement(found: Array, expected: Array) -> tuple[float, float]:
    """Mean cosine of rows of logits, and the share of rows with the same first choice.

    Raises:
        BenchError: the shapes differ.
    """
    if found.shape != expected.shape:
        raise BenchError(f"logits have shape {found.shape}, PyTorch's {expected.shape}: not the same model")
    one, two = found.astype(np.float64), expected.astype(np.float64)
    norms = np.linalg.norm(one, axis=1) * np.linalg.norm(two, axis=1)
    cosines = (one * two).sum(axis=1) / norms
    return float(cosines.mean()), float((one.argmax(1) == two.argmax(1)).mean())


def measure(
    bench: Bench, entries: Sequence[Entry], rounds: tuple[int, int], progress: Callable[[str], None]
) -> tuple[dict[int, interleave.Measurement], list[Entry]]:
    """Interleave all engines whose times count; (rounds, warm-up) of `rounds`.

    Returns:
        The measurement by rows of the prompt, and the entries with their peak memory. Engines are all open at
        once, and rest while another one runs.

    Raises:
        BenchError: they do not fit into memory together, or one fails while it is measured.
    """
    good = [entry for entry in entries if not entry.state]
    _check_memory(good)
    peaks: dict[str, int] = {}
    with ExitStack() as stack:
        workers = {}
        for entry in good:
            progress(f"loading {entry.name}")
            workers[entry.name] = stack.enter_context(
                Worker(entry.peer, bench.task(entry.peer, entry.variant))
            )
        measured = {}
        for rows in bench.rows:
            ids = prompt_ids(bench.vocabulary, rows)

            def run(name: str, ids: Array = ids) -> Mapping[str, float]:
                answer = workers[name].generate(ids, bench.new)
                peaks[name] = answer.get("peak_rss", 0)
                return {PREFILL: answer[PREFILL], DECODE: answer[DECODE]}

            variants = [
                interleave.Variant(name, lambda name=name, run=run: run(name))  # type: ignore[misc]
                for name in workers
            ]
            measured[rows] = interleave.interleave(
                variants,
                rounds=rounds[0],
                warmup=rounds[1],
                progress=lambda line, rows=rows: progress(f"{rows} rows, {line}"),  # type: ignore[misc]
            )
    return measured, [replace(entry, peak_rss=peaks.get(entry.name) or entry.peak_rss) for entry in entries]


def _check_memory(entries: Sequence[Entry]) -> None:
    needed, free = sum(entry.peak_rss or 0 for entry in entries), available_bytes()
    if free is not None and needed > free:
        raise BenchError(
            f"{len(entries)} engines together took {needed / 1e9:.1f} GB when checked, and "
            f"{free / 1e9:.1f} GB are free: choose some with --peers"
        )


def available_bytes() -> int | None:
    """Memory that can be had without swapping; None where the system does not tell."""
    listing = Path("/proc/meminfo")
    if not listing.is_file():
        return None
    return int(listing.read_text().split("MemAvailable:")[1].split()[0]) * 1024
