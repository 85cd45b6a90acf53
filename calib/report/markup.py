"""From values to a page: templates, data URIs, text that HTML can hold, and what every page ends with."""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from importlib import resources
from typing import Any

from calib.record import Record
from calib.report.charts import Chart
from calib.settings import Setting
from calib.study import Study
from runtime.lazy import require

__all__ = ["Shown", "data_uri", "origin_values", "render", "shortened", "shown_chart"]

_UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")
_LONGEST = 600  # characters of a prompt or an answer
_MOST_ROWS = 200  # skipped rows, and failed samples


@dataclass(frozen=True)
class Shown:
    """A plot in the page: data URIs for light and dark, a description, and what to see in it."""

    light: str
    dark: str
    alt: str
    caption: str


def render(template: str, values: Mapping[str, Any]) -> str:
    """A page of `calib/report/<template>` with the style of all pages.

    Raises:
        BackendError: jinja2 is not installed.
    """
    jinja = require("jinja2", "jinja2", "calib")
    markup = require("markupsafe", "jinja2", "calib").Markup
    environment = jinja.Environment(
        loader=jinja.FunctionLoader(_file),
        autoescape=True,
        undefined=jinja.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    printable = {name: _printable(value) for name, value in values.items()}
    text: str = environment.get_template(template).render(**printable, css=markup(_file("page.css")))
    return text


def origin_values(study: Study, label: Callable[[Setting], str]) -> dict[str, Any]:
    """What the macro `origin` shows: facts, command, and what could not be used; `label` names settings."""
    failed = [record for record in study.records if record.error is not None]

    def row(record: Record) -> dict[str, Any]:
        return {"where": f"{record.sample}, {label(record.setting)}", "reason": record.error}

    skipped = study.data.skipped
    return {
        "facts": _fact_rows(study),
        "command": study.command,
        "skipped": [{"where": each.where, "reason": each.reason} for each in skipped[:_MOST_ROWS]],
        "skipped_count": len(skipped),
        "failed": [row(record) for record in failed[:_MOST_ROWS]],
        "failed_count": len(failed),
    }


def shown_chart(chart: Chart) -> Shown:
    """A plot as a page has it."""
    return Shown(data_uri(chart.light, "png"), data_uri(chart.dark, "png"), chart.alt, chart.caption)


def data_uri(content: bytes, kind: str) -> str:
    """A picture of a kind (`png`, `jpeg`) inside the page."""
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def shortened(text: str) -> str:
    """No longer than a reader wants to see."""
    if len(text) <= _LONGEST:
        return text
    return f"{text[:_LONGEST]} … ({len(text):,} characters in all)"


def _printable(value: Any) -> Any:
    """The same with text that HTML can hold: no control characters, no halves of surrogate pairs (as in file
    names that are not UTF-8)."""
    if isinstance(value, str):
        return _UNPRINTABLE.sub("\N{REPLACEMENT CHARACTER}", value)
    if isinstance(value, dict):
        return {key: _printable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_printable(item) for item in value]
    fields = getattr(value, "__dataclass_fields__", None)
    if fields is not None:
        return replace(value, **{name: _printable(getattr(value, name)) for name in fields})
    return value


def _fact_rows(study: Study) -> list[tuple[str, str]]:
    """What was measured with, name and value."""
    versions = ", ".join(f"{name} {version}" for name, version in study.versions.items())
    images = len({sample.group for sample in study.data.samples})
    found = [
        ("data", study.data.source),
        ("samples", f"{len(study.data.samples)}, of {images} different pictures or sets of pictures"),
        ("skipped rows", str(len(study.data.skipped))),
        ("constraint", study.constraint),
        ("seed", str(study.seed)),
    ]
    known = {name for name, _ in found}
    found += [
        (name.replace("_", " "), _text(value))
        for name, value in study.facts.items()
        if value is not None and name not in known
    ]
    return [*found, ("versions", versions or "–")]


def _text(value: object) -> str:
    """A fact: JSON values, of which records become `name value, …`."""
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_text(item)}".strip() for name, item in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_text, value))
    return str(value)


def _file(name: str) -> str:
    return (resources.files("calib.report") / name).read_text(encoding="utf-8")
