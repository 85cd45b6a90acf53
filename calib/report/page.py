"""The page: what a calibration found, in one HTML file that needs nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from calib.data.sample import Sample
from calib.errors import RunError
from calib.pick import Pick
from calib.report.charts import Chart, draw_charts
from calib.report.examples import Example, median_examples, worst_examples
from calib.report.look import series_label, series_of
from calib.report.markup import data_uri, origin_values, render, shortened, shown_chart
from calib.report.pictures import Overlay, Pictures
from calib.report.view import HEAD, beside, cards, headline, rows, shown_setting
from calib.report.words import as_nats, as_ratio, sentence
from calib.settings import REFERENCE, Setting
from calib.study import Study
from runtime.output import write_whole

__all__ = ["PAGE", "write_report"]

PAGE = "report.html"

_MEANING = {
    "first": "This is agreement with the unpruned model on these pictures. It is not accuracy: where the "
    "unpruned model is wrong, so is an answer that agrees with it.",
    "answer": "This is agreement with the unpruned model on these pictures. It is not accuracy: where the "
    "unpruned model is wrong, so is an answer that agrees with it.",
    "accuracy": "Right means: the text is the answer that the data gives, blanks at its ends aside.",
}


def write_report(folder: Path, study: Study, pictures: Pictures) -> Path:
    """Write `report.html` and its plots as PNG files into a folder, which is made if absent.

    Equal studies make equal files. A picture that cannot be opened any more is a sentence in the page.

    Returns:
        The path of the page.

    Raises:
        RunError: the folder cannot be written.
        BackendError: matplotlib, jinja2 or pillow is not installed.
    """
    charts = draw_charts(study, shown_setting(study), pictures)
    page = render("page.html", _values(study, charts, pictures))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for old in {
            "accuracy",
            "agreement_near",
            "layers",
            "scores",
            *(f"kept_{turn}" for turn in range(1, 4)),
        }:
            if old not in {chart.name for chart in charts}:  # of an earlier report
                (folder / f"{old}.png").unlink(missing_ok=True)
        for chart in charts:
            write_whole(folder / f"{chart.name}.png", chart.light)
        write_whole(folder / PAGE, page.encode())
    except OSError as error:
        raise RunError(
            f"cannot write the report to {folder} ({error}): make room, or give another folder with --work"
        ) from error
    return folder / PAGE


def _values(study: Study, charts: Sequence[Chart], pictures: Pictures) -> dict[str, Any]:
    """What the template shows, by name."""
    setting, pick = shown_setting(study), study.pick
    notes = dict.fromkeys((*study.notes, *(pick.notes if pick else ())))
    return {
        "name": study.facts.get("name", "bundle"),
        "source": study.data.source,
        "answer": headline(study),
        "picked": pick is not None,
        "meaning": _MEANING[study.metric],
        "notes": [sentence(note) for note in notes],
        "reasons": _reasons(study, pick) if pick else [],
        "rebuild": pick.rebuild if pick else None,
        "cards": cards(study, _card_setting(study, setting)) if study.summaries else [],
        "plots": [shown_chart(chart) for chart in charts if not _is_map(chart)],
        "maps": [shown_chart(chart) for chart in charts if _is_map(chart)],
        **_example_values(study, setting, pictures),
        "head": HEAD,
        "rows": rows(study),
        "labelled": study.data.labelled,
        "device": study.facts.get("device") or study.facts.get("machine"),
        **origin_values(study, _label),
    }


def _is_map(chart: Chart) -> bool:
    return chart.name.startswith(("kept_", "scores"))


def _reasons(study: Study, pick: Pick) -> list[str]:
    """Why this ratio, limits that no sentence mentions yet, and what else the ratio could have been used
    with."""
    checks = [check.text for check in pick.checks if check.text not in pick.reasons]
    others = beside(study, pick.setting)
    return [sentence(text) for text in (*pick.reasons, *checks, *([] if others is None else [others]))]


def _card_setting(study: Study, shown: Setting | None) -> Setting:
    if study.pick is not None and study.pick.setting in study.summaries:
        return study.pick.setting
    return shown or next(iter(study.summaries))


def _example_values(study: Study, setting: Setting | None, pictures: Pictures) -> dict[str, Any]:
    """Samples whose answer changed, and usual ones; `shown_label` None: there is no setting to show."""
    if setting is None:
        return {"shown_label": None, "worst": [], "median": [], "changed": 0, "measured": 0, "worst_text": ""}
    samples, records = study.data.samples, study.records
    worst = worst_examples(samples, records, setting)
    measured = [record for record in records if record.setting == setting and record.error is None]
    changed = sum(not record.same_answer for record in measured)
    text = "" if changed <= len(worst) else f"These {len(worst)} diverge most. "

    def shown(examples: Sequence[Example]) -> list[dict[str, Any]]:
        return [_example(example, setting, pictures) for example in examples]

    return {
        "shown_label": f"{_label(setting)} kept",
        "worst": shown(worst),
        "worst_text": text,
        "median": shown(median_examples(samples, records, setting)),
        "changed": changed,
        "measured": len(measured),
    }


def _example(example: Example, setting: Setting, pictures: Pictures) -> dict[str, Any]:
    overlay, missing = _overlay(example.sample, setting, example.record.kept, pictures)
    return {
        "picture": None if overlay is None else data_uri(overlay.jpeg, "jpeg"),
        "wide": overlay is not None and overlay.wide,
        "missing": missing,
        "name": shortened(example.sample.name),
        "prompt": shortened(example.sample.prompt),
        "unpruned": shortened(example.unpruned.text),
        "pruned": shortened(example.record.text),
        "changed": not example.record.same_answer,
        "truth": None if example.sample.answer is None else shortened(example.sample.answer),
        "divergence": f"{as_nats(example.record.divergence)} nats",
    }


def _overlay(
    sample: Sample, setting: Setting, kept: Sequence[int], pictures: Pictures
) -> tuple[Overlay | None, str]:
    """(What was kept of a sample's pictures, or None; then why there is nothing to show)."""
    if not sample.images:
        return None, "This sample has no picture."
    if not kept:
        return None, f"The setting {_label(setting)} selects no tokens, so nothing can be marked."
    try:
        return pictures.overlay(sample, setting, kept), ""
    except RunError as error:
        return None, str(error)


def _label(setting: Setting) -> str:
    """`rank, 25 %`."""
    if setting == REFERENCE:
        return "unpruned"
    return f"{series_label(series_of(setting))}, {as_ratio(setting.ratio)}"
