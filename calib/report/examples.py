"""Which samples the report shows: those that pruning changed most, and usual ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from calib.data.sample import Sample
from calib.record import Record
from calib.settings import REFERENCE, Setting

__all__ = ["Example", "median_examples", "worst_examples"]

MOST_WORST, MOST_MEDIAN = 6, 3


@dataclass(frozen=True)
class Example:
    """A sample with what a setting made of it, and what the unpruned model does."""

    sample: Sample
    record: Record
    unpruned: Record


def worst_examples(
    samples: Sequence[Sample], records: Sequence[Record], setting: Setting
) -> tuple[Example, ...]:
    """Samples whose answer changed, the largest divergence first."""
    found = _examples(samples, records, setting)
    changed = [example for example in found if not example.record.same_answer]
    return tuple(changed[::-1][:MOST_WORST])


def median_examples(
    samples: Sequence[Sample], records: Sequence[Record], setting: Setting
) -> tuple[Example, ...]:
    """Samples around the median of the divergence, the worst ones left out."""
    shown = {example.sample.name for example in worst_examples(samples, records, setting)}
    found = _examples(samples, records, setting)
    middle = len(found) / 2
    near = sorted(range(len(found)), key=lambda index: (abs(index + 0.5 - middle), index))
    chosen = [index for index in near if found[index].sample.name not in shown][:MOST_MEDIAN]
    return tuple(found[index] for index in sorted(chosen))


def _examples(samples: Sequence[Sample], records: Sequence[Record], setting: Setting) -> list[Example]:
    """All measured samples, by ascending divergence."""
    by_name = {sample.name: sample for sample in samples}
    unpruned = {record.sample: record for record in records if record.setting == REFERENCE}
    measured = [
        record
        for record in records
        if record.setting == setting
        and record.error is None
        and record.sample in by_name
        and record.sample in unpruned
    ]
    measured.sort(key=lambda record: (record.divergence, record.sample))
    return [Example(by_name[record.sample], record, unpruned[record.sample]) for record in measured]
