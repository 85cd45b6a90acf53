"""One worker: this process."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import replace

from calib.executors.base import RunnerFactory, Work, cores, measure
from calib.measure.spec import RunnerSpec
from calib.record import Record

__all__ = ["InProcessExecutor"]


class InProcessExecutor:
    """Measures one sample after the other, in order. There is no worker that could be replaced."""

    def __init__(self, runner: RunnerFactory) -> None:
        self._runner = runner

    def run(self, spec: RunnerSpec, works: Sequence[Work]) -> Generator[list[Record]]:
        """See `Executor.run`."""
        if not works:
            return
        runner = self._runner(replace(spec, threads=spec.threads or cores()))
        for work in works:
            yield measure(runner, work)
