"""A study in words: the answer in one sentence, figures, and the rows of the table."""

from __future__ import annotations

import math
from dataclasses import dataclass

from calib.report.look import order_of, series_label, series_of
from calib.report.words import as_bytes, as_nats, as_percent, as_ratio, as_seconds, as_times
from calib.settings import BASELINES, REFERENCE, Setting
from calib.study import Study
from calib.summary import Interval, Summary

__all__ = [
    "HEAD",
    "Card",
    "Row",
    "beside",
    "cards",
    "headline",
    "interval_text",
    "metric_name",
    "rows",
    "shown_setting",
]

_NAMES = {
    "first": "first token as unpruned",
    "answer": "whole answer as unpruned",
    "accuracy": "answers that are right",
}


@dataclass(frozen=True)
class Card:
    """One figure with what it is, and a line below."""

    name: str
    value: str
    detail: str


@dataclass(frozen=True)
class Row:
    """One line of the table, `cells` in the order of its head; `kind`: `pick`, `none`, `baseline` or ``."""

    kind: str
    cells: tuple[str, ...]


def metric_name(metric: str) -> str:
    """What is agreed upon, for axes and figures."""
    return _NAMES[metric]


def shown_setting(study: Study) -> Setting | None:
    """What maps and pictures are of: the pick; without one (or where it prunes nothing) the setting of FoPru
    that keeps most of the metric, fewer tokens winning a tie. None: nothing but the unpruned model was
    measured."""
    if study.pick is not None and study.pick.setting != REFERENCE:
        return study.pick.setting
    measured = [
        (setting, summary)
        for setting, summary in study.summaries.items()
        if setting.selector != "none" and summary.samples
    ]
    own = [pair for pair in measured if pair[0].selector not in BASELINES] or measured
    if not own:
        return None
    return max(own, key=lambda pair: (_low(pair[1], study.metric), -pair[0].ratio, pair[0].selector))[0]


def headline(study: Study) -> str:
    """The answer in one sentence."""
    if study.pick is None:
        return f"Nothing that was measured meets the constraint: {study.constraint}."
    setting = study.pick.setting
    summary, whole = study.summaries.get(setting), study.summaries.get(REFERENCE)
    if setting == REFERENCE:
        if "agreement" not in study.limits:  # without it the most tokens are wanted, and lower ratios do, too
            return f"Keep all visual tokens: the unpruned model meets the constraint, {study.constraint}."
        return f"Keep all visual tokens: no lower ratio meets the constraint, {study.constraint}."
    lead = (
        f"Keep {as_ratio(setting.ratio)} of the visual tokens (selector {series_label(series_of(setting))})"
    )
    if summary is None or not summary.samples:
        return f"{lead}."
    parts = [f"{lead}: {_claim(summary, study.metric)}"]
    if whole is not None and whole.samples:
        parts += [part for part in (_sooner(whole, summary), _smaller(whole, summary)) if part]
    return ", ".join(parts) + "."


def cards(study: Study, setting: Setting) -> list[Card]:
    """Figures of a setting beside those of the unpruned model."""
    summary, whole = study.summaries[setting], study.summaries.get(REFERENCE)
    value = summary.fraction(study.metric)
    found = [
        Card(
            metric_name(study.metric),
            as_percent(value.mean),
            f"95\N{NO-BREAK SPACE}% interval {_range(value)}",
        )
    ]
    if study.metric != "first":
        own = summary.first
        found.append(
            Card(metric_name("first"), as_percent(own.mean), f"95\N{NO-BREAK SPACE}% interval {_range(own)}")
        )
    if study.metric != "accuracy" and summary.accuracy is not None:
        beside = "" if whole is None or whole.accuracy is None else as_percent(whole.accuracy.mean)
        own = summary.accuracy
        found.append(Card(metric_name("accuracy"), as_percent(own.mean), f"unpruned: {beside or '–'}"))
    found.append(
        Card("visual tokens", f"{summary.after:.4g}", f"of {summary.before:.4g}, mean of the samples")
    )
    unpruned = (as_seconds(whole.ttft.mean), as_bytes(whole.kv_bytes)) if whole else ("–", "–")
    found.append(
        Card("time to first token", as_seconds(summary.ttft.mean), f"unpruned: {unpruned[0]}, medians")
    )
    found.append(Card("KV cache", as_bytes(summary.kv_bytes), f"unpruned: {unpruned[1]}, means"))
    return found


def beside(study: Study, setting: Setting) -> str | None:
    """What other selectors do at the same ratio and precision, best first; None: none was measured there."""
    others = [
        (summary.fraction(study.metric).mean, series_label(series_of(other)))
        for other, summary in study.summaries.items()
        if other != setting
        and (other.layer, other.aggregation) == (None, None)
        and (other.ratio, other.precision) == (setting.ratio, setting.precision)
        and math.isfinite(summary.fraction(study.metric).mean)
    ]
    if not others:
        return None
    listed = ", ".join(
        f"{label} {as_percent(mean)}"
        for mean, label in sorted(others, key=lambda other: (-other[0], other[1]))
    )
    return f"At the same ratio, {metric_name(study.metric)}: {listed}."


HEAD = (
    "selector",
    "kept",
    "tokens",
    "samples",
    "first token as unpruned",
    "whole answer as unpruned",
    "right answers",
    "divergence, nats",
    "time to first token, ms (quartiles)",
    "KV cache",
)


def rows(study: Study) -> list[Row]:
    """Every setting that was measured: the unpruned model, FoPru, baselines; high ratios first."""
    picked = None if study.pick is None else study.pick.setting
    ordered = sorted(study.summaries, key=lambda setting: (order_of(series_of(setting)), -setting.ratio))
    return [Row(_kind(setting, picked), _cells(setting, study.summaries[setting])) for setting in ordered]


def interval_text(value: Interval | None) -> str:
    """`98.7 % (97.9–99.4)`."""
    if value is None or not math.isfinite(value.mean):
        return "–"
    return f"{as_percent(value.mean)} ({as_percent(value.low)[:-2]}–{as_percent(value.high)[:-2]})"


def _kind(setting: Setting, picked: Setting | None) -> str:
    if setting == picked:
        return "pick"
    if setting.selector == "none":
        return "none"
    return "baseline" if setting.selector in BASELINES else ""


def _cells(setting: Setting, summary: Summary) -> tuple[str, ...]:
    name = series_label(series_of(setting)) if setting != REFERENCE else "unpruned"
    count = f"{summary.samples}" + (f" ({summary.failed} failed)" if summary.failed else "")
    if not summary.samples:
        return (name, as_ratio(setting.ratio), "–", count, *["–"] * (len(HEAD) - 4))
    low, high = summary.ttft_quartiles
    return (
        name,
        as_ratio(setting.ratio),
        f"{summary.before:.4g} → {summary.after:.4g}",
        count,
        interval_text(summary.first),
        interval_text(summary.answer),
        interval_text(summary.accuracy),
        as_nats(summary.divergence.mean),
        f"{_millis(summary.ttft.mean)} ({_millis(low)}–{_millis(high)})",
        as_bytes(summary.kv_bytes),
    )


def _millis(seconds: float) -> str:
    return f"{1000 * seconds:.0f}" if seconds >= 0.01 else f"{1000 * seconds:.2g}"


def _low(summary: Summary, metric: str) -> float:
    low = summary.fraction(metric).low
    return low if math.isfinite(low) else -1.0


def _range(value: Interval) -> str:
    """`97.9–99.4 %`."""
    low, high = as_percent(value.low), as_percent(value.high)
    return low if low == high else f"{low[:-2]}–{high}"


def _claim(summary: Summary, metric: str) -> str:
    value = summary.fraction(metric)
    what = {
        "first": "of first tokens are those of the unpruned model",
        "answer": "of answers are, to the last token, those of the unpruned model",
        "accuracy": "of answers are right",
    }[metric]
    count = f"{summary.samples} sample{'s' * (summary.samples != 1)}"
    bound = {"first": summary.first_bound, "answer": summary.answer_bound}.get(metric)
    sure = f"95\N{NO-BREAK SPACE}% interval {_range(value)}"
    if value.mean >= 1.0 and bound is not None:  # where all agree, resamples do as well, however few they are
        sure = f"with 95\N{NO-BREAK SPACE}% confidence at least {as_percent(bound)}"
    return f"{as_percent(value.mean)} {what} ({sure}, {count})"


def _sooner(whole: Summary, summary: Summary) -> str:
    """What is gained in time; nothing is claimed where the intervals of the medians overlap."""
    if summary.ttft.high < whole.ttft.low:
        times = as_times(whole.ttft.mean, summary.ttft.mean)
        return f"first token {times}\N{NO-BREAK SPACE}× sooner"
    if summary.ttft.low > whole.ttft.high:
        times = as_times(summary.ttft.mean, whole.ttft.mean)
        return f"first token {times}\N{NO-BREAK SPACE}× later"
    return "no measurable difference in time to the first token"


def _smaller(whole: Summary, summary: Summary) -> str:
    times = as_times(whole.kv_bytes, summary.kv_bytes)
    return f"KV cache {times}\N{NO-BREAK SPACE}× smaller" if times is not None and float(times) > 1.0 else ""
