"""Coarse to fine over ratios: which to measure next, and which one the bundle's own selector reaches."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

from calib.constraints import Constraint
from calib.errors import OptionError, RunError
from calib.record import Record
from calib.settings import LADDER, REFERENCE, Setting
from calib.statistics import Results

__all__ = ["Found", "Measure", "Question", "next_rungs", "reach", "search_ratio", "setting_at"]

Measure: TypeAlias = Callable[[Sequence[Setting]], Sequence[Record]]
"""Records of all samples for these settings; what was measured before costs nothing."""

_STRIDE = 3  # of the first round: the bisection behind it needs two more at most


@dataclass(frozen=True)
class Question:
    """What is searched for.

    Attributes:
        own: the bundle's selector, the one that is searched for; its ratio does not matter.
        others: selectors that are measured beside it, at every ratio that it is tried at.
        constraint: what must be met.
        groups: picture of each sample, by its name.
        ratios: tried instead of the ladder, all of them; None: search `LADDER`.
        seed: of the resamples.
    """

    own: Setting
    others: tuple[str, ...]
    constraint: Constraint
    groups: Mapping[str, str]
    ratios: tuple[float, ...] | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.ratios is not None and not self.ratios:
            raise OptionError("there is no ratio to try: give some, as 0.5,0.3,0.2")

    @property
    def rungs(self) -> tuple[float, ...]:
        """Ratios from the one that is likeliest to meet the constraint: high ratios agree, low ones are
        quick."""
        if self.ratios is not None:
            return tuple(sorted(set(self.ratios), reverse=self.constraint.keeps_agreement))
        return LADDER if self.constraint.keeps_agreement else (*LADDER[::-1], 1.0)


@dataclass(frozen=True)
class Found:
    """How a search ended.

    Attributes:
        records: of every setting that was measured, `REFERENCE` among them.
        results: their statistics.
        ratios: what was tried, high to low.
        chosen: what the own selector reaches; None: nothing meets the constraint.
    """

    records: tuple[Record, ...]
    results: Results
    ratios: tuple[float, ...]
    chosen: Setting | None


def setting_at(template: Setting, ratio: float) -> Setting:
    """`template` at another ratio; every selector at 1 is the unpruned model."""
    return REFERENCE if ratio == 1.0 else replace(template, ratio=ratio)


def search_ratio(question: Question, measure: Measure) -> Found:
    """Measure until the answer is known to one rung of the ladder.

    Raises:
        RunError: no sample could be measured.
    """
    templates = [question.own, *(Setting(other, question.own.ratio) for other in question.others)]
    verdicts: dict[float, bool] = {}
    records: dict[tuple[Setting, str], Record] = {}  # a measure may give the reference in every round
    results = Results((), question.groups)
    while batch := _batch(question, verdicts):
        asked = dict.fromkeys(setting_at(template, ratio) for ratio in batch for template in templates)
        measured = measure(list(dict.fromkeys([REFERENCE, *asked])))
        records |= {(record.setting, record.sample): record for record in measured}
        results = Results(tuple(records.values()), question.groups, seed=question.seed)
        _check_measured(results, records.values())
        for ratio in batch:
            verdicts[ratio] = _safe(question, results, setting_at(question.own, ratio))
    tried = tuple(sorted(verdicts, reverse=True))
    return Found(tuple(records.values()), results, tried, reach(question, results, question.own, tried))


def next_rungs(rungs: Sequence[float], verdicts: Mapping[float, bool]) -> list[float]:
    """What to measure next, of `rungs` in the order of falling hope; empty: the frontier is known.

    First every third, and the last; then the middle between the last rung before which all that were tried
    are good, and the first bad one.
    """
    if not verdicts:
        return list(dict.fromkeys([*rungs[::_STRIDE], rungs[-1]]))
    tried = [place for place, rung in enumerate(rungs) if rung in verdicts]
    bad = next((place for place in tried if not verdicts[rungs[place]]), None)
    if bad is None:
        return []
    good = max((place for place in tried if place < bad), default=None)
    if good is None or bad - good == 1:
        return []
    return [rungs[(good + bad) // 2]]


def reach(question: Question, results: Results, template: Setting, ratios: Sequence[float]) -> Setting | None:
    """The best setting of `template` among measured ratios: with a limit of agreement the lowest ratio such
    that it and every higher one agree, and that meets all other limits; without, the highest such that it
    and every lower one meet all. None: there is none."""
    order = sorted(ratios, reverse=question.constraint.keeps_agreement)
    best = None
    for ratio in order:
        setting = setting_at(template, ratio)
        if not _safe(question, results, setting):
            break
        if all(check.met for check in question.constraint.checks(results, setting)):
            best = setting
    return best


def _batch(question: Question, verdicts: Mapping[float, bool]) -> list[float]:
    if question.ratios is None:
        return next_rungs(question.rungs, verdicts)
    return [] if verdicts else list(question.rungs)


def _safe(question: Question, results: Results, setting: Setting) -> bool:
    """Whether the search may go on beyond a setting. Agreement alone decides where it is asked for: the
    other limits are what going on is for."""
    constraint = question.constraint
    if constraint.keeps_agreement:
        return constraint.agreement(results, setting).met
    return all(check.met for check in constraint.checks(results, setting))


def _check_measured(results: Results, records: Iterable[Record]) -> None:
    reference = [record for record in records if record.setting == REFERENCE]
    if not reference or results.summary(REFERENCE).samples:
        return
    raise RunError(
        f"none of the {len(reference)} samples could be measured without pruning; the first "
        f"({reference[0].sample}) says: {reference[0].error}"
    )
