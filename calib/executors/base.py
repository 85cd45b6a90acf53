"""What executors share: work, the way one sample is measured, and what becomes of errors."""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from calib.data.sample import Sample
from calib.errors import CalibError
from calib.measure.spec import RunnerSpec
from calib.record import Record
from calib.settings import Setting
from runtime.errors import FopruError

__all__ = [
    "Executor",
    "Runner",
    "RunnerFactory",
    "Work",
    "WorkerError",
    "cores",
    "failed",
    "measure",
    "sample_runner",
]


class WorkerError(Exception):
    """A measurement failed in a way that nobody foresaw: a fault of the program, with its traceback."""


@dataclass(frozen=True)
class Work:
    """A sample and the settings to measure it with, at least one."""

    sample: Sample
    settings: tuple[Setting, ...]


class Runner(Protocol):
    """What a worker owns: graphs loaded, ready to measure. See `calib.measure.runner.SampleRunner`."""

    def run(self, sample: Sample, settings: Sequence[Setting]) -> list[Record]:
        """One record per setting, in order; a setting that cannot be measured has an `error`."""
        ...


RunnerFactory: TypeAlias = Callable[[RunnerSpec], Runner]
"""Makes the runner inside the worker; for other processes, it must be importable by name."""


class Executor(Protocol):
    """Measures works, each in one worker."""

    def run(self, spec: RunnerSpec, works: Sequence[Work]) -> Generator[list[Record]]:
        """The records of one work after the other, in any order, as they come.

        Closing the iterator, or Ctrl-C, ends all workers at once. A worker that dies costs its current sample
        only: it is replaced, and the sample is tried once more, behind the others; the second time, it
        becomes records with `error`. So does a sample for which the runner raises a `CalibError` or
        `FopruError`.

        Raises:
            CalibError, FopruError: no worker can be made, as of a bundle that is not there.
            WorkerError: a measurement raised anything else; the sample is named.
        """
        ...

    def close(self) -> None:
        """End the workers that are kept for a next run. After an error, or at the end of Python, none is."""
        ...


def sample_runner(spec: RunnerSpec) -> Runner:
    """The usual runner."""
    from calib.measure.runner import SampleRunner

    return SampleRunner(spec)


def measure(runner: Runner, work: Work) -> list[Record]:
    """One record per setting of the work, in order.

    Raises:
        WorkerError: anything but a `CalibError` or `FopruError`, which become records with `error`.
    """
    try:
        records = runner.run(work.sample, work.settings)
        expected = [(work.sample.name, setting) for setting in work.settings]
        if [(record.sample, record.setting) for record in records] != expected:
            raise ValueError(f"the runner's {len(records)} records are not those of {len(expected)} settings")
        return records
    except (CalibError, FopruError) as error:
        return failed(work, str(error))
    except Exception as error:
        raise WorkerError(
            f"measuring {work.sample.name} failed with {type(error).__name__}: {error}\n"
            f"{''.join(traceback.format_exception(error))}"
        ) from error


def failed(work: Work, reason: str) -> list[Record]:
    """Records that say why there is no measurement."""
    return [Record(work.sample.name, setting, error=reason) for setting in work.settings]


def cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0))
