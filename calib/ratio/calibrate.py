"""One calibration, from a bundle and data to a `Study`."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import metadata
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from calib.errors import OptionError
from calib.measure.spec import RunnerSpec
from calib.ratio.explain import explain, explain_miss, rebuild_command
from calib.ratio.options import RatioOptions
from calib.ratio.scoring import halves, search_scoring
from calib.ratio.search import Measure, Question, search_ratio
from calib.record import Record
from calib.run_options import RunOptions
from calib.settings import BASELINES, SELECTORS, Setting
from calib.statistics import Results
from calib.study import Study
from calib.sweep import setting_order
from runtime import contract
from runtime.lazy import require
from runtime.version import __version__

if TYPE_CHECKING:
    from calib.data.sample import Data
    from runtime.bundle import Bundle

__all__ = [
    "Task",
    "calibrate",
    "check_labelled",
    "comparable",
    "encoder_layers",
    "key_parts",
    "remarks",
    "sort_records",
    "spec_of",
    "version_of",
    "versions_of",
]

_PACKAGES = ("scipy", "pyarrow", "ray")  # beside those that measure
_AGGREGATIONS = ("col_mean", "col_mean_patch", "cls")
_PROBE = 0.5  # any ratio below 1 tells whether a setting can be had


@dataclass(frozen=True)
class Task:
    """What is calibrated, on what: everything opened and checked; OptionError: accuracy without labels.

    Attributes:
        options: what was asked.
        command: the command line.
        bundle: to calibrate.
        data: to calibrate it on.
    """

    options: RatioOptions
    command: str
    bundle: Bundle
    data: Data

    def __post_init__(self) -> None:
        check_labelled(self.options.constraint.metric, self.data)

    @property
    def spec(self) -> RunnerSpec:
        """How samples are measured."""
        return spec_of(self.options, (("", self.options.bundle),))


def check_labelled(metric: str, data: Data) -> None:
    """OptionError: accuracy is asked for without labels."""
    if metric == "accuracy" and not data.labelled:
        raise OptionError(
            f"metric is accuracy, but no sample of {data.source} has an answer: add `answer` to the "
            "rows, or give --metric first"
        )


def spec_of(options: RunOptions, bundles: tuple[tuple[str, Path], ...]) -> RunnerSpec:
    """How samples are measured, with these bundles by label."""
    return RunnerSpec(
        bundles=bundles,
        backend=options.backend,
        threads=options.threads,
        max_new_tokens=options.max_new_tokens,
        seed=options.seed,
        work=options.work,
    )


def calibrate(task: Task, measure: Measure) -> Study:
    """Search, pick, explain.

    Raises:
        OptionError: the bundle cannot have what was asked for by name.
        RunError: nothing could be measured.
    """
    from calib.measure.resize import stand_in_note

    options, data = task.options, task.data
    own = Setting(task.bundle.manifest.pruning.strategy, _PROBE)
    others, notes = _others(task, own)
    groups = {sample.name: sample.group for sample in data.samples}
    question = Question(own, others, options.constraint, groups, options.ratios, options.seed)
    candidates: list[Setting] = []
    if options.search:  # refused before anything is measured
        candidates = _scorings(task, own)
        halves(groups, options.seed)
    found = search_ratio(question, measure)
    build = str(task.bundle.manifest.created_by.get("command", "python -m export.build"))
    name = str(options.bundle)
    pick = None if found.chosen is None else explain(question, found, build, name)
    if pick is None:
        notes += explain_miss(question, found)
    records = list(found.records)
    if options.search:
        scoring = search_scoring(question, found, measure, candidates)
        records += scoring.records
        notes += scoring.sentences
        if scoring.better is not None:
            notes.append(f"it takes a new bundle: {rebuild_command(build, name, scoring.better)}")
    notes += remarks(options, data)
    stand_in = stand_in_note(task.bundle.manifest.layout)
    if stand_in is not None and any(record.setting.selector == "resize" for record in records):
        notes.append(stand_in)
    study = _study(task, question, sort_records(records, data), notes)
    return replace(study, pick=pick)


def remarks(options: RunOptions, data: Data) -> list[str]:
    """What a reader should know about how it was measured."""
    found = list(data.notes)
    if data.skipped:
        found.append(f"skipped rows of the data, which cannot be used: {len(data.skipped)}")
    if options.ray is not None or (options.workers or 1) > 1:
        found.append(
            "several workers measured at once, so that times are longer than one request alone would take: "
            "compare them with each other, and set --max-ttft with --workers 1"
        )
    return found


def key_parts(task: Task) -> dict[str, str]:
    """What makes results comparable, by name. The default ratio is left out: writing it changes no result; so
    is the data: a record says which sample it is about."""
    return comparable(task.options, {"bundle": task.bundle})


def comparable(options: RunOptions, bundles: Mapping[str, Bundle]) -> dict[str, str]:
    """As `key_parts`, of several bundles, by the name that a refusal gives them."""
    from calib.measure.describe import device_name

    alone = options.ray is None and (options.workers or 1) == 1
    where = {} if options.ray is not None else {"device": device_name()}
    return {
        **{name: _bundle_key(bundle) for name, bundle in bundles.items()},
        "backend": f"{options.backend} {_release_of(options.backend)}",
        "max-new-tokens": str(options.max_new_tokens),
        "seed": str(options.seed),
        # Answers are nearly the same, but times are those of other conditions.
        **where,
        "measured": f"{'one' if alone else 'several'} at a time, threads {options.threads or 'not limited'}",
        "version": __version__,
    }


def _bundle_key(bundle: Bundle) -> str:
    """Hash of all that results depend on, but not of the default ratio."""
    manifest = bundle.manifest
    pruning = replace(manifest.pruning, default_ratio=None, default_tokens=None)
    model = (manifest.files, manifest.prompt, manifest.tokens, manifest.preprocess, manifest.layout, pruning)
    return hashlib.sha256(repr(model).encode()).hexdigest()


def encoder_layers(bundle: Bundle) -> tuple[int, ...]:
    """0-based layers of the encoder that lead to its features, in order."""
    from fopru_graph.inspection import inspect_file

    layers = inspect_file(bundle.graph(contract.VISION_ENCODER)).layers
    return tuple(sorted({layer.number for layer in layers if layer.number is not None and layer.upstream}))


def _others(task: Task, own: Setting) -> tuple[tuple[str, ...], list[str]]:
    """Selectors to measure beside the bundle's own, and why some are missing."""
    asked = task.options.selectors
    wanted = [name for name in SELECTORS if asked is None or name in asked or name in BASELINES]
    others = [name for name in wanted if name != own.selector]
    if task.bundle.manifest.pruning.aggregation == "cls" and own.selector == "rank" and "cls" in others:
        others.remove("cls")  # the same as `rank`
    refused = _refused(task, [own, *(Setting(name, _PROBE) for name in others)])
    if own in refused:
        raise OptionError(f"this bundle cannot be calibrated: {refused[own]}")
    for setting, reason in refused.items():
        if asked is not None and setting.selector in asked:
            raise OptionError(f"selector {setting.selector} cannot be measured: {reason}")
    notes = [f"{setting.selector} is not shown: {reason}" for setting, reason in refused.items()]
    return tuple(name for name in others if Setting(name, _PROBE) not in refused), notes


def _scorings(task: Task, own: Setting) -> list[Setting]:
    """Templates of the search over layer and aggregation that this encoder can have."""
    options, pruning = task.options, task.bundle.manifest.pruning
    layers: Sequence[int] = (pruning.layer,)
    if "layer" in options.search:
        layers = options.layers or encoder_layers(task.bundle)
    aggregations = _AGGREGATIONS if "aggregation" in options.search else (pruning.aggregation,)
    candidates = [
        replace(own, layer=layer, aggregation=aggregation)
        for layer, aggregation in product(layers, aggregations)
        if (layer, aggregation) != (pruning.layer, pruning.aggregation)
    ]
    refused = _refused(task, candidates)
    if options.layers is not None:
        for layer in options.layers:
            reasons = [refused.get(each) for each in candidates if each.layer == layer]
            if reasons and all(reasons):
                raise OptionError(f"layer {layer} cannot score: {reasons[0]}")
    return [each for each in candidates if each not in refused]


def _refused(task: Task, settings: Sequence[Setting]) -> Mapping[Setting, str]:
    from calib.measure.runner import check_settings

    return check_settings(task.spec, settings)


def sort_records(records: Iterable[Record], data: Data) -> tuple[Record, ...]:
    """By sample in the order of the data, then setting; each once."""
    places = {sample.name: place for place, sample in enumerate(data.samples)}
    once = {(record.sample, record.setting): record for record in records}
    return tuple(sorted(once.values(), key=lambda r: (places[r.sample], setting_order(r.setting))))


def _study(task: Task, question: Question, records: tuple[Record, ...], notes: Sequence[str]) -> Study:
    from calib.measure.runner import describe

    results = Results(records, question.groups, seed=question.seed)
    constraint, facts = question.constraint, describe(task.spec)
    versions = versions_of(facts)
    return Study(
        data=task.data,
        records=records,
        summaries={setting: results.summary(setting) for setting in results.settings},
        pick=None,
        constraint=str(constraint),
        metric=constraint.metric,
        command=task.command,
        versions=versions,
        facts={"name": task.bundle.path.resolve().name, **facts},
        seed=question.seed,
        notes=tuple(notes),
        limits=constraint.limits,
    )


def versions_of(facts: dict[str, Any]) -> dict[str, str]:
    """Versions of all that measured, by name; those of `describe` are taken out of `facts`."""
    versions = {"fopru-edge": __version__, **facts.pop("versions")}
    return versions | {package: found for package in _PACKAGES if (found := version_of(package))}


def _release_of(backend: str) -> str:
    """Of what a backend runs graphs with. ONNX Runtime comes in packages of several names."""
    if backend == "onnxruntime" or backend.startswith("ort-"):
        return str(require("onnxruntime", "onnxruntime").__version__)
    return version_of(backend.partition("-")[0])  # openvino-bf16 is OpenVINO


def version_of(package: str) -> str:
    """Of an installed package; empty: it is not."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""
