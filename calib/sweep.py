"""Every sample with every setting, of which only what is missing is measured."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
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
_Cell: TypeAlias = tuple[str, Setting]
"""A sample's digest, and how it is measured."""


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

    @property
    def notes(self) -> list[str]:
        """Sentences about what earlier runs left for this data."""
        known = {sample.digest for sample in self.data.samples}
        earlier = _by_cell(self.store.records()[: self.store.earlier])
        failed = sum(record.error is not None and cell[0] in known for cell, record in earlier.items())
        if not failed:
            return []
        return [
            f"measurements of these samples that failed in an earlier run: {failed}; those that are needed "
            "are made again, as the cause may be gone"
        ]

    def measure(self, settings: Iterable[Setting], progress: Progress | None = None) -> list[Record]:
        """The record of every sample with every setting, by sample in the data's order, then `setting_order`.

        A record that the store has of a sample, by its digest, is not measured again, and comes under the
        name that the sample has now. One with `error` is measured again if it is of an earlier run, as its
        cause may be gone. New ones are in the store before anything else happens with them: after a crash
        or Ctrl-C, the same call goes on behind them.

        Args:
            settings: repeated ones count once.
            progress: called at the start and after each sample.

        Raises:
            CalibError, FopruError, WorkerError: as `Executor.run` and `ResultStore.append`.
        """
        wanted = sorted(set(settings), key=setting_order)
        digests = {sample.name: sample.digest for sample in self.data.samples}
        cells = {(digest, setting) for digest in digests.values() for setting in wanted}
        have = {cell: record for cell, record in self._measured().items() if cell in cells}
        works = self._missing(wanted, have)
        _tell(progress, len(have), len(cells))
        with closing(self.executor.run(self.spec, works)) as results:
            for measured in results:
                have |= _by_cell(
                    self.store.append([replace(each, digest=digests[each.sample]) for each in measured])
                )
                _tell(progress, len(have), len(cells))
        return [
            replace(have[sample.digest, setting], sample=sample.name)
            for sample in self.data.samples
            for setting in wanted
        ]

    def _measured(self) -> dict[_Cell, Record]:
        """What need not be measured, of any sample."""
        records = self.store.records()
        earlier, now = records[: self.store.earlier], records[self.store.earlier :]
        return _by_cell([*(record for record in earlier if record.error is None), *now])

    def _missing(self, wanted: Sequence[Setting], have: Container[_Cell]) -> list[Work]:
        works = []
        for sample in self.data.samples:
            missing = tuple(setting for setting in wanted if (sample.digest, setting) not in have)
            if missing:
                works.append(Work(sample, missing))
        return works


def _by_cell(records: Iterable[Record]) -> dict[_Cell, Record]:
    """The last record of each sample and setting."""
    return {(record.digest, record.setting): record for record in records}


def _tell(progress: Progress | None, done: int, total: int) -> None:
    if progress is not None:
        progress(done, total)
