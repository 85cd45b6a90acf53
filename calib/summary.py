"""What the records of one setting come to."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Interval", "Summary"]


@dataclass(frozen=True)
class Interval:
    """An estimate and its two-sided 95 % confidence interval; all NaN where nothing was measured."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:.3f} [{self.low:.3f}, {self.high:.3f}]"


@dataclass(frozen=True)
class Summary:
    """One setting over all samples; samples without a measurement are left out and counted.

    Attributes:
        samples: how many were measured.
        failed: how many have an error instead.
        first, answer: fraction whose first token, whose whole answer, is the unpruned model's.
        accuracy: fraction of the labelled samples that are right; None: there is no label.
        divergence: KL divergence of the first token's probabilities, in nats.
        first_bound, answer_bound: exact one-sided 95 % lower bounds of the fractions, were all pictures
            independent and those of one picture alike: they are below 1 where every sample agrees, as a
            bootstrap's never are.
        ttft: median seconds to the first token, and the interval of the median.
        ttft_quartiles: 25 % and 75 % of the samples are quicker.
        kv_bytes: mean; `kv_most`: maximum.
        before, after: mean visual tokens of a prompt without and with pruning.
    """

    samples: int
    failed: int
    first: Interval
    answer: Interval
    accuracy: Interval | None
    divergence: Interval
    first_bound: float
    answer_bound: float
    ttft: Interval
    ttft_quartiles: tuple[float, float]
    kv_bytes: float
    kv_most: int
    before: float
    after: float

    def fraction(self, metric: str) -> Interval:
        """The interval of a metric by name: `first`, `answer` or `accuracy` (NaN without labels)."""
        if metric == "accuracy":
            return self.accuracy or Interval(float("nan"), float("nan"), float("nan"))
        return self.first if metric == "first" else self.answer
