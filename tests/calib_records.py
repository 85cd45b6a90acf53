"""Records made by hand, for tests of what is concluded from them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from calib.ratio.search import Measure
from calib.record import Record
from calib.settings import REFERENCE, Setting
from calib.statistics import Results
from calib.summary import Summary

__all__ = ["SAMPLES", "groups", "measure_from", "names", "record", "summarise"]

SAMPLES = 200


def names(count: int = SAMPLES) -> list[str]:
    """Names of samples, in order."""
    return [f"s{place:03}" for place in range(count)]


def groups(count: int = SAMPLES, per_picture: int = 1) -> dict[str, str]:
    """Picture of each sample."""
    return {name: f"picture {place // per_picture}" for place, name in enumerate(names(count))}


def record(name: str, setting: Setting, same: bool, **more: object) -> Record:
    """A record of a model with 100 tokens, 10 kB of cache each, that needs 1 ms for each."""
    after = round(100 * setting.ratio)
    fields: dict[str, object] = {
        "before": 100,
        "after": after,
        "same_first": same,
        "same_answer": same,
        "divergence": 0.0 if same else 1.0,
        "ttft": after / 1000,
        "kv_bytes": 10_000 * after,
    }
    return Record(name, setting, **(fields | more))  # type: ignore[arg-type]


def measure_from(
    agreement: Callable[[Setting], float], count: int = SAMPLES, asked: list[Sequence[Setting]] | None = None
) -> Measure:
    """Of each setting, the first `agreement` of the samples agree. `asked` collects the rounds."""

    def measure(settings: Sequence[Setting]) -> list[Record]:
        if asked is not None:
            asked.append(tuple(settings))
        records = []
        for setting in settings:
            right = count if setting == REFERENCE else round(agreement(setting) * count)
            records += [record(name, setting, place < right) for place, name in enumerate(names(count))]
        return records

    return measure


def summarise(records: Sequence[Record], groups: Mapping[str, str]) -> dict[Setting, Summary]:
    """Of each setting that the records name."""
    results = Results(records, groups)
    return {setting: results.summary(setting) for setting in results.settings}
