"""All that a calibration found: what the report shows and what is written down."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    from calib.data.sample import Data
    from calib.pick import Pick
    from calib.record import Record
    from calib.settings import Setting
    from calib.summary import Summary

__all__ = ["Study"]


@dataclass(frozen=True)
class Study:
    """A finished calibration.

    Attributes:
        data: the samples, and the rows that were skipped.
        records: all measurements, those of `REFERENCE` among them, sorted by sample, then setting.
        summaries: of each setting that was measured, `REFERENCE` too.
        pick: what was chosen; None where nothing meets the constraint (`notes` says by how much).
        constraint: what was asked, as "first-token agreement of at least 0.98".
        metric: what is agreed upon: `first`, `answer` or `accuracy`.
        command: the command line, quoted for a shell.
        versions: of the packages that measured, by name.
        facts: the bundle and how it was measured: its `name`, and what `calib.measure.runner.describe` says
            of it, as it was before; JSON values.
        seed: of the samples, the selector `random` and the resamples.
        notes: sentences that a reader should know: baselines that win, skipped rows, failed samples.
        limits: what was asked, as `Check.limit` has it, by `Check.name`; the report draws them as lines, also
            where nothing meets them.
    """

    data: Data
    records: tuple[Record, ...]
    summaries: Mapping[Setting, Summary]
    pick: Pick | None
    constraint: str
    metric: str
    command: str
    versions: Mapping[str, str]
    facts: Mapping[str, Any]
    seed: int
    notes: tuple[str, ...] = ()
    limits: Mapping[str, float] = field(default_factory=dict)
