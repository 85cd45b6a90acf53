"""By how much limits are missed, and how far a limit that is met can be believed."""

from __future__ import annotations

import math
from collections.abc import Sequence

from calib.constraints import Constraint
from calib.pick import Check
from calib.settings import REFERENCE, Setting
from calib.statistics import CONFIDENCE, Results

__all__ = ["by_how_much", "doubts", "failures", "largest_miss"]

_ALIKE = 0.9  # of the answers with one first token: agreement near 1 comes without looking at the picture


def largest_miss(checks: Sequence[Check]) -> float:
    """The largest relative miss of a limit; infinite where nothing was measured."""
    return max((_miss(check) for check in checks), default=0.0)


def by_how_much(missed: Sequence[Check]) -> str:
    """`: 0.012 short, 5 % over`; empty where it cannot be told."""
    agreement = [check for check in missed if check.name == "agreement" and not math.isnan(check.value)]
    over = [check for check in missed if check.name != "agreement" and not math.isnan(check.value)]
    parts = [f"{check.limit - check.value:.3f} short" for check in agreement]
    parts += [f"{_percent(_miss(check))} over" for check in over]
    return f": {', '.join(parts)}" if parts else ""


def failures(results: Results, setting: Setting) -> list[str]:
    """How many samples of a setting could not be measured, and why the first could not; or nothing."""
    failed = results.failed(setting)
    if not failed:
        return []
    where = "" if setting == REFERENCE else f" at {setting.ratio:g}"
    return [
        f"samples that could not be measured{where}, and are left out: {len(failed)}; the first "
        f"({failed[0].sample}) says: {failed[0].error}"
    ]


def doubts(constraint: Constraint | None, results: Results, chosen: Setting) -> list[str]:
    """What a reader should know before believing that a setting meets a constraint."""
    found = failures(results, chosen)
    if results.pictures == 1:
        found.append("all samples are of one picture, so that the intervals say nothing about others")
    least = None if constraint is None else constraint.min_agreement
    if constraint is None or least is None or chosen == REFERENCE:
        return found
    if constraint.metric == "first":
        found += _same_start(results)
    bound, pictures = results.bound(chosen, constraint.metric), results.pictures_of(chosen, constraint.metric)
    if bound >= least:
        return found
    many = "1 picture proves" if pictures == 1 else f"{pictures} pictures prove"
    exact = "(exact one-sided bound at 95 %, independent pictures)"
    doubt = f"{many} no more than {bound:.3f} {exact}, which is below {least:g}"
    if constraint.metric == "accuracy":
        doubt = f"{many} no less than a drop by {1 - bound:.3f} {exact}, which is above {1 - least:.3g}"
    if least < 1:
        needed = math.ceil(math.log(1 - CONFIDENCE) / math.log(least))
        doubt += f": it takes {needed} that all agree"
    return [*found, doubt]


def _same_start(results: Results) -> list[str]:
    """First tokens that hardly differ agree whatever is pruned."""
    commonest, answers = results.commonest_start(REFERENCE)
    if results.pictures == 1 or commonest < _ALIKE * answers or not answers:
        return []
    return [
        f"{commonest} of {answers} unpruned answers begin with the same token, so that its agreement says "
        "little about the pictures: ask questions with short answers, or give --metric answer"
    ]


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %" if share < 10 else f"{100 * share:.0f} %"


def _miss(check: Check) -> float:
    if check.met:
        return 0.0
    if math.isnan(check.value):
        return math.inf
    return abs(check.value - check.limit) / check.limit
