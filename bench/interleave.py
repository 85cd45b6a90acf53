"""Interleaved timing: A B C A B C …, so that drift of the machine falls on every variant alike.

The ratio of a variant to the baseline is the median over rounds of the ratio within the round. Medians of
separate runs differ by 10 to 30 % on a shared machine; ratios of neighbours in one round do not.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from bench.errors import BenchError

__all__ = ["SECONDS", "Measurement", "Summary", "Variant", "interleave", "timed"]

SECONDS = "seconds"


@dataclass(frozen=True)
class Variant:
    """One thing to measure. `run` does it once and returns its figures by name, the same names every time."""

    name: str
    run: Callable[[], Mapping[str, float]]


@dataclass(frozen=True)
class Summary:
    """One figure of one variant over all rounds; `ratio` to the baseline is None where that lacks it."""

    median: float
    minimum: float
    maximum: float
    ratio: float | None


@dataclass(frozen=True)
class Measurement:
    """All samples: variant name → figure name → one value per round."""

    samples: dict[str, dict[str, list[float]]]
    baseline: str
    rounds: int
    warmup: int

    def summary(self, variant: str, figure: str = SECONDS) -> Summary:
        """Median, extremes and paired ratio of one figure.

        Raises:
            BenchError: no such variant, or no such figure of it.
        """
        values = self._values(variant, figure)
        against = self.samples[self.baseline].get(figure)
        ratio = None
        if against is not None:
            ratio = median(one / other for one, other in zip(values, against, strict=True))
        return Summary(median(values), min(values), max(values), ratio)

    def paired_ratio(self, variant: str, other: str, figure: str = SECONDS) -> float:
        """Median over rounds of `variant` ÷ `other` within the round."""
        pairs = zip(self._values(variant, figure), self._values(other, figure), strict=True)
        return median(one / two for one, two in pairs)

    def _values(self, variant: str, figure: str) -> list[float]:
        if variant not in self.samples or figure not in self.samples[variant]:
            known = {name: sorted(figures) for name, figures in self.samples.items()}
            raise BenchError(f"no figure {figure!r} of {variant!r} was measured: there are {known}")
        return self.samples[variant][figure]


def timed(action: Callable[[], object]) -> Callable[[], dict[str, float]]:
    """`run` of a variant whose only figure is the wall-clock seconds of `action`."""

    def run() -> dict[str, float]:
        start = time.perf_counter()
        action()
        return {SECONDS: time.perf_counter() - start}

    return run


def interleave(
    variants: Sequence[Variant],
    *,
    rounds: int,
    warmup: int = 1,
    progress: Callable[[str], None] | None = None,
) -> Measurement:
    """Run every variant once per round, in the given order; the first variant is the baseline.

    Args:
        rounds: measured rounds.
        warmup: rounds run first and thrown away (allocations, first-touch page faults, thread pools).
        progress: called before each round with a line of text.

    Raises:
        BenchError: no variant, two of one name, or fewer than one round.
    """
    names = [variant.name for variant in variants]
    if not names or len(set(names)) != len(names):
        raise BenchError(f"variants to interleave are {names}: give at least one, each with its own name")
    if rounds < 1 or warmup < 0:
        raise BenchError(f"rounds={rounds} and warmup={warmup}: measure at least 1 round after 0 or more")
    samples: dict[str, dict[str, list[float]]] = {name: {} for name in names}
    for number in range(-warmup, rounds):
        if progress is not None:
            progress("warm-up" if number < 0 else f"round {number + 1} of {rounds}")
        for variant in variants:
            figures = variant.run()
            if number >= 0:
                for figure, value in figures.items():
                    samples[variant.name].setdefault(figure, []).append(float(value))
    return Measurement(samples, names[0], rounds, warmup)
