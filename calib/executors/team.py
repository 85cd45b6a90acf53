"""Workers are costly to make: each loads the model. A search asks for several rounds, so they are kept."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Generator, Sequence
from types import TracebackType
from typing import Protocol

from calib.executors.base import Work
from calib.measure.spec import RunnerSpec
from calib.record import Record

__all__ = ["Team", "TeamExecutor"]


class Team(Protocol):
    """Workers that are ready, or about to be, for one spec."""

    def run(self, works: Sequence[Work]) -> Generator[list[Record]]:
        """See `Executor.run`."""
        ...

    def close(self) -> None:
        """End all workers now."""
        ...


class TeamExecutor(ABC):
    """An `Executor` that keeps its team for the next run with the same spec, until `close`."""

    _kept: tuple[RunnerSpec, Team] | None = None

    def run(self, spec: RunnerSpec, works: Sequence[Work]) -> Generator[list[Record]]:
        """See `Executor.run`. The team ends with a run that does not come to its end."""
        if not works:
            return
        try:
            yield from self._team_of(spec).run(works)
        except BaseException:  # Ctrl-C, and the end of an iterator that nobody wants any more
            self.close()
            raise

    def close(self) -> None:
        """See `Executor`."""
        if self._kept is not None:
            (_, team), self._kept = self._kept, None
            team.close()

    def __enter__(self) -> TeamExecutor:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @abstractmethod
    def _make_team(self, spec: RunnerSpec) -> Team: ...

    def _team_of(self, spec: RunnerSpec) -> Team:
        if self._kept is None or self._kept[0] != spec:
            self.close()
            self._kept = spec, self._make_team(spec)
        return self._kept[1]
