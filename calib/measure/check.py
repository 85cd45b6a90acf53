"""What a bundle cannot be asked, said before anything runs."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

from calib.errors import CalibError, OptionError
from calib.measure.scorers import Scorers
from calib.measure.spec import RunnerSpec
from calib.measure.ways import Scoring, way_of
from calib.settings import METHODS, Setting
from runtime.bundle import Bundle, load_bundle
from runtime.layouts.single import SingleLayout
from runtime.manifest import AGGREGATIONS

__all__ = ["ENGINES", "check_settings"]

ENGINES = ("tensorrt", "ort-tensorrt")
"""Backends whose engines are built beforehand, or take minutes to build: a graph made now has none."""


def check_settings(spec: RunnerSpec, settings: Sequence[Setting]) -> dict[Setting, str]:
    """The settings that no sample can be measured under, each with a sentence that says why.

    What depends on a picture is not among them: a picture that cannot be made small enough is in its record.

    Raises:
        BundleError: a bundle is missing or damaged.
    """
    opened = cache(lambda label: load_bundle(spec.path(label), verify=False))
    scorers = cache(lambda label: Scorers(opened(label)))
    refusals: dict[tuple[str, Scoring], str | None] = {}

    def refusal(label: str, scoring: Scoring) -> str | None:
        if (label, scoring) not in refusals:
            refusals[label, scoring] = _refused_by(spec.backend, opened(label), scoring) or _refused(
                scorers(label), scoring
            )
        return refusals[label, scoring]

    found: dict[Setting, str] = {}
    for setting in settings:
        try:
            bundle = opened(setting.precision)
            _check(setting, bundle)
        except OptionError as error:
            found[setting] = str(error)
            continue
        scoring = way_of(setting, bundle.manifest.pruning).scoring
        sentence = None if scoring is None else refusal(setting.precision, scoring)
        if sentence is not None:
            found[setting] = sentence
    return found


def _check(setting: Setting, bundle: Bundle) -> None:
    """What the manifest tells.

    Raises:
        OptionError: it is not possible.
    """
    selector, layout = setting.selector, bundle.manifest.layout
    if selector not in METHODS and (setting.layer is not None or setting.aggregation is not None):
        given = (
            f"layer {setting.layer}" if setting.layer is not None else f"aggregation {setting.aggregation}"
        )
        raise OptionError(
            f"selector {selector!r} looks at no scores, but {given} is given: leave it out, or use one of "
            f"{', '.join(METHODS)}"
        )
    if setting.layer is not None and setting.layer < 0:
        raise OptionError(f"layer is {setting.layer}, but layers are counted from 0: give a number >= 0")
    if setting.aggregation is not None and setting.aggregation not in AGGREGATIONS:
        raise OptionError(
            f"aggregation is {setting.aggregation!r}, expected one of {', '.join(AGGREGATIONS)}"
        )
    if selector == "cls" and setting.aggregation not in (None, "cls"):
        raise OptionError(
            f"selector 'cls' ranks by the class token, but aggregation is {setting.aggregation!r}: use "
            "selector 'rank' with it"
        )
    if selector == "row" and not layout.has_grid:
        raise OptionError(
            "selector 'row' keeps whole rows of a grid, which this model's tokens do not make: use 'rank'"
        )
    if selector == "resize" and isinstance(layout, SingleLayout) and layout.grid is None:
        raise OptionError(
            f"selector 'resize' needs a grid, but the {layout.tokens} tokens of this model make none, so "
            "that no part of them is a smaller picture: leave it out"
        )


def _refused_by(backend: str, bundle: Bundle, scoring: Scoring) -> str | None:
    if backend not in ENGINES:
        return None
    own = bundle.manifest.pruning
    return (
        f"backend {backend} runs engines of the bundle's own graphs, which score by layer {own.layer} and "
        f"{own.aggregation}, not by layer {scoring.layer} and {scoring.aggregation}: use onnxruntime or "
        "ort-cuda for this comparison, or build a bundle that scores so"
    )


def _refused(scorers: Scorers, scoring: Scoring) -> str | None:
    try:
        scorers.check(scoring)
    except CalibError as error:
        return str(error)
    return None
