"""Which samples ranges come from, and which ones judge them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from calib.data.sample import Sample

__all__ = ["Split", "pictures_of", "split_samples"]

_HELD_OUT = 0.25


@dataclass(frozen=True)
class Split:
    """`collect` and `judge` have no picture in common, but where there is one picture alone (`shared`);
    `tune`, by which layers are told apart, is as many pictures of `collect` as `judge` has."""

    collect: tuple[Sample, ...]
    tune: tuple[Sample, ...]
    judge: tuple[Sample, ...]
    shared: bool = False


def split_samples(samples: Sequence[Sample], seed: int) -> Split:
    """Hold a quarter of the pictures out, one at least, with all that is asked of them.

    Which ones depends on `seed` and on the pictures, not on their order or names.
    """
    groups = sorted({sample.group for sample in samples}, key=lambda group: _drawn(seed, group))
    if len(groups) == 1:
        return Split(tuple(samples), tuple(samples), tuple(samples), shared=True)
    count = max(1, round(_HELD_OUT * len(groups)))

    def of(chosen: Sequence[str]) -> tuple[Sample, ...]:
        own = set(chosen)
        return tuple(sample for sample in samples if sample.group in own)

    return Split(of(groups[count:]), of(groups[count : 2 * count]), of(groups[:count]))


def pictures_of(samples: Sequence[Sample]) -> tuple[Sample, ...]:
    """One sample per set of pictures: what is asked of them changes nothing in a vision encoder."""
    found: dict[str, Sample] = {}
    for sample in samples:
        found.setdefault(sample.group, sample)
    return tuple(found.values())


def _drawn(seed: int, group: str) -> str:
    return hashlib.sha256(f"{seed} {group}".encode()).hexdigest()
