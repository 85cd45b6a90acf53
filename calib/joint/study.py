"""Bundles and data to everything that the joint choice shows."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from calib.errors import OptionError, RunError
from calib.joint.candidate import Candidate, candidates_of
from calib.joint.choose import Choice, choose, explain_choice, explain_no_choice
from calib.joint.options import JointOptions
from calib.measure.spec import RunnerSpec
from calib.precision import CALIBRATED, HALVES
from calib.ratio.calibrate import comparable, remarks, sort_records, spec_of, versions_of
from calib.ratio.search import Measure
from calib.record import Record
from calib.settings import REFERENCE, Setting
from calib.statistics import Results
from calib.study import Study

if TYPE_CHECKING:
    from calib.data.sample import Data
    from calib.joint.bundles import Variant

__all__ = ["JointStudy", "JointTask", "settings_of", "study_jointly"]


@dataclass(frozen=True)
class JointTask:
    """What is compared, on what: everything opened and checked.

    Attributes:
        options: what was asked.
        command: the command line.
        variants: the float model, then its other precisions.
        data: what it is measured on.
    """

    options: JointOptions
    command: str
    variants: tuple[Variant, ...]
    data: Data

    @property
    def spec(self) -> RunnerSpec:
        """How samples are measured."""
        return spec_of(self.options, tuple((each.key, each.bundle.path) for each in self.variants))

    @property
    def parts(self) -> dict[str, str]:
        """What makes results comparable, by name."""
        return comparable(self.options, {f"bundle {each.label}": each.bundle for each in self.variants})


@dataclass(frozen=True)
class JointStudy:
    """A finished joint choice.

    Attributes:
        study: as of one bundle; the precision of a setting is the key of a variant.
        candidates: every setting that was measured, the most faithful first.
        chosen: the one to take; None: nothing meets the limits.
        variants: the float model, then its other precisions.
        prefer: what cheap means: `memory` or `ttft`.
    """

    study: Study
    candidates: tuple[Candidate, ...]
    chosen: Candidate | None
    variants: tuple[Variant, ...]
    prefer: str

    @property
    def taken(self) -> Variant | None:
        """The precision of the chosen one."""
        if self.chosen is None:
            return None
        key = self.chosen.setting.precision
        return next(variant for variant in self.variants if variant.key == key)


def settings_of(variants: Sequence[Variant], ratios: Sequence[float]) -> list[Setting]:
    """Every precision unpruned and at each ratio, with its own strategy; `REFERENCE` is the first."""
    found = []
    for variant in variants:
        strategy = variant.bundle.manifest.pruning.strategy
        found.append(Setting("none", 1.0, precision=variant.key))
        found += [Setting(strategy, ratio, precision=variant.key) for ratio in ratios]
    return found


def study_jointly(task: JointTask, measure: Measure) -> JointStudy:
    """Measure, compare, choose, explain.

    Raises:
        OptionError: a bundle cannot be measured as it prunes.
        RunError: the unpruned float model cannot answer any sample.
    """
    options, data = task.options, task.data
    settings = settings_of(task.variants, options.ratios)
    _check_settings(task, settings)
    records = sort_records(measure(settings), data)
    groups = {sample.name: sample.group for sample in data.samples}
    results = Results(records, groups, seed=options.seed)
    _check_measured(results, records)
    candidates = candidates_of(results, task.variants, options.limits)
    choice = Choice(candidates, options.limits, options.prefer, results)
    chosen = choose(choice)
    notes = [*_precision_notes(task), *_range_notes(task, chosen), *remarks(options, data)]
    if chosen is None:
        notes = [*explain_no_choice(choice), *notes]
    facts = _facts(task)
    versions = versions_of(facts)
    study = Study(
        data=data,
        records=records,
        summaries={each.setting: each.summary for each in candidates},
        pick=None if chosen is None else explain_choice(choice, chosen),
        constraint=str(options.limits),
        metric=options.limits.metric,
        command=task.command,
        versions=versions,
        facts=facts,
        seed=options.seed,
        notes=tuple(notes),
        limits=options.limits.limits,
    )
    return JointStudy(study, candidates, chosen, task.variants, options.prefer)


def _check_settings(task: JointTask, settings: Sequence[Setting]) -> None:
    from calib.measure.runner import check_settings

    for setting, reason in check_settings(task.spec, settings).items():
        label = next(each.label for each in task.variants if each.key == setting.precision)
        raise OptionError(f"{label} cannot be measured with its own strategy: {reason}")


def _check_measured(results: Results, records: Sequence[Record]) -> None:
    if results.summary(REFERENCE).samples:
        return
    first = next(record for record in records if record.setting == REFERENCE)
    raise RunError(
        f"none of the samples could be measured without pruning; the first ({first.sample}) says: "
        f"{first.error}"
    )


def _precision_notes(task: JointTask) -> list[str]:
    """What these figures do not say about other pictures, or about another machine."""
    name = task.options.data.name
    fitted = [each.label for each in task.variants if _given(each, "--data") == name]
    notes = []
    if fitted:
        notes.append(
            f"calib.quantize was given data of the same name, {name}, for {', '.join(fitted)}: give other "
            "pictures with --data to judge by what ranges and scales do not come from"
        )
    halves = [
        each.label
        for each in task.variants
        if any(graph.precision in HALVES for graph in each.bundle.manifest.graphs.values())
    ]
    if not halves or task.options.backend != "onnxruntime":
        return notes
    return [
        *notes,
        f"the backend onnxruntime computes {', '.join(halves)} in float32 where a CPU has no such "
        "arithmetic: devices that have it are quicker, and take less memory at run time",
    ]


def _range_notes(task: JointTask, chosen: Candidate | None) -> list[str]:
    """Layers behind the selection see other tokens at another ratio."""
    if chosen is None or chosen.setting.ratio == 1.0:
        return []
    taken = next(each for each in task.variants if each.key == chosen.setting.precision)
    calibrated = any(each.precision in CALIBRATED for each in taken.bundle.manifest.graphs.values())
    ratio = _given(taken, "--ratio")
    if not calibrated or ratio is None or float(ratio) == chosen.setting.ratio:
        return []
    return [
        f"ranges of {taken.label} were collected at ratio {ratio}: run calib.quantize once more with --ratio "
        f"{chosen.setting.ratio}, and compare again"
    ]


def _given(variant: Variant, option: str) -> str | None:
    """What `calib.quantize` was given when it made a bundle."""
    try:
        words = shlex.split(str(variant.bundle.manifest.created_by.get("quantize", "")))
    except ValueError:  # written by someone else
        return None
    return next((value for flag, value in pairwise(words) if flag == option), None)


def _facts(task: JointTask) -> dict[str, object]:
    from calib.measure.runner import describe

    facts = describe(task.spec)
    for name in ("precisions", "default_ratio", "default_tokens", "strategy", "layer", "aggregation"):
        del facts[name]  # of one bundle, or said better below
    name = task.variants[0].bundle.path.resolve().name
    bundles = {each.label: f"{each.bundle.path} ({_pruning(each)})" for each in task.variants}
    return {"name": name, **facts, "bundles": bundles}


def _pruning(variant: Variant) -> str:
    pruning = variant.bundle.manifest.pruning
    return f"{pruning.strategy}, layer {pruning.layer}, {pruning.aggregation}"
