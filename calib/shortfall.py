"""By how much limits are missed, and how far a limit that is met can be believed."""

from __future__ import annotations

import math
from collections.abc import Sequence

from calib.constraints import Constraint
from calib.pick import Check
from calib.settings import Setting
from calib.statistics import CONFIDENCE, Results

__all__ = ["by_how_much", "doubts", "largest_miss"]


def largest_miss(checks: Sequence[Check]) -> float:
    """The largest relative miss of a limit; infinite where nothing was measured."""
    return max((_miss(check) for check in checks), default=0.0)


def by_how_much(missed: Sequence[Check]) -> str:
    """`: 0.012 short, 5 % over`; empty where it cannot be told."""
    agreement = [check for check in missed if check.name == "agreement" and not math.isnan(check.value)]
    over = [check for check in missed if check.name != "agreement" and not math.isnan(check.value)]
    parts = [f"{check.limit - check.value:.3f} short" for check in agreement]
    parts += [f"{100 * _miss(check):.3g} % over" for check in over]
    return f": {', '.join(parts)}" if parts else ""


def doubts(constraint: Constraint | None, results: Results, chosen: Setting) -> list[str]:
    """What a reader should know before believing that a setting meets a constraint."""
    summary = results.summary(chosen)
    found = []
    if results.pictures == 1:
        found.append("all samples are of one picture, so that the intervals say nothing about others")
    if summary.failed:
        found.append(
            f"{summary.failed} of {summary.samples + summary.failed} samples could not be measured at "
            f"{chosen.ratio:g} and are left out"
        )
    least = None if constraint is None else constraint.min_agreement
    if constraint is None or least is None or constraint.metric == "accuracy":
        return found
    bound = summary.first_bound if constraint.metric == "first" else summary.answer_bound
    if bound >= least:
        return found
    doubt = (
        f"{summary.samples} samples prove no more than {bound:.3f} (exact one-sided bound at 95 %, "
        f"independent samples), which is below {least:g}"
    )
    if least < 1:
        needed = math.ceil(math.log(1 - CONFIDENCE) / math.log(least))
        doubt += f": it takes {needed} that all agree"
    return [*found, doubt]


def _miss(check: Check) -> float:
    if check.met:
        return 0.0
    if math.isnan(check.value):
        return math.inf
    return abs(check.value - check.limit) / check.limit
