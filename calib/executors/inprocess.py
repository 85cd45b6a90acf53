"""One worker: this process."""

from __future__ import annotations

from collections.abc import Generator, Sequence

from calib.executors.base import Runner, RunnerFactory, Work, measure
from calib.executors.team import Team, TeamExecutor
from calib.measure.spec import RunnerSpec
from calib.record import Record

__all__ = ["InProcessExecutor"]


class InProcessExecutor(TeamExecutor):
    """Measures one sample after the other, in order. There is no worker that could be replaced.

    A backend is left to choose its threads, so that times are those that `python -m runtime` has.
    """

    def __init__(self, runner: RunnerFactory) -> None:
        self._runner = runner

    def _make_team(self, spec: RunnerSpec) -> Team:
        return _Alone(self._runner(spec))


class _Alone:
    def __init__(self, runner: Runner) -> None:
        self._runner = runner

    def run(self, works: Sequence[Work]) -> Generator[list[Record]]:
        for work in works:
            yield measure(self._runner, work)

    def close(self) -> None:
        pass
