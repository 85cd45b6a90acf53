"""What a peer is: an engine that others wrote, and the few things that it is asked to do.

A peer is one file with a constant `PEER`, listed in `bench.peers.registry`. Each variant of it (a precision,
an attention) is opened in a process of its own (`bench.peers.worker`), so that thread pools and memory of one
engine are not another's.
"""

from __future__ import annotations

import importlib
import importlib.util
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bench.errors import BenchError

__all__ = [
    "PRECISIONS",
    "Answer",
    "Engine",
    "Peer",
    "SteppingEngine",
    "Task",
    "Variant",
    "optional",
    "require_bundle",
]

Array = npt.NDArray[Any]
Ids = npt.NDArray[np.int64]

PRECISIONS = {"fp32": 0.99999, "fp16": 0.999, "bf16": 0.995, "int8": 0.98, "int4": 0.5}
"""Least cosine of logits with PyTorch in float32, averaged over positions, for times to count.

They tell a wrong model from a rounded one, no more: unrelated logits have a cosine near 0. Random weights
are the worst case of int4, and of nothing else; what each variant really reaches is printed.
"""


@dataclass(frozen=True)
class Variant:
    """One way to run an engine: its name in tables, and what the weights are kept in (`PRECISIONS`)."""

    name: str
    precision: str

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise BenchError(
                f"variant {self.name} has precision {self.precision!r}: choose one of {', '.join(PRECISIONS)}"
            )


@dataclass(frozen=True)
class Task:
    """What an engine is opened for.

    Attributes:
        checkpoint: a causal language model as transformers saves it, float32 or float16.
        folder: where a peer keeps what it converts the checkpoint to.
        variant: one of the peer's.
        threads: inside one operator.
        capacity: positions of the longest prompt and its answer.
        bundle: the bundle whose decoder has the weights of `checkpoint`, for engines that run our ONNX files.
    """

    checkpoint: Path
    folder: Path
    variant: Variant
    threads: int
    capacity: int
    bundle: Path | None = None


@dataclass(frozen=True)
class Answer:
    """A greedy answer.

    Attributes:
        prefill: seconds from the ids of the prompt to the first token.
        decode: seconds per further token; 0 where there is none.
        tokens: what was answered.
    """

    prefill: float
    decode: float
    tokens: tuple[int, ...]

    @classmethod
    def timed(cls, prefill: float, rest: float, tokens: Iterable[int]) -> Answer:
        """The answer `tokens`: the first after `prefill` seconds, the others in `rest` seconds together."""
        found = tuple(map(int, tokens))
        return cls(prefill, rest / (len(found) - 1) if len(found) > 1 else 0.0, found)


class Engine(ABC):
    """An opened engine. Not to be used from two threads at once."""

    @abstractmethod
    def generate(self, ids: Ids, new: int) -> Answer:
        """Answer a prompt [P] with `new` tokens, greedily and past any end; nothing is kept between calls."""

    @abstractmethod
    def logits(self, ids: Ids, more: Ids) -> Array:
        """float32 [1 + len(more), V]: logits after the prompt `ids`, and after each of the tokens `more`."""


class SteppingEngine(Engine):
    """An engine that gives logits step by step: timing, choice of tokens and logits are the same for all."""

    @abstractmethod
    def prefill(self, ids: Ids) -> Array:
        """Start anew with a prompt [P]; logits [V] of its last position, valid until the next call."""

    @abstractmethod
    def step(self, token: int) -> Array:
        """Append one token; logits [V] after it, valid until the next call."""

    def generate(self, ids: Ids, new: int) -> Answer:
        """Time a greedy answer; see `Engine.generate`."""
        start = time.perf_counter()
        tokens = [int(self.prefill(ids).argmax())]
        first = time.perf_counter()
        for _ in range(new - 1):
            tokens.append(int(self.step(tokens[-1]).argmax()))
        end = time.perf_counter()
        return Answer.timed(first - start, end - first, tokens)

    def logits(self, ids: Ids, more: Ids) -> Array:
        """See `Engine.logits`."""
        rows = [self.prefill(ids).copy()]
        rows += [self.step(int(token)).copy() for token in more]
        return np.stack(rows)


@dataclass(frozen=True)
class Peer:
    """An engine and how it is had.

    Attributes:
        name: in tables and on the command line.
        packages: distributions whose versions decide a result.
        modules: what must be importable.
        install: the command that installs it.
        variants: the ways to run it.
        open: an engine.
        prepare: convert the checkpoint first, in a process of its own, if it has not been; None where there
            is nothing to convert.
        needs_bundle: whether it runs the ONNX files of a bundle.
        about: what a reader must know of its figures.
    """

    name: str
    packages: tuple[str, ...]
    modules: tuple[str, ...]
    install: str
    variants: tuple[Variant, ...]
    open: Callable[[Task], Engine]
    prepare: Callable[[Task], None] | None = None
    needs_bundle: bool = False
    about: str = ""

    def missing(self) -> tuple[str, ...]:
        """Modules that cannot be imported here."""
        return tuple(module for module in self.modules if importlib.util.find_spec(module) is None)

    def variant(self, name: str) -> Variant:
        """The variant called `name`.

        Raises:
            BenchError: there is none.
        """
        for variant in self.variants:
            if variant.name == name:
                return variant
        known = ", ".join(variant.name for variant in self.variants)
        raise BenchError(f"{self.name} has no variant {name!r}: choose one of {known}")


def optional(module: str) -> Any:
    """An optional package: imported when it is needed, and without types whether it is here or not."""
    return importlib.import_module(module)


def require_bundle(task: Task) -> Path:
    """The bundle of a task.

    Raises:
        BenchError: none was given.
    """
    if task.bundle is None:
        raise BenchError("this engine runs the ONNX files of a bundle: give --bundle DIR")
    return task.bundle
