"""Works among workers that may die: the one place that knows what is tried again and what is given up.

A pool has the workers; it knows how to start one, to give it work, to hear from it and to end it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeAlias, TypeVar

from calib.errors import CalibError, RunError
from calib.executors.base import Runner, RunnerFactory, Work, WorkerError, failed, measure
from calib.measure.spec import RunnerSpec
from calib.record import Record
from runtime.errors import FopruError

__all__ = ["Answer", "Died", "Done", "Fault", "Pool", "Ready", "Refused", "Supervisor", "answer", "prepare"]

TRIES = 2  # of one sample
LOST_STARTS = 3  # workers that die before they are ready, in one run, until it is given up

Worker = TypeVar("Worker")


@dataclass(frozen=True)
class Ready:
    """The worker has its runner, and waits for work."""


@dataclass(frozen=True)
class Done:
    """The records of the work that it was given; it waits for more."""

    records: list[Record]


@dataclass(frozen=True)
class Refused:
    """It cannot make its runner, for a reason that is a sentence."""

    error: Exception


@dataclass(frozen=True)
class Fault:
    """A fault of the program, with its traceback."""

    text: str


@dataclass(frozen=True)
class Died:
    """The worker is gone, as by `kill -9` or for want of memory."""

    how: str


Answer: TypeAlias = Ready | Done | Refused | Fault | Died


class Pool(Protocol[Worker]):
    """Workers, each busy with one thing at a time: with starting, or with one work."""

    def start(self) -> Worker:
        """A new worker, which will answer `Ready` or `Refused`."""
        ...

    def give(self, worker: Worker, work: Work) -> None:
        """Let a worker that waits measure; it will answer `Done` or `Fault`. It may also be dead already."""
        ...

    def hear(self) -> list[tuple[Worker, Answer]]:
        """Wait until some worker answers. One that `Died` is never heard from again."""
        ...

    def close(self) -> None:
        """End all workers now."""
        ...


def prepare(factory: RunnerFactory, spec: RunnerSpec) -> tuple[Runner | None, Answer]:
    """Inside a worker: its runner, and what to answer."""
    try:
        return factory(spec), Ready()
    except (CalibError, FopruError) as error:
        return None, Refused(error)
    except Exception as error:
        import traceback

        text = "".join(traceback.format_exception(error))
        return None, Fault(f"a worker could not start: {type(error).__name__}: {error}\n{text}")


def answer(runner: Runner, work: Work) -> Answer:
    """Inside a worker: measure, and what to answer."""
    try:
        return Done(measure(runner, work))
    except WorkerError as fault:
        return Fault(str(fault))


@dataclass
class _Task:
    work: Work
    tries: int = 0


class Supervisor(Generic[Worker]):
    """Spreads works over workers of a pool; it starts as many as it needs, and at most so many."""

    def __init__(self, pool: Pool[Worker], workers: int) -> None:
        self._pool, self._workers = pool, workers
        self._busy: dict[Worker, _Task | None] = {}  # None: it starts
        self._idle: list[Worker] = []
        self._waiting: deque[_Task] = deque()
        self._left = 0
        self._lost_starts = 0

    def run(self, works: Sequence[Work]) -> Generator[list[Record]]:
        """See `Executor.run`. Workers stay for the next one; where this is not run to its end, `close` it.

        Raises:
            CalibError, FopruError, WorkerError: as `Executor.run`.
            RunError: workers die again and again before they are ready.
        """
        self._waiting.extend(_Task(work) for work in works)
        self._left = len(works)
        self._lost_starts = 0
        self._hand_out()  # to those of the last run
        for _ in range(min(self._workers, len(works)) - len(self._busy) - len(self._idle)):
            self._start()
        while self._left:
            for worker, said in self._pool.hear():
                records = self._take(worker, said)
                self._hand_out()
                if records is not None:
                    self._left -= 1
                    yield records

    def close(self) -> None:
        """End all workers now."""
        self._pool.close()

    def _start(self) -> None:
        self._busy[self._pool.start()] = None

    def _hand_out(self) -> None:
        while self._idle and self._waiting:
            worker, task = self._idle.pop(), self._waiting.popleft()
            self._busy[worker] = task
            task.tries += 1
            self._pool.give(worker, task.work)

    def _take(self, worker: Worker, said: Answer) -> list[Record] | None:
        """The records of a work that is finished with, if this is its end."""
        if isinstance(said, Refused):
            raise said.error
        if isinstance(said, Fault):
            raise WorkerError(said.text)
        if isinstance(said, Died):
            return self._replace(worker, said.how)
        self._busy.pop(worker)
        self._idle.append(worker)
        return said.records if isinstance(said, Done) else None

    def _replace(self, worker: Worker, how: str) -> list[Record] | None:
        if worker in self._idle:
            self._idle.remove(worker)
            task = None
        else:
            task = self._busy.pop(worker)
            if task is None:
                self._lost_starts += 1
                if self._lost_starts == LOST_STARTS:
                    raise RunError(
                        f"{LOST_STARTS} workers died before they had measured anything, and the last {how}: "
                        "each loads the whole model, so give fewer --workers if memory is short"
                    )
        given_up = task is not None and task.tries == TRIES
        if task is not None and not given_up:
            self._waiting.append(task)
        if len(self._busy) + len(self._idle) < self._left - given_up:
            self._start()
        if task is None or not given_up:
            return None
        return failed(task.work, f"the worker that measured it {how}, {TRIES} times: is memory short?")
