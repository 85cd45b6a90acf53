"""Joint choices with made-up results, two precisions at two ratios; bundles that claim a precision."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from calib.constraints import Constraint
from calib.data.sample import Data, Sample
from calib.joint.bundles import Variant
from calib.joint.candidate import candidates_of
from calib.joint.choose import Choice, choose, explain_choice, explain_no_choice
from calib.joint.limits import Limits
from calib.joint.study import JointStudy
from calib.record import Record
from calib.settings import REFERENCE, Setting
from calib.statistics import Results
from calib.study import Study
from runtime.bundle import Bundle, load_bundle
from tests.calib_records import groups, names, record

COUNT = 200
FLOAT, WHOLE = Setting("rank", 0.5), REFERENCE
INT4, INT4_WHOLE = Setting("rank", 0.5, precision="int4"), Setting("none", 1.0, precision="int4")
LOW, INT4_LOW = Setting("rank", 0.2), Setting("rank", 0.2, precision="int4")
ALL = (WHOLE, FLOAT, LOW, INT4_WHOLE, INT4, INT4_LOW)
MB = 10**6
AGREES = Limits(Constraint(0.9))


def variant(key: str, label: str, weights: int) -> Variant:
    """A variant whose bundle is a path alone."""
    pruning = SimpleNamespace(strategy="rank", default_ratio=0.3, default_tokens=None)
    manifest = SimpleNamespace(pruning=pruning, graphs={})
    bundle = SimpleNamespace(path=Path(f"bundles/{label}"), manifest=manifest)
    return Variant(key, label, cast(Bundle, bundle), weights, weights + 1000)


VARIANTS = (variant("", "fp32", 8 * MB), variant("int4", "int4", 2 * MB))


def results(agreement: Mapping[Setting, float], broken: tuple[Setting, ...] = (), **more: Any) -> Results:
    """Of each setting, the first `agreement` of the samples agree (all, where nothing is said); `broken`
    have no measurement. `more`: fields of all records."""
    records = []
    for setting in ALL:
        right = round(agreement.get(setting, 1.0) * COUNT)
        for place, name in enumerate(names(COUNT)):
            made = record(name, setting, place < right, **more)
            records.append(Record(name, setting, error="it broke") if setting in broken else made)
    return Results(records, groups(COUNT))


def choice(
    agreement: Mapping[Setting, float] | None = None,
    limits: Limits = AGREES,
    prefer: str = "memory",
    found: Results | None = None,
) -> Choice:
    """What is chosen from, of `results`."""
    made = results(agreement or {}) if found is None else found
    return Choice(candidates_of(made, VARIANTS, limits), limits, prefer, made)


def joint_study(made: Choice, labelled: bool = False, **changes: Any) -> JointStudy:
    """A finished study of a choice."""
    chosen = choose(made)
    answer = "4" if labelled else None
    samples = tuple(Sample(name, (b"",), "?", answer, name, name) for name in names(COUNT))
    study = Study(
        data=Data("photos", samples),
        records=(),
        summaries={each.setting: each.summary for each in made.candidates},
        pick=None if chosen is None else explain_choice(made, chosen),
        constraint=str(made.limits),
        metric=made.limits.metric,
        command="python -m calib.joint a b --data photos",
        versions={"numpy": "2.0"},
        facts={"name": "toy", "machine": "Linux"},
        seed=0,
        notes=() if chosen is not None else tuple(explain_no_choice(made)),
        limits=made.limits.limits,
    )
    return JointStudy(replace(study, **changes), tuple(made.candidates), chosen, VARIANTS, made.prefer)


def with_precisions(bundle: Path, target: Path, **precisions: str) -> Bundle:
    """A copy that says so of its graphs: `vision`, `embed`, `decoder`."""
    shutil.copytree(bundle, target)
    manifest = json.loads((target / "bundle.json").read_text())
    for name, graph in manifest["graphs"].items():
        part = next((part for part in ("vision", "embed") if name.startswith(part)), "decoder")
        graph["precision"] = precisions.get(part, "fp32")
    (target / "bundle.json").write_text(json.dumps(manifest))
    return load_bundle(target)
