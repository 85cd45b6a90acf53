"""Every sample with every setting, of which only what is missing is measured."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import TypeAlias

from calib.data.sample import Data
from calib.executors.base import Executor, Work
from calib.measure.spec import RunnerSpec
from calib.record import Record
from calib.settings import Setting
from calib.store import ResultStore

__all__ = ["Progress", "Sweep", "setting_order"]

Progress: TypeAlias = Callable[[int, int], None]
"""Told how many records there are already, and how many there will be."""


def setting_order(setting: Setting) -> tuple[str, float, int, str, str]:
    """Sorts settings by selector, ratio, layer, aggregation and precision; the bundle's own come first."""
    layer = -1 if setting.layer is None else setting.layer
    return setting.selector, setting.ratio, layer, setting.aggregation or "", setting.precision


@dataclass(frozen=True)
class Sweep:
    """Measurements of one experiment: data, the way to measure, where results are kept, and who measures."""

    data: Data
    spec: RunnerSpec
    store: ResultStore
    executor: Executor

    def measure(self, settings: Iterable[Setting], progress: Progress | None = None) -> list[Record]:
        """The record of every sample with every setting, by sample in the data's order, then `setting_order`.

        A record that the store has is not measured again, one with `error` neither. New ones are in the store
        before anything else happens with them: after a crash or Ctrl-C, the same call goes on behind them.

        Args:
            settings: repeated ones count once.
            progress: called at the start and after each sample.

        Raises:
            CalibError, FopruError, WorkerError: as `Executor.run` and `ResultStore.append`.
        """
        wanted = sorted(set(settings), key=setting_order)
        cells = {(sample.name, setting) for sample in self.data.samples for setting in wanted}
        kept = {(record.sample, record.setting): record for record in self.store.records()}
        have = {cell: record for cell, record in kept.items() if cell in cells}
        total = len(cells)
        works = self._missing(wanted, have.keys())
        _tell(progress, len(have), total)
        with closing(self.executor.run(self.spec, works)) as results:
            for measured in results:
                for record in self.store.append(measured):
                    have[record.sample, record.setting] = record
                _tell(progress, len(have), total)
        return [have[sample.name, setting] for sample in self.data.samples for setting in wanted]

    def _missing(self, wanted: Sequence[Setting], have: Iterable[tuple[str, Setting]]) -> list[Work]:
        known = set(have)
        works = []
        for sample in self.data.samples:
            missing = tuple(setting for setting in wanted if (sample.name, setting) not in known)
            if missing:
                works.append(Work(sample, missing))
        return works


def _tell(progress: Progress | None, done: int, total: int) -> None:
    if progress is not None:
        progress(done, total)
