"""What a calibration prints and writes down: a table, one JSON object."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from calib.constraints import bytes_text, seconds_text
from calib.pick import Pick
from calib.ratio.explain import name_of
from calib.settings import REFERENCE, SELECTORS, Setting
from calib.study import Study
from calib.summary import Summary

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["WIDE", "number_text", "pick_lines", "share_text", "study_json", "study_table"]

WIDE = 120  # columns that the whole table takes


def study_table(study: Study, width: int = WIDE) -> Table:
    """A row per setting, high ratios first; the pick is bold. Below `WIDE` columns, digits and what can be
    read elsewhere give way."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    narrow = width < WIDE
    table = Table(
        title="agreement with the unpruned model",
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0) if narrow else (0, 1),
        pad_edge=False,
    )
    rows = [
        (setting, _cells(setting, summary, 2 if narrow else 3))
        for setting, summary in sorted(study.summaries.items(), key=lambda item: _place(item[0]))
    ]
    labelled = study.data.labelled
    hidden = {"samples", "before", *(["KL"] if labelled else [])} if narrow else set()
    hidden |= set() if labelled else {"right"}
    shown = [column for column in rows[0][1] if column not in hidden]
    for column in shown:
        name = column == "selector"
        table.add_column(
            column, justify="left" if name else "right", no_wrap=not name, min_width=8 if name else None
        )
    for setting, cells in rows:
        picked = study.pick is not None and setting == study.pick.setting
        table.add_row(*(cells[column] for column in shown), style="bold" if picked else None)
    return table


def pick_lines(pick: Pick) -> list[str]:
    """The choice and all that speaks for it and against it."""
    lines = [f"picked: {name_of(pick.setting)}"]
    lines += [f"  because {reason}" for reason in pick.reasons]
    lines += [f"  note: {note}" for note in pick.notes]
    if pick.rebuild is not None:
        lines.append(f"  to get there, build another bundle and calibrate it: {pick.rebuild}")
    return lines


def study_json(study: Study, **more: Any) -> str:
    """One JSON object, strictly so: what could not be measured is null; ends in a newline."""
    pick = study.pick
    record = {
        "command": study.command,
        "bundle": dict(study.facts),
        "data": {
            "source": study.data.source,
            "samples": len(study.data.samples),
            "pictures": len({sample.group for sample in study.data.samples}),
            "labelled": study.data.labelled,
            "digest": study.data.digest,
            "skipped": [asdict(row) for row in study.data.skipped],
        },
        "constraint": study.constraint,
        "metric": study.metric,
        "seed": study.seed,
        "pick": None if pick is None else asdict(pick),
        "settings": [
            {"setting": asdict(setting), **asdict(summary)}
            for setting, summary in sorted(study.summaries.items(), key=lambda item: _place(item[0]))
        ],
        "notes": list(study.notes),
        "versions": dict(study.versions),
        **more,
    }
    return json.dumps(_finite(record), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _cells(setting: Setting, summary: Summary, digits: int) -> dict[str, str]:
    """By column, in order."""
    first, accuracy = summary.first, summary.fraction("accuracy")
    failed = f" ({summary.failed} failed)" if summary.failed else ""
    low, high = share_text(first.low, digits), share_text(first.high, digits)
    return {
        "selector": "unpruned" if setting == REFERENCE else name_of(setting).rpartition(" at ")[0],
        "ratio": f"{setting.ratio:g}",
        "samples": f"{summary.samples}{failed}",
        "before": number_text(summary.before, ".4g"),
        "tokens": number_text(summary.after, ".4g"),
        "first token": f"{share_text(first.mean, digits)} [{low}, {high}]",
        "answer": share_text(summary.answer.mean, digits),
        "right": share_text(accuracy.mean, digits),
        "KL": number_text(summary.divergence.mean, f".{digits - 1}g"),
        "TTFT": seconds_text(summary.ttft.mean),
        "KV": bytes_text(summary.kv_bytes),
    }


def share_text(value: float, digits: int) -> str:
    """A fraction; never 1 for what is not all."""
    return number_text(min(value, 1 - 10.0**-digits) if value < 1 else value, f".{digits}f")


def number_text(value: float, form: str) -> str:
    """In a form of `format`; `?` for what was not measured."""
    return "?" if math.isnan(value) else format(value, form)


def _place(setting: Setting) -> tuple[float, int, int, str, str]:
    selector = SELECTORS.index(setting.selector) if setting.selector in SELECTORS else -1
    layer = -1 if setting.layer is None else setting.layer
    return (-setting.ratio, selector, layer, setting.aggregation or "", setting.precision)


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _finite(entry) for key, entry in value.items()}
    return [_finite(entry) for entry in value] if isinstance(value, list | tuple) else value
