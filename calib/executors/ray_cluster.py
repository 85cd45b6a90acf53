"""Workers on a Ray cluster, one actor each.

Every node needs this project installed (`pip install 'fopru-edge[calib,ray]'`) and the bundles at the same
paths; pictures travel with the samples.
"""

from __future__ import annotations

import socket
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from calib.data.sample import Sample
from calib.errors import OptionError, RunError
from calib.executors.base import Runner, RunnerFactory, Work
from calib.executors.supervisor import Answer, Died, Supervisor, answer, prepare
from calib.executors.team import Team, TeamExecutor
from calib.measure.spec import RunnerSpec
from runtime.lazy import require

__all__ = ["RayExecutor", "plan_seats"]

PATIENCE = 10.0  # seconds for a cluster to answer


class RayExecutor(TeamExecutor):
    """Measures in actors of the cluster at `address`; None workers are as many as its cores allow.

    `run` raises also:
        OptionError: no node has as many cores as a worker has threads.
        RunError: no cluster answers at the address.
        runtime.BackendError: Ray is not installed.
    """

    def __init__(self, address: str, workers: int | None, runner: RunnerFactory) -> None:
        self._address, self._workers, self._runner = address, workers, runner

    def _make_team(self, spec: RunnerSpec) -> Team:
        ray = require("ray", "ray", "ray")
        ours = not ray.is_initialized()
        if ours:
            _connect(ray, self._address)
        try:
            nodes = [int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]]
            threads, seats = plan_seats(nodes, spec.threads, self._workers)
            pool = _Actors(ray, self._runner, replace(spec, threads=threads), ours)
            return Supervisor(pool, seats)
        except BaseException:
            if ours:
                ray.shutdown()
            raise


def plan_seats(nodes: Sequence[int], threads: int | None, workers: int | None) -> tuple[int, int]:
    """Threads of each worker, and how many workers run at a time.

    Args:
        nodes: cores of each node.
        threads: as the user asked; None: the cores are shared among `workers`, or one each.
        workers: at most so many; None: as many as there is room for.

    Raises:
        OptionError: no worker has room.
    """
    largest = max(nodes, default=0)
    if threads is None:
        threads = 1 if workers is None else max(1, min(sum(nodes) // workers, largest))
    seats = sum(node // threads for node in nodes)
    if seats == 0:
        raise OptionError(
            f"a worker has {threads} threads, but the largest node of the cluster has {largest} cores: "
            "ask for fewer threads"
        )
    return threads, min(seats, workers or seats)


@dataclass(frozen=True, eq=False)
class _Worker:
    actor: Any


class _Actors:
    """A pool: an actor per worker, and the one call that each has open."""

    def __init__(self, ray: Any, factory: RunnerFactory, spec: RunnerSpec, ours: bool) -> None:
        self._ray, self._factory, self._spec, self._ours = ray, factory, spec, ours
        # An actor that Ray restarts by itself would have no runner, and the sample no limit of tries.
        options = {"num_cpus": spec.threads, "max_restarts": 0, "max_task_retries": 0}
        self._actor = ray.remote(_Actor).options(**options)
        self._calls: dict[Any, _Worker] = {}
        self._workers: set[_Worker] = set()

    def start(self) -> _Worker:
        """See `Pool`."""
        worker = _Worker(self._actor.remote(self._factory, self._spec))
        self._workers.add(worker)
        self._calls[worker.actor.prepare.remote()] = worker
        return worker

    def give(self, worker: _Worker, work: Work) -> None:
        """See `Pool`."""
        self._calls[worker.actor.measure.remote(replace(work, sample=_with_pictures(work.sample)))] = worker

    def hear(self) -> list[tuple[_Worker, Answer]]:
        """See `Pool`."""
        answered, _ = self._ray.wait(list(self._calls), num_returns=1)
        return [(worker := self._calls.pop(call), self._answer(worker, call)) for call in answered]

    def close(self) -> None:
        """See `Pool`."""
        for worker in self._workers:
            with suppress(Exception):  # it is gone, or the cluster is
                self._ray.kill(worker.actor)
        if self._ours:  # else the connection was there before
            self._ray.shutdown()

    def _answer(self, worker: _Worker, call: Any) -> Answer:
        try:
            said: Answer = self._ray.get(call)
        except (self._ray.exceptions.RayActorError, self._ray.exceptions.OutOfMemoryError):
            self._workers.discard(worker)
            return Died("died")
        return said


class _Actor:
    """Runs inside a worker of Ray."""

    def __init__(self, factory: RunnerFactory, spec: RunnerSpec) -> None:
        self._factory, self._spec = factory, spec
        self._runner: Runner | None = None

    def prepare(self) -> Answer:
        self._runner, said = prepare(self._factory, self._spec)
        return said

    def measure(self, work: Work) -> Answer:
        assert self._runner is not None, "works are given to workers that are ready"
        return answer(self._runner, work)


def _connect(ray: Any, address: str) -> None:
    try:
        where = urlsplit(address if "://" in address else f"//{address}")
        if where.hostname and where.port:
            # Ray ends the whole process when nobody answers there.
            socket.create_connection((where.hostname, where.port), timeout=PATIENCE).close()
        ray.init(address=address, log_to_driver=False, logging_level="ERROR")
    except (OSError, ValueError, RuntimeError) as error:
        raise RunError(
            f"no Ray cluster answers at {address!r} ({error}): start one, or leave --ray out"
        ) from error


def _with_pictures(sample: Sample) -> Sample:
    """The sample with its pictures inside, since another node may not have the files."""
    return replace(sample, images=tuple(_content(image) for image in sample.images))


def _content(image: Path | bytes) -> Path | bytes:
    try:
        return image if isinstance(image, bytes) else image.read_bytes()
    except OSError:
        return image  # the runner says what is wrong with it
