"""What the joint choice prints and writes down: a table, sentences, one JSON object."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from calib.constraints import bytes_text, seconds_text
from calib.joint.candidate import Candidate
from calib.joint.study import JointStudy
from calib.ratio.output import number_text, share_text, study_json
from calib.summary import Interval

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["JOINT_WIDE", "choice_lines", "front_text", "joint_json", "joint_table"]

_NAMES = {"first": "first token", "answer": "answer", "accuracy": "right"}
JOINT_WIDE = 126  # columns that the whole table takes
_NARROW = ("tokens", "KV", "weights")  # which a narrow table does without


def joint_table(joint: JointStudy, width: int = JOINT_WIDE) -> Table:
    """A row per setting, the most faithful first; what is on no front is dim, the pick is bold. Below
    `JOINT_WIDE` columns, digits and what can be read elsewhere give way."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    narrow = width < JOINT_WIDE
    table = Table(
        title="agreement with the unpruned float model, and what it costs",
        caption="best for: nothing else is at least as faithful for less",
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
    )
    rows = [(each, _cells(joint, each, 2 if narrow else 3)) for each in joint.candidates]
    shown = [column for column in rows[0][1] if not (narrow and column in _NARROW)]
    for column in shown:
        text = column in ("precision", "best for")
        table.add_column(
            column,
            justify="left" if text else "right",
            no_wrap=column != "precision",
            min_width=12 if text else None,
        )
    for candidate, cells in rows:
        style = "bold" if candidate == joint.chosen else None if candidate.optimal else "dim"
        table.add_row(*(cells[column] for column in shown), style=style)
    return table


def choice_lines(joint: JointStudy) -> list[str]:
    """The choice and all that speaks for it and against it."""
    pick = joint.study.pick
    if pick is None or joint.chosen is None:
        lines = ["nothing was picked"]
    else:
        lines = [f"picked: {joint.chosen.name}"]
        lines += [f"  because {reason}" for reason in pick.reasons]
        lines += [f"  note: {note}" for note in pick.notes]
    return [*lines, *(f"  note: {note}" for note in joint.study.notes)]


def joint_json(joint: JointStudy, **more: Any) -> str:
    """One JSON object, strictly so; `settings` has the precision's key, `candidates` what people call it."""
    return study_json(
        joint.study,
        prefer=joint.prefer,
        candidates=[_entry(each) for each in joint.candidates],
        bundles=[
            {"key": each.key, "label": each.label, "path": str(each.bundle.path)} for each in joint.variants
        ],
        picked_bundle=None if joint.taken is None else str(joint.taken.bundle.path),
        **more,
    )


def front_text(candidate: Candidate) -> str:
    """`memory, time`: on which fronts it is; empty: on none."""
    fronts = (("memory", candidate.best_memory), ("time", candidate.best_ttft))
    return ", ".join(name for name, on in fronts if on)


def _entry(candidate: Candidate) -> dict[str, Any]:
    return {
        "name": candidate.name,
        "label": candidate.label,
        "setting": asdict(candidate.setting),
        "fidelity": asdict(candidate.fidelity),
        "weights": candidate.weights,
        "memory": candidate.memory,
        "ttft": candidate.ttft,
        "best_memory": candidate.best_memory,
        "best_ttft": candidate.best_ttft,
        "checks": [asdict(check) for check in candidate.checks],
    }


def _cells(joint: JointStudy, candidate: Candidate, digits: int) -> dict[str, str]:
    """By column, in order: the metric has an interval, other metrics do not."""
    setting, summary, metric = candidate.setting, candidate.summary, joint.study.metric
    failed = f" ({summary.failed} failed)" if summary.failed else ""
    others = [name for name in _NAMES if name != metric and (name != "accuracy" or joint.study.data.labelled)]
    return {
        "precision": candidate.label,
        "kept": ("all" if setting.selector == "none" else f"{setting.selector} {setting.ratio:g}") + failed,
        "tokens": number_text(summary.after, ".4g"),
        _NAMES[metric]: _interval(candidate.fidelity, digits),
        **{_NAMES[name]: share_text(summary.fraction(name).mean, digits) for name in others},
        "TTFT": seconds_text(candidate.ttft),
        "KV": bytes_text(float(summary.kv_most) if summary.samples else math.nan),
        "weights": bytes_text(candidate.weights),
        "memory": bytes_text(candidate.memory),
        "best for": front_text(candidate),
    }


def _interval(value: Interval, digits: int) -> str:
    mean, low, high = (share_text(each, digits) for each in (value.mean, value.low, value.high))
    return f"{mean} [{low}, {high}]"
