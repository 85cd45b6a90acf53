"""What a calibration prints and writes down: a table, one JSON object."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from calib.constraints import bytes_text, seconds_text
from calib.data.sample import Skipped
from calib.explain import name_of
from calib.pick import Pick
from calib.settings import REFERENCE, SELECTORS, Setting
from calib.study import Study
from calib.summary import Interval, Summary

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["pick_lines", "skipped_lines", "study_json", "study_table"]

_SHOWN = 5  # skipped rows on the screen; all of them are in a file
_COLUMNS = ("selector", "ratio", "samples", "tokens", "first token", "answer", "accuracy", "KL", "TTFT", "KV")


def study_table(study: Study) -> Table:
    """A row per setting, high ratios first; the pick is bold."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    labelled = study.data.labelled
    table = Table(title="agreement with the unpruned model", box=SIMPLE_HEAD, padding=(0, 1))
    for column in _COLUMNS:
        if column != "accuracy" or labelled:
            table.add_column(column, justify="left" if column == "selector" else "right", no_wrap=True)
    for setting, summary in sorted(study.summaries.items(), key=lambda item: _place(item[0])):
        cells = _cells(setting, summary, labelled)
        table.add_row(*cells, style="bold" if study.pick and setting == study.pick.setting else None)
    return table


def pick_lines(pick: Pick) -> list[str]:
    """The choice and all that speaks for it and against it."""
    lines = [f"picked: {name_of(pick.setting)}"]
    lines += [f"  because {reason}" for reason in pick.reasons]
    lines += [f"  note: {note}" for note in pick.notes]
    if pick.rebuild is not None:
        lines.append(f"  to get there, build another bundle and calibrate it: {pick.rebuild}")
    return lines


def skipped_lines(skipped: Sequence[Skipped], samples: int, where: str) -> list[str]:
    """The count, the first five, and where all are; nothing where no row was skipped."""
    if not skipped:
        return []
    rows = "1 row" if len(skipped) == 1 else f"{len(skipped)} rows"
    lines = [f"skipped, as they cannot be used: {rows}; samples left: {samples}"]
    lines += [f"  {row.where}: {row.reason}" for row in skipped[:_SHOWN]]
    if len(skipped) > _SHOWN:
        lines.append(f"  and {len(skipped) - _SHOWN} more, all of them in {where}")
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


def _cells(setting: Setting, summary: Summary, labelled: bool) -> list[str]:
    failed = f" ({summary.failed} failed)" if summary.failed else ""
    first = summary.first
    cells = [
        "unpruned" if setting == REFERENCE else name_of(setting).rpartition(" at ")[0],
        f"{setting.ratio:g}",
        f"{summary.samples}{failed}",
        f"{_number(summary.before, '.4g')} → {_number(summary.after, '.4g')}",
        f"{_number(first.mean, '.3f')} [{_number(first.low, '.3f')}, {_number(first.high, '.3f')}]",
        _number(summary.answer.mean, ".3f"),
        _number((summary.accuracy or Interval(math.nan, math.nan, math.nan)).mean, ".3f"),
        _number(summary.divergence.mean, ".2g"),
        seconds_text(summary.ttft.mean),
        bytes_text(summary.kv_bytes),
    ]
    return cells if labelled else [*cells[:6], *cells[7:]]


def _number(value: float, form: str) -> str:
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
