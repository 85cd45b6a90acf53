"""A ratio of a precision with what it gives and what it costs, and the fronts that it may be on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from calib.joint.limits import Limits
from calib.joint.pareto import pareto_front
from calib.pick import Check
from calib.settings import Setting
from calib.statistics import Results
from calib.summary import Interval, Summary

if TYPE_CHECKING:
    from calib.joint.bundles import Variant

__all__ = ["Candidate", "candidates_of"]


@dataclass(frozen=True)
class Candidate:
    """One row of the choice.

    Attributes:
        setting: what was measured.
        label: of its precision.
        summary: all its figures.
        fidelity: the metric; its lower bound is what counts.
        weights: bytes of the graphs and weight files that run.
        memory: the same and the largest KV cache; NaN: not measured.
        checks: every limit.
        best_memory, best_ttft: no other has at least its fidelity for less memory, or in less time.
    """

    setting: Setting
    label: str
    summary: Summary
    fidelity: Interval
    weights: int
    memory: float
    checks: tuple[Check, ...]
    best_memory: bool = False
    best_ttft: bool = False

    @property
    def name(self) -> str:
        """As a sentence names it: `decoder=int4, rank at 0.25`."""
        if self.setting.selector == "none":
            return f"{self.label}, unpruned"
        return f"{self.label}, {self.setting.selector} at {self.setting.ratio:g}"

    @property
    def ttft(self) -> float:
        """Median seconds to the first token."""
        return self.summary.ttft.mean

    @property
    def optimal(self) -> bool:
        """Whether it is on one of the fronts."""
        return self.best_memory or self.best_ttft

    @property
    def meets(self) -> bool:
        """Whether every limit is met."""
        return all(check.met for check in self.checks)

    def cost(self, prefer: str) -> float:
        """Bytes for `memory`, seconds for `ttft`."""
        return self.memory if prefer == "memory" else self.ttft


def candidates_of(results: Results, variants: Sequence[Variant], limits: Limits) -> tuple[Candidate, ...]:
    """All that was measured, the most faithful first, of equals the one that takes least memory."""
    by_key = {variant.key: variant for variant in variants}
    found = []
    for setting in results.settings:
        variant, summary = by_key[setting.precision], results.summary(setting)
        weights = variant.weights(setting.ratio)
        memory = weights + float(summary.kv_most) if summary.samples else math.nan
        found.append(
            Candidate(
                setting,
                variant.label,
                summary,
                summary.fraction(limits.metric),
                weights,
                memory,
                limits.checks(results, setting, weights, memory),
            )
        )
    memory_front = pareto_front([(each.fidelity.low, each.memory) for each in found])
    ttft_front = pareto_front([(each.fidelity.low, each.ttft) for each in found])
    marked = [
        replace(each, best_memory=memory, best_ttft=ttft)
        for each, memory, ttft in zip(found, memory_front, ttft_front, strict=True)
    ]
    return tuple(sorted(marked, key=_faithful_first))


def _faithful_first(candidate: Candidate) -> tuple[bool, float, float, str, float]:
    low = candidate.fidelity.low
    unknown = math.isnan(low)
    return (
        unknown,
        0.0 if unknown else -low,
        0.0 if unknown else candidate.memory,
        candidate.label,
        -candidate.setting.ratio,
    )
