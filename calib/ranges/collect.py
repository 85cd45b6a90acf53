"""Ranges of activations over a set of samples: resumable, and kept for the next time."""

from __future__ import annotations

import json
import os
import tempfile
import time
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

from calib.errors import DataError, StoreError
from calib.ranges.methods import Collector, Method
from runtime.errors import ImageError, RequestError

__all__ = ["Keep", "Ranges", "collect_ranges"]

_SAVE_SECONDS = 5.0  # what a killed run loses at most
_Item = TypeVar("_Item")


@dataclass(frozen=True)
class Ranges:
    """`amax`: greatest magnitude to represent, by tensor. `used` samples went in, `failed` could not (their
    places in the sequence); `found` of them were there from an earlier run."""

    amax: dict[str, float]
    used: int
    failed: tuple[int, ...] = ()
    found: int = 0


@dataclass(frozen=True)
class Keep:
    """Where ranges are kept: an .npz `file`, and `key`, the SHA-256 of what they depend on (graph, data,
    method). What a file has of another key is replaced."""

    file: Path
    key: str


@dataclass
class _Progress:
    """Where a run is: `done` samples were looked at."""

    done: int
    failed: list[int]
    amax: dict[str, float] | None = None  # once all were


def _silent(_done: int, _total: int) -> None:
    """No progress."""


def collect_ranges(
    samples: Sequence[_Item],
    observe: Callable[[_Item, Collector], None],
    method: Method,
    keep: Keep,
    progress: Callable[[int, int], None] = _silent,
) -> Ranges:
    """Look at every sample once, in order.

    Args:
        samples: what `observe` takes; it runs one and updates the collector.
        observe: may raise ImageError or RequestError for a sample that cannot be used.
        method: how ranges are found.
        keep: what was collected so far; begun, continued, or used as it is.
        progress: called with samples done and in all.

    Returns:
        The same numbers, to the last bit, however often the run was cut.

    Raises:
        DataError: no sample could be used.
        StoreError: the file is damaged.
    """
    collector = Collector(method)
    at = _load(keep, collector)
    found, saved = at.done, time.monotonic()
    for number in range(at.done, len(samples)):
        try:
            observe(samples[number], collector)
        except (ImageError, RequestError):
            at.failed.append(number)
        at.done = number + 1
        progress(at.done, len(samples))
        if time.monotonic() - saved > _SAVE_SECONDS and at.done < len(samples):
            _save(keep, collector, at)
            saved = time.monotonic()
    used = len(samples) - len(at.failed)
    if used == 0:
        raise DataError(
            f"none of {len(samples)} samples could be run to find ranges of activations: check --data"
        )
    if at.amax is None:
        at.amax = collector.amax()
        _save(keep, collector, at)
    return Ranges(at.amax, used, tuple(at.failed), found)


def _load(keep: Keep, collector: Collector) -> _Progress:
    file = keep.file
    if not file.exists():
        return _Progress(0, [])
    try:
        with file.open("rb") as stream, np.load(stream, allow_pickle=False) as arrays:
            if str(arrays["key"]) != keep.key:
                return _Progress(0, [])
            collector.restore(arrays)
            amax = json.loads(str(arrays["amax"]))
            return _Progress(int(arrays["done"]), [int(each) for each in arrays["failed"]], amax)
    except (OSError, KeyError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise StoreError(
            f"the ranges in {file} are damaged ({error}): remove the file, or run with --fresh"
        ) from error


def _save(keep: Keep, collector: Collector, at: _Progress) -> None:
    """Beside its place and renamed: a killed run leaves the file of before."""
    file = keep.file
    file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=file.parent, prefix=f".{file.name}.", delete=False) as stream:
        place = Path(stream.name)
        try:
            arrays = collector.state() | {
                "key": np.array(keep.key),
                "amax": np.array(json.dumps(at.amax)),  # JSON brings back every bit of a float
                "done": np.array(at.done),
                "failed": np.array(at.failed, np.int64),
            }
            np.savez(stream, **arrays)  # type: ignore[arg-type]  # numpy's stub takes allow_pickle for a tensor
            stream.flush()
            os.fsync(stream.fileno())
        except BaseException:
            place.unlink(missing_ok=True)
            raise
    place.replace(file)
