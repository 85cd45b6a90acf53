"""Search over what scores tokens: encoder layer and aggregation.

The best of many is flattered by the samples that chose it. So one half of the pictures chooses, and the other
half, which had no say, tells what the winner is worth.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from calib.errors import OptionError
from calib.ratio.explain import name_of
from calib.ratio.search import Found, Measure, Question, search_ratio, setting_at
from calib.record import Record
from calib.settings import LADDER, REFERENCE, Setting
from calib.statistics import Results

__all__ = ["Scoring", "halves", "search_scoring"]


@dataclass(frozen=True)
class Scoring:
    """What came of it.

    Attributes:
        records: of everything that was measured on the way.
        sentences: what was found.
        better: the winner at the ratio that it reaches, where it is worth a new bundle; None: it is not.
    """

    records: tuple[Record, ...]
    sentences: tuple[str, ...]
    better: Setting | None


def halves(groups: Mapping[str, str], seed: int) -> tuple[frozenset[str], frozenset[str]]:
    """Names of samples in two halves; those of one picture stay together, and the second half has at least
    as many pictures.

    Raises:
        OptionError: there is but one picture.
    """
    pictures = sorted(set(groups.values()))
    if len(pictures) < 2:
        raise OptionError(
            f"a search over layer or aggregation needs 2 pictures or more, but there is {len(pictures)}: "
            "give more data, or leave --search out"
        )
    order = np.random.default_rng(seed).permutation(len(pictures))
    first = {pictures[place] for place in order[: len(pictures) // 2]}
    choosing = frozenset(name for name, picture in groups.items() if picture in first)
    return choosing, frozenset(groups) - choosing


def search_scoring(
    question: Question, found: Found, measure: Measure, candidates: Sequence[Setting]
) -> Scoring:
    """Try `candidates` (templates: their ratio does not matter) beside the bundle's own scoring.

    At the ratio that the own one reaches and one rung below, one half of the pictures chooses; then the ratio
    is searched again with the winner, on the other half.

    Raises:
        OptionError: there is but one picture.
    """
    choosing, judging = halves(question.groups, question.seed)
    if found.chosen == REFERENCE:
        return Scoring((), ("the unpruned model meets the constraint: there is no scoring to search",), None)
    ratios = _two_rungs(question, found)
    templates = list(dict.fromkeys([question.own, *candidates]))
    seen: dict[tuple[Setting, str], Record] = {}

    def measured(settings: Sequence[Setting]) -> Sequence[Record]:
        records = measure(settings)
        seen.update({(record.setting, record.sample): record for record in records})
        return records

    measured([REFERENCE, *(setting_at(each, ratio) for each in templates for ratio in ratios)])
    first = _part(question, seen.values(), choosing)
    winner = max(templates, key=lambda each: _score(question, first, each, ratios))
    own, best = (_score(question, first, each, ratios)[0] for each in (question.own, winner))
    many, where = f"of {len(templates)} ways to score", " and ".join(f"{ratio:g}" for ratio in ratios)
    if winner == question.own:
        sentence = f"{many}, none agrees better than the bundle's own at {where} ({own:.3f})"
        return Scoring(tuple(seen.values()), (sentence,), None)
    what = "agrees best" if best > own else "agrees as well, and has the closest probabilities,"
    chosen = (
        f"{many}, {_way(winner)} {what} on one half of the pictures: {best:.3f} against {own:.3f} of the "
        f"bundle's own, at {where}; the best of many looks better than it is where it was chosen"
    )

    def judged(settings: Sequence[Setting]) -> Sequence[Record]:
        return [record for record in measured(settings) if record.sample in judging]

    # The own one is searched again, too: what it reaches among the rungs that all pictures asked for is less.
    own_again, again = (
        search_ratio(replace(question, own=each, others=()), judged) for each in (question.own, winner)
    )
    sentence, better = _verdict(question, own_again, again)
    return Scoring(tuple(seen.values()), (chosen, sentence), better)


def _verdict(question: Question, own: Found, again: Found) -> tuple[str, Setting | None]:
    """What the half that did not choose says of the own scoring and of the winner."""
    start = f"on the other half, which had no say and has {own.results.pictures} of the pictures, "
    if again.chosen is None:
        return f"{start}it meets the constraint nowhere: the bundle stays as it is", None
    reached = f"{start}it reaches {again.chosen.ratio:g}"
    if own.chosen is None:
        return f"{reached}, where the bundle's own reaches nothing", again.chosen
    lower, metric = question.constraint.keeps_agreement, question.constraint.metric
    theirs, ours = again.chosen.ratio, own.chosen.ratio
    figures = [str(each.results.fraction(each.chosen, metric)) for each in (again, own) if each.chosen]
    reached += f", the bundle's own {ours:g} ({' and '.join(figures)})"
    if theirs < ours if lower else theirs > ours:
        return f"{reached}: it is worth a new bundle", again.chosen
    return f"{reached}: it is not worth a new bundle", None


def _two_rungs(question: Question, found: Found) -> list[float]:
    """The reached ratio and the next lower one; the highest that was tried where none was reached."""
    ladder = sorted(question.ratios or LADDER, reverse=True)
    pruned = [ratio for ratio in found.ratios if ratio < 1.0]
    start = found.chosen.ratio if found.chosen else max(pruned, default=ladder[0])
    return [start, *[ratio for ratio in ladder if ratio < start][:1]]


def _score(
    question: Question, results: Results, template: Setting, ratios: Sequence[float]
) -> tuple[float, float]:
    """Mean of the metric, then closeness to the unpruned probabilities, over `ratios`: more is better."""
    metric = question.constraint.metric
    settings = [setting_at(template, ratio) for ratio in ratios]
    fraction = float(np.mean([results.fraction(setting, metric).mean for setting in settings]))
    divergence = float(np.mean([results.mean(setting, "divergence").mean for setting in settings]))
    return (-1.0, 0.0) if np.isnan(fraction) else (fraction, -divergence)


def _part(question: Question, records: Iterable[Record], names: frozenset[str]) -> Results:
    records = [record for record in records if record.sample in names]
    return Results(records, question.groups, seed=question.seed)


def _way(template: Setting) -> str:
    return name_of(template).rpartition(" at ")[0]
