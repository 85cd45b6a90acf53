"""Why a setting was chosen, and what a reader should know before believing it, in sentences."""

from __future__ import annotations

import math
import shlex

from calib.pick import Pick
from calib.ratio.search import Found, Question, reach, setting_at
from calib.settings import BASELINES, METHODS, REFERENCE, Setting
from calib.shortfall import by_how_much, doubts, failures, largest_miss

__all__ = ["explain", "explain_miss", "name_of", "rebuild_command"]

_FEWEST = 6
"""Pictures on which two settings must differ before one is called better: fewer, even if all are on one side,
come by chance more often than once in 20 (sign test), and resamples do not know that."""

_OWN_OPTIONS = ("--strategy", "--aggregation", "--layer", "--ratio", "--tokens", "--output")


def explain(question: Question, found: Found, build: str, bundle: str) -> Pick:
    """The pick of a search that found one.

    `build` is the command that built the bundle at `bundle`: other strategies need one like it.
    """
    chosen = found.chosen
    if chosen is None:
        raise ValueError("nothing was chosen: see explain_miss")
    others = _other_methods(question, found, chosen)
    rebuild = None
    if others:
        rebuild = rebuild_command(build, bundle, others[0])
    notes = [
        *_baselines(question, found, chosen),
        *(_reaches(question, found, chosen, other) for other in others),
        *_lucky(question, found, chosen),
        *doubts(question.constraint, found.results, chosen),
    ]
    checks = question.constraint.checks(found.results, chosen)
    return Pick(chosen, tuple(_reasons(question, found, chosen)), checks, tuple(notes), rebuild)


def explain_miss(question: Question, found: Found) -> tuple[str, ...]:
    """Of a search that found nothing: by how much the closest setting misses, and what the others do."""
    own = [setting_at(question.own, ratio) for ratio in found.ratios]
    closest = min(own, key=lambda setting: _misses(question, found, setting))
    missed = [check for check in question.constraint.checks(found.results, closest) if not check.met]
    chance = f"it is met, but not at every {_safer(question)} ratio: that is taken for chance"
    sentences = [
        f"nothing that was tried meets the constraint ({question.constraint}); closest is "
        f"{name_of(closest)}, where {' and '.join(check.text for check in missed) or chance}"
        f"{by_how_much(missed)}"
    ]
    for selector in question.others:
        other = reach(question, found.results, Setting(selector, question.own.ratio), found.ratios)
        if other is not None and other != REFERENCE:
            sentences.append(f"{name_of(other)} meets it")
    return (*sentences, *failures(found.results, closest))


def name_of(setting: Setting) -> str:
    """As a sentence names it: `rank (layer 5, cls) at 0.25`."""
    if setting == REFERENCE:
        return "the unpruned model"
    parts = [] if setting.layer is None else [f"layer {setting.layer}"]
    parts += [part for part in (setting.aggregation, setting.precision) if part]
    inside = f" ({', '.join(parts)})" if parts else ""
    return f"{setting.selector}{inside} at {setting.ratio:g}"


def rebuild_command(build: str, bundle: str, setting: Setting) -> str:
    """The command `build` with the options that make `setting` the bundle's own, into a folder beside it."""
    words, kept = shlex.split(build), []
    while words:
        word = words.pop(0)
        if word in _OWN_OPTIONS:
            del words[:1]
        elif not word.startswith(tuple(f"{option}=" for option in _OWN_OPTIONS)):
            kept.append(word)
    aggregation = "cls" if setting.selector == "cls" else setting.aggregation
    kept += ["--strategy", "rank" if setting.selector == "cls" else setting.selector]
    kept += [] if aggregation is None else ["--aggregation", aggregation]
    kept += [] if setting.layer is None else ["--layer", str(setting.layer)]
    output = f"{bundle.rstrip('/')}-{setting.selector}"
    return shlex.join([*kept, "--ratio", f"{setting.ratio:g}", "--output", output])


def _reasons(question: Question, found: Found, chosen: Setting) -> list[str]:
    summary = found.results.summary(chosen)
    reasons = [f"{name_of(chosen)} keeps {summary.before:.4g} -> {summary.after:.4g} visual tokens"]
    reasons += [check.text for check in question.constraint.checks(found.results, chosen)]
    lower = question.constraint.keeps_agreement
    beyond = [r for r in found.ratios if (r < chosen.ratio if lower else r > chosen.ratio)]
    word = "lower" if lower else "higher"
    if not beyond:
        return [*reasons, f"no {word} ratio was tried"]
    step = setting_at(question.own, max(beyond) if lower else min(beyond))
    missed = [check.text for check in question.constraint.checks(found.results, step) if not check.met]
    return [*reasons, f"at the next {word} ratio that was tried, {step.ratio:g}, {' and '.join(missed)}"]


def _baselines(question: Question, found: Found, chosen: Setting) -> list[str]:
    """Whether choosing tokens pays at all, at the chosen ratio."""
    results, metric = found.results, question.constraint.metric
    sentences, beaten = [], []
    for baseline in (other for other in question.others if other in BASELINES):
        if (other := _further(question, found, chosen, baseline)) is not None:
            sentences.append(_reaches(question, found, chosen, other))
        setting = setting_at(Setting(baseline, 1.0), chosen.ratio)
        if chosen == REFERENCE or setting not in results.settings:
            continue
        difference = results.difference(setting, chosen, metric)
        figures = f"{results.fraction(setting, metric)} against {results.fraction(chosen, metric)}"
        where = f"{question.own.selector} at {chosen.ratio:g}: {figures}"
        if math.isnan(difference.mean):
            sentences.append(f"{baseline} could not be compared with {question.own.selector}")
            continue
        many = results.differing(setting, chosen, metric) >= _FEWEST
        if many and difference.low > 0:
            sentences.append(f"{baseline} is better than {where}")
        elif many and difference.high < 0:
            beaten.append(f"{baseline} ({results.fraction(setting, metric)})")
        else:
            sentences.append(f"{baseline} is not significantly worse than {where}")
    if beaten:
        sentences.append(
            f"{name_of(chosen)} ({results.fraction(chosen, metric)}) is better than {', '.join(beaten)}"
        )
    return sentences


def _other_methods(question: Question, found: Found, chosen: Setting) -> list[Setting]:
    """What the other FoPru selectors reach, if that is further; the furthest first."""
    candidates = (_further(question, found, chosen, other) for other in question.others if other in METHODS)
    further = [setting for setting in candidates if setting is not None]
    return sorted(further, key=lambda s: s.ratio, reverse=not question.constraint.keeps_agreement)


def _further(question: Question, found: Found, chosen: Setting, other: str) -> Setting | None:
    setting = reach(question, found.results, Setting(other, question.own.ratio), found.ratios)
    if setting is None:
        return None
    lower = question.constraint.keeps_agreement
    return setting if (setting.ratio < chosen.ratio if lower else setting.ratio > chosen.ratio) else None


def _reaches(question: Question, found: Found, chosen: Setting, other: Setting) -> str:
    metric = question.constraint.metric
    return (
        f"{name_of(other)} ({found.results.fraction(other, metric)}) meets the constraint as well, where "
        f"{question.own.selector} only reaches {chosen.ratio:g}; the best of several on the same samples is "
        "a little optimistic"
    )


def _lucky(question: Question, found: Found, chosen: Setting) -> list[str]:
    """Ratios beyond the chosen one that meet the constraint although one between does not."""
    lower = question.constraint.keeps_agreement
    ratios = [
        ratio
        for ratio in found.ratios
        if (ratio < chosen.ratio if lower else ratio > chosen.ratio)
        and all(
            check.met for check in question.constraint.checks(found.results, setting_at(question.own, ratio))
        )
    ]
    return [
        f"{question.own.selector} at {ratio:g} meets the constraint too, but a {_safer(question)} ratio does "
        "not: that is taken for chance"
        for ratio in ratios
    ]


def _safer(question: Question) -> str:
    """Where a constraint is likelier to be met."""
    return "higher" if question.constraint.keeps_agreement else "lower"


def _misses(question: Question, found: Found, setting: Setting) -> float:
    """The largest relative miss of a limit; infinite where nothing was measured."""
    return largest_miss(question.constraint.checks(found.results, setting))
