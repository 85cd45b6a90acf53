"""The page of the joint choice: one HTML file that needs nothing else, and its plots as PNG files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from calib.errors import RunError
from calib.joint.candidate import Candidate
from calib.joint.output import front_text
from calib.joint.study import JointStudy
from calib.report.charts import Chart
from calib.report.joint_plots import CostPlot, cost_front_plot
from calib.report.look import DARK, LIGHT, Theme
from calib.report.markup import origin_values, render, shown_chart
from calib.report.view import Card, Row, interval_text, metric_name
from calib.report.words import as_bytes, as_percent, as_ratio, as_seconds, as_times, sentence
from calib.settings import REFERENCE, Setting
from runtime.output import write_whole

__all__ = ["PAGE", "write_joint_report"]

PAGE = "report.html"
_AXES = ("weights and KV cache, MiB", "time to first token, ms")
_METRICS = ("first", "answer", "accuracy")


def write_joint_report(folder: Path, joint: JointStudy) -> Path:
    """Write `report.html` and its plots as PNG files into a folder, which is made if absent.

    Returns:
        The path of the page.

    Raises:
        RunError: the folder cannot be written.
        BackendError: matplotlib or jinja2 is not installed.
    """
    charts = _charts(joint)
    page = render("joint.html", _values(joint, charts))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for chart in charts:
            write_whole(folder / f"{chart.name}.png", chart.light)
        write_whole(folder / PAGE, page.encode())
    except OSError as error:
        raise RunError(
            f"cannot write the report to {folder} ({error}): give a folder that can be written"
        ) from error
    return folder / PAGE


def _charts(joint: JointStudy) -> list[Chart]:
    if not any(each.summary.samples for each in joint.candidates):
        return []
    limits = joint.study.limits
    mib = limits["memory"] / 2**20 if "memory" in limits else None
    seconds = 1000 * limits["ttft"] if "ttft" in limits else None
    memory = _plot(joint, lambda c: c.memory / 2**20, lambda c: c.best_memory, _AXES[0], mib)
    ttft = _plot(joint, lambda c: 1000 * c.ttft, lambda c: c.best_ttft, _AXES[1], seconds)
    return [
        _chart("fidelity_memory", memory, "memory, of the weights that run and the largest KV cache"),
        _chart("fidelity_ttft", ttft, "the median time to the first token"),
    ]


def _plot(
    joint: JointStudy,
    cost: Callable[[Candidate], float],
    on_front: Callable[[Candidate], bool],
    name: str,
    most: float | None,
) -> CostPlot:
    return CostPlot(
        joint.candidates,
        [each.label for each in joint.variants],
        cost,
        on_front,
        name,
        metric_name(joint.study.metric),
        None if joint.study.metric == "accuracy" else joint.study.limits.get("agreement"),
        most,
        joint.chosen,
    )


def _chart(name: str, plot: CostPlot, words: str) -> Chart:
    def draw(theme: Theme) -> bytes:
        return cost_front_plot(plot, theme)

    return Chart(
        name,
        draw(LIGHT),
        draw(DARK),
        f"Curves of {plot.metric} against {words}, one per precision",
        f"The lower end of the 95\N{NO-BREAK SPACE}% interval against {words}: cheaper to the right, "
        "better at the top. A line is a precision, from unpruned (hollow) to few tokens; the grey band is "
        "the most that can be had for a cost.",
    )


def _values(joint: JointStudy, charts: list[Chart]) -> dict[str, Any]:
    """What the template shows, by name."""
    study, pick = joint.study, joint.study.pick
    notes = dict.fromkeys((*study.notes, *(pick.notes if pick else ())))
    names = {each.setting: each.name for each in joint.candidates}
    return {
        "name": study.facts.get("name", "bundle"),
        "source": study.data.source,
        "answer": _headline(joint),
        "picked": pick is not None,
        "bundle": None if joint.taken is None else str(joint.taken.bundle.path),
        "meaning": _MEANING[study.metric],
        "notes": [sentence(note) for note in notes],
        "reasons": [sentence(reason) for reason in pick.reasons] if pick else [],
        "cards": [] if joint.chosen is None else _cards(joint, joint.chosen),
        "plots": [shown_chart(chart) for chart in charts],
        "head": _head(joint),
        "rows": [_row(joint, each) for each in joint.candidates],
        "labelled": study.data.labelled,
        "device": study.facts.get("device") or study.facts.get("machine"),
        **origin_values(study, lambda setting: _named(names, setting)),
    }


_AGREES = (
    "Agreement is with the float model without pruning, on these pictures. It is not accuracy: where that "
    "model is wrong, so is an answer that agrees with it."
)
_MEANING = {
    "first": _AGREES,
    "answer": _AGREES,
    "accuracy": "Right means: the text is the answer that the data gives, blanks at its ends aside.",
}
_CLAIMS = {
    "first": "of first tokens are those of the unpruned float model",
    "answer": "of answers are, to the last token, those of the unpruned float model",
    "accuracy": "of answers are right",
}


def _headline(joint: JointStudy) -> str:
    """The answer in one sentence."""
    chosen, study = joint.chosen, joint.study
    if chosen is None:
        return f"Nothing that was measured meets the limits: {study.constraint}."
    kept = (
        "with all visual tokens"
        if chosen.setting.selector == "none"
        else f"with {as_ratio(chosen.setting.ratio)} of the visual tokens"
    )
    claim = f"{as_percent(chosen.fidelity.mean)} {_CLAIMS[study.metric]}"
    parts = [f"Take {chosen.label} {kept}: {claim}", *_gains(joint, chosen)]
    return ", ".join(parts) + "."


def _gains(joint: JointStudy, chosen: Candidate) -> list[str]:
    """Against the unpruned float model; nothing is claimed of times whose intervals overlap."""
    whole = _whole(joint)
    if whole is None or whole == chosen:
        return []
    found = []
    times = as_times(whole.memory, chosen.memory)
    if times is not None and float(times) > 1.0:
        found.append(f"{times}\N{NO-BREAK SPACE}× less memory")
    before, after = whole.summary.ttft, chosen.summary.ttft
    if after.high < before.low:
        found.append(f"first token {as_times(before.mean, after.mean)}\N{NO-BREAK SPACE}× sooner")
    elif after.low > before.high:
        found.append(f"first token {as_times(after.mean, before.mean)}\N{NO-BREAK SPACE}× later")
    else:
        found.append("no measurable difference in time to the first token")
    return found


def _whole(joint: JointStudy) -> Candidate | None:
    return next((each for each in joint.candidates if each.setting == REFERENCE), None)


def _cards(joint: JointStudy, chosen: Candidate) -> list[Card]:
    """Figures of the choice beside those of the unpruned float model."""
    whole, summary, metric = _whole(joint), chosen.summary, joint.study.metric
    low, high = as_percent(chosen.fidelity.low), as_percent(chosen.fidelity.high)
    interval = low if low == high else f"{low[:-2]}–{high}"
    cards = [
        Card(
            metric_name(metric),
            as_percent(chosen.fidelity.mean),
            f"95\N{NO-BREAK SPACE}% interval {interval}",
        )
    ]
    if metric != "accuracy" and summary.accuracy is not None:
        accuracy = None if whole is None else whole.summary.accuracy
        other = "–" if accuracy is None else as_percent(accuracy.mean)
        detail = f"unpruned float: {other}"
        cards.append(Card(metric_name("accuracy"), as_percent(summary.accuracy.mean), detail))

    costs: tuple[tuple[str, Callable[[Candidate], str]], ...] = (
        ("memory", lambda each: as_bytes(each.memory)),
        ("weights", lambda each: as_bytes(each.weights)),
        ("KV cache, largest", lambda each: as_bytes(each.summary.kv_most)),
        ("time to first token", lambda each: as_seconds(each.ttft)),
    )
    beside = {name: "–" if whole is None else text(whole) for name, text in costs}
    return [*cards, *(Card(name, text(chosen), f"unpruned float: {beside[name]}") for name, text in costs)]


def _shown_metrics(joint: JointStudy) -> list[str]:
    """What counts comes first."""
    shown = [name for name in _METRICS if name != "accuracy" or joint.study.data.labelled]
    return sorted(shown, key=lambda name: name != joint.study.metric)


def _head(joint: JointStudy) -> tuple[str, ...]:
    metrics = (metric_name(name) for name in _shown_metrics(joint))
    costs = ("time to first token", "KV cache", "weights", "memory")
    return ("precision", "kept", "tokens", *metrics, *costs, "best for")


def _row(joint: JointStudy, candidate: Candidate) -> Row:
    setting, summary = candidate.setting, candidate.summary
    kind = "pick" if candidate == joint.chosen else "" if candidate.optimal else "baseline"
    failed = f" ({summary.failed} failed)" if summary.failed else ""
    kept = "all" if setting.selector == "none" else f"{setting.selector}, {as_ratio(setting.ratio)}"
    cells = (candidate.label, kept)
    if not summary.samples:
        return Row(kind, (*cells, f"–{failed}", *["–"] * (len(_head(joint)) - 4), ""))
    return Row(
        kind,
        (
            *cells,
            f"{summary.after:.4g}{failed}",
            *(
                interval_text(candidate.fidelity)
                if name == joint.study.metric
                else as_percent(summary.fraction(name).mean)
                for name in _shown_metrics(joint)
            ),
            as_seconds(candidate.ttft),
            as_bytes(summary.kv_most),
            as_bytes(candidate.weights),
            as_bytes(candidate.memory),
            front_text(candidate),
        ),
    )


def _named(names: dict[Setting, str], setting: Setting) -> str:
    return names.get(setting, setting.precision)
