"""Several worker processes on this machine."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from contextlib import suppress
from dataclasses import dataclass, replace
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess

from calib.executors.base import RunnerFactory, Work, cores
from calib.executors.supervisor import Answer, Died, Supervisor, answer, prepare
from calib.executors.team import Team, TeamExecutor
from calib.measure.spec import RunnerSpec

__all__ = ["ProcessExecutor"]

PATIENCE = 5.0  # seconds that a process has to end when it is told to


class ProcessExecutor(TeamExecutor):
    """Measures in `workers` processes; they share the cores, unless the spec has a number of threads."""

    def __init__(self, workers: int, runner: RunnerFactory) -> None:
        self._workers, self._runner = workers, runner

    def _make_team(self, spec: RunnerSpec) -> Team:
        threads = spec.threads or max(1, cores() // self._workers)
        return Supervisor(_Processes(self._runner, replace(spec, threads=threads)), self._workers)


@dataclass(frozen=True, eq=False)
class _Worker:
    process: SpawnProcess
    connection: Connection


class _Processes:
    """A pool: a process and a pipe per worker, so that a death is seen as the end of that pipe alone."""

    def __init__(self, factory: RunnerFactory, spec: RunnerSpec) -> None:
        self._factory, self._spec = factory, spec
        # A forked child would share the threads' locks of ONNX Runtime, but not the threads.
        self._context = multiprocessing.get_context("spawn")
        self._workers: dict[Connection, _Worker] = {}

    def start(self) -> _Worker:
        """See `Pool`."""
        ours, theirs = self._context.Pipe()
        process = self._context.Process(target=_serve, args=(theirs, self._factory, self._spec), daemon=True)
        resource_tracker.ensure_running()  # starting a process would do that, and unblock Ctrl-C
        # Ctrl-C reaches the whole process group. Workers inherit that it is blocked: this process ends them.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            process.start()
            worker = _Worker(process, ours)
            self._workers[ours] = worker
        finally:
            theirs.close()  # else the pipe would not end with the worker
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        return worker

    def give(self, worker: _Worker, work: Work) -> None:
        """See `Pool`."""
        with suppress(OSError):  # it died: `hear` finds out
            worker.connection.send(work)

    def hear(self) -> list[tuple[_Worker, Answer]]:
        """See `Pool`."""
        heard: list[tuple[_Worker, Answer]] = []
        for connection in wait(list(self._workers)):
            assert isinstance(connection, Connection)
            worker = self._workers[connection]
            try:
                heard.append((worker, connection.recv()))
            except (EOFError, OSError):  # also in the middle of an answer
                heard.append((worker, self._bury(worker)))
        return heard

    def close(self) -> None:
        """See `Pool`."""
        workers = list(self._workers.values())
        for worker in workers:
            worker.process.terminate()
        for worker in workers:
            self._bury(worker)

    def _bury(self, worker: _Worker) -> Died:
        del self._workers[worker.connection]
        worker.connection.close()
        worker.process.join(PATIENCE)
        if worker.process.exitcode is None:
            worker.process.kill()
            worker.process.join()
        code = worker.process.exitcode or 0
        worker.process.close()
        if code >= 0:
            return Died(f"ended with status {code}")
        return Died(f"was ended by signal {-code}, {signal.strsignal(-code)}")


def _serve(connection: Connection, factory: RunnerFactory, spec: RunnerSpec) -> None:
    """A worker's life: answer until the pipe ends."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with suppress(EOFError, OSError):
        runner, first = prepare(factory, spec)
        connection.send(first)
        while runner is not None:
            connection.send(answer(runner, connection.recv()))


def _end_with_parent() -> None:
    """A parent that was killed cannot end its workers: they would hold the memory that the next run needs."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)
