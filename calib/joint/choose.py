"""Which candidate to take, and why, in sentences."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from calib.constraints import bytes_text, seconds_text
from calib.joint.candidate import Candidate
from calib.joint.limits import Limits
from calib.pick import Pick
from calib.settings import REFERENCE
from calib.shortfall import by_how_much, doubts, largest_miss
from calib.statistics import Results

__all__ = ["Choice", "choose", "explain_choice", "explain_no_choice"]

_COSTS = {"memory": "memory", "ttft": "time to the first token"}


@dataclass(frozen=True)
class Choice:
    """What is chosen from.

    Attributes:
        candidates: all that was measured, the most faithful first.
        limits: what must be met.
        prefer: what cheap means: `memory` or `ttft`.
        results: the statistics behind the candidates.
    """

    candidates: Sequence[Candidate]
    limits: Limits
    prefer: str
    results: Results

    @property
    def fitting(self) -> list[Candidate]:
        """What meets every limit and does so by more than chance, the one to take first.

        A ratio that agrees, although a higher one of the same precision does not, is taken for chance. With a
        limit of agreement the cheapest comes first; with limits of cost alone the most faithful.
        """
        met = [each for each in self.candidates if each.meets and not self.is_chance(each)]
        return sorted(met, key=self._order)

    def is_chance(self, candidate: Candidate) -> bool:
        """Whether a higher ratio of the same precision misses the agreement that is asked for."""
        return any(
            _missed(other, "agreement")
            for other in self.candidates
            if other.setting.precision == candidate.setting.precision
            and other.setting.ratio > candidate.setting.ratio
        )

    def _order(self, candidate: Candidate) -> tuple[float, ...]:
        (other,) = (cost for cost in _COSTS if cost != self.prefer)
        costs = candidate.cost(self.prefer), candidate.cost(other)
        low = -candidate.fidelity.low
        return (*costs, low) if self.limits.keeps_agreement else (low, *costs)


def choose(choice: Choice) -> Candidate | None:
    """The first of those that fit; None: nothing does."""
    return next(iter(choice.fitting), None)


def explain_choice(choice: Choice, chosen: Candidate) -> Pick:
    """Why it was chosen, and what a reader should know before believing it."""
    notes = [*_cheaper_by_the_other(choice, chosen), *_left_out(choice), *_lucky(choice, chosen)]
    notes += doubts(choice.limits.constraint, choice.results, chosen.setting)
    return Pick(chosen.setting, tuple(_reasons(choice, chosen)), chosen.checks, tuple(notes))


def explain_no_choice(choice: Choice) -> list[str]:
    """By how much the closest candidate misses; then what was not measured at all."""
    closest = min(choice.candidates, key=lambda each: largest_miss(each.checks))
    missed = [check for check in closest.checks if not check.met]
    why = " and ".join(check.text for check in missed) or "a higher ratio fails"
    return [
        f"nothing that was tried meets the limits ({choice.limits}); closest is {closest.name}, where {why}"
        f"{by_how_much(missed)}",
        *_unmeasured(choice.candidates, choice.results),
    ]


def _reasons(choice: Choice, chosen: Candidate) -> list[str]:
    summary, fitting = chosen.summary, choice.fitting
    parts = f"{bytes_text(chosen.weights)} of weights, {bytes_text(summary.kv_most)} of KV cache"
    whole = next((each for each in choice.candidates if each.setting == REFERENCE), None)
    beside = "" if whole is None or whole == chosen else f"; {whole.name}, takes {_costs(whole)}"
    reasons = [
        f"{chosen.name}, keeps {summary.before:.4g} -> {summary.after:.4g} visual tokens",
        *(check.text for check in chosen.checks),
        f"it takes {_costs(chosen)} ({parts}){beside}",
    ]
    measured = sum(each.summary.samples > 0 for each in choice.candidates)
    count = f"{len(fitting)} of {measured} that were measured meet every limit"
    least = f"it takes the least {_COSTS[choice.prefer]}"
    what = least if choice.limits.keeps_agreement else "it is the most faithful"
    if len(fitting) == 1:
        return [*reasons, f"{count}: nothing else does"]
    second = fitting[1]
    return [*reasons, f"{count}; of these {what}, before {second.name} ({_costs(second)})"]


def _costs(candidate: Candidate) -> str:
    return f"{bytes_text(candidate.memory)} and {seconds_text(candidate.ttft)} to the first token"


def _cheaper_by_the_other(choice: Choice, chosen: Candidate) -> list[str]:
    """What would be taken if the other cost counted. Times whose intervals overlap are one time."""
    if not choice.limits.keeps_agreement:
        return []
    (other,) = (cost for cost in _COSTS if cost != choice.prefer)
    best = min(choice.fitting, key=lambda each: (each.cost(other), each.cost(choice.prefer)))
    if best == chosen or (other == "ttft" and best.summary.ttft.high >= chosen.summary.ttft.low):
        return []
    if not best.cost(other) < chosen.cost(other):
        return []
    return [f"{best.name}, takes the least {_COSTS[other]} ({_costs(best)}): --prefer {other} picks it"]


def _left_out(choice: Choice) -> list[str]:
    """Precisions of which nothing fits, and what they miss unpruned."""
    notes = _unmeasured(choice.candidates, choice.results)
    fitting = {each.setting.precision for each in choice.fitting}
    for whole in (each for each in choice.candidates if each.setting.ratio == 1.0):
        if whole.setting.precision in fitting or not whole.summary.samples:
            continue
        missed = [check.text for check in whole.checks if not check.met]
        if missed:
            notes.append(f"{whole.name}, does not meet the limits: {' and '.join(missed)}")
    return notes


def _unmeasured(candidates: Iterable[Candidate], results: Results) -> list[str]:
    """Precisions that could not be measured, with the first reason."""
    reasons: dict[str, str | None] = {}
    for each in candidates:
        reasons.setdefault(each.label, results.first_error(each.setting))
        if each.summary.samples:
            reasons[each.label] = None
    return [f"{label} could not be measured: {reason}" for label, reason in reasons.items() if reason]


def _lucky(choice: Choice, chosen: Candidate) -> list[str]:
    """Cheaper candidates that meet every limit although a higher ratio does not agree."""
    if not choice.limits.keeps_agreement:
        return []
    return [
        f"{each.name}, meets the limits too, but a higher ratio does not: that is taken for chance"
        for each in choice.candidates
        if each.meets and choice.is_chance(each) and each.cost(choice.prefer) < chosen.cost(choice.prefer)
    ]


def _missed(candidate: Candidate, name: str) -> bool:
    return any(check.name == name and not check.met for check in candidate.checks)
