"""Interleaved timing: A B C, B C A, C A B …, so that drift of the machine falls on every variant alike.

The order rotates, so that no variant always runs first in its round. The ratio of a variant to the baseline
is the median over rounds of the ratio within the round, given with its quartiles. Medians of separate runs
differ by 10 to 30 % on a shared machine; ratios of neighbours in one round do not.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median, quantiles

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
    """One figure of one variant over all rounds.

    `ratio` is the median of the paired ratios to the baseline and `ratio_quartiles` their lower and upper
    quartile; both are None where the baseline lacks the figure.
    """

    median: float
    minimum: float
    maximum: float
    ratio: float | None
    ratio_quartiles: tuple[float, float] | None


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
        values = self.values(variant, figure)
        ratio, spread = None, None
        if figure in self.samples[self.baseline]:
            ratio = self.paired_ratio(variant, self.baseline, figure)
            spread = self.paired_quartiles(variant, self.baseline, figure)
        return Summary(median(values), min(values), max(values), ratio, spread)

    def paired_ratio(self, variant: str, other: str, figure: str = SECONDS) -> float:
        """Median over rounds of `variant` ÷ `other` within the round."""
        return median(self._paired(variant, other, figure))

    def paired_quartiles(self, variant: str, other: str, figure: str = SECONDS) -> tuple[float, float]:
        """Lower and upper quartile over rounds of `variant` ÷ `other` within the round."""
        ratios = self._paired(variant, other, figure)
        if len(ratios) == 1:
            return ratios[0], ratios[0]
        lower, _, upper = quantiles(ratios, n=4, method="inclusive")
        return lower, upper

    def _paired(self, variant: str, other: str, figure: str) -> list[float]:
        pairs = zip(self.values(variant, figure), self.values(other, figure), strict=True)
        return [one / two for one, two in pairs]

    def values(self, variant: str, figure: str = SECONDS) -> list[float]:
        """One value per round.

        Raises:
            BenchError: no such variant, or no such figure of it.
        """
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
    settle: bool = False,
    progress: Callable[[str], None] | None = None,
) -> Measurement:
    """Run every variant once per round; the first variant is the baseline.

    The first round has the given order, and each later one starts with the next variant.

    Args:
        rounds: measured rounds.
        warmup: rounds run first and thrown away (allocations, first-touch page faults, thread pools).
        settle: run each variant once unmeasured right before its measured run. For variants that are several
            sessions of one engine: the first run after a switch between sessions is slower.
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
        first = number % len(variants)
        for variant in (*variants[first:], *variants[:first]):
            if settle:
                variant.run()
            figures = variant.run()
            if number >= 0:
                for figure, value in figures.items():
                    samples[variant.name].setdefault(figure, []).append(float(value))
    return Measurement(samples, names[0], rounds, warmup)
