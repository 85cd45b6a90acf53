"""The vision encoders: ranges, what each group of layers costs, what stays float."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import onnx_ir as ir

from calib.data.sample import Sample
from calib.precision.convert import Scales
from calib.precision.qdq import greatest_amax
from calib.quantize.encode import Encoding, SampleVision
from calib.quantize.graphs import Recipe
from calib.quantize.keep_float import choose_float
from calib.quantize.memory import key_of
from calib.quantize.options import AUTO, NONE
from calib.quantize.ranges import FORMATS, products_by_graph, ranges_of
from calib.quantize.task import VISION, Task
from calib.quantize.trial import VisionFidelity, float_encodings, judge_vision
from calib.ranges import Keep, Ranges
from calib.sensitivity import GroupLoss, Quantisable, groups_of, measure, weights_of
from runtime import contract
from runtime.backend import Array, Session

__all__ = ["Say", "VisionPlan", "plan_vision"]

Say: TypeAlias = Callable[[str], None]
Progress: TypeAlias = Callable[[str, int, int], None]
References: TypeAlias = Sequence[tuple[Sample, Encoding]]

_FEW = 4  # pictures that tell groups apart


@dataclass(frozen=True)
class VisionPlan:
    """How the encoders are converted.

    Attributes:
        scales: by graph.
        ranges: by graph.
        losses: of each group of products quantised alone, in the order of the graph.
        keep_float: names of groups that stay float32.
        fidelity: with them, on pictures held out.
        notes: in sentences.
    """

    scales: dict[str, Scales]
    ranges: dict[str, Ranges]
    losses: tuple[GroupLoss, ...]
    keep_float: tuple[str, ...]
    fidelity: VisionFidelity
    notes: tuple[str, ...]


def plan_vision(task: Task, say: Say, progress: Progress) -> VisionPlan:
    """Collect, measure, decide; each step from an earlier run where nothing has changed.

    Raises:
        DataError: no sample could be run.
        OptionError, RunError: of `choose_float`.
    """
    form = FORMATS[task.options.precisions.vision.name]
    if task.options.keep_float not in ((AUTO,), (NONE,)):  # a wrong name is told before anything is run
        weights_of(groups_of(ir.load(task.bundle.graph(VISION[0])), form), task.options.keep_float)
    products = products_by_graph(task, VISION)
    ranges = {}
    for graph in VISION:
        found = ranges[graph] = ranges_of(task, graph, products[graph], progress)
        known = f", {found.found} of them known" if found.found else ""
        say(f"{graph}: ranges of {found.used} pictures{known}")
    most = greatest_amax(form)  # what a float16 scale cannot hold stays float32
    amax = {
        graph: {name: value for name, value in found.amax.items() if value <= most}
        for graph, found in ranges.items()
    }
    key = key_of("scales", task.source(VISION), amax, form.name)
    tune = float_encodings(task, task.split.tune)
    losses = _losses(task, amax[contract.VISION_ENCODER], tune, progress)

    def scales(weights: frozenset[str]) -> dict[str, Scales]:
        return {graph: Scales(found, weights) for graph, found in amax.items()}

    def fidelity(weights: frozenset[str], references: References) -> VisionFidelity:
        return judge_vision(task, Recipe(scales(weights)), key_of(key, sorted(weights)), references)

    def evaluate(weights: frozenset[str]) -> VisionFidelity:
        found = fidelity(weights, tune)
        say(
            f"{len(weights)} products in float32: cosine {found.cosine:.5f}, {found.overlap:.1%} of the kept "
            "tokens are those of float32"
        )
        return found

    groups, weights = choose_float(task.options.keep_float, losses, task.options.min_cosine, evaluate)
    judged = fidelity(weights, float_encodings(task, task.split.judge))
    return VisionPlan(scales(weights), ranges, losses, groups, judged, _notes(ranges, amax))


def _losses(
    task: Task, amax: dict[str, float], references: References, progress: Progress
) -> tuple[GroupLoss, ...]:
    """What each group costs alone, on features of the unpruned encoder: every token counts, and the same ones
    on both sides."""
    graph, form = contract.VISION_ENCODER, FORMATS[task.options.precisions.vision.name]
    samples = [sample for sample, _ in references][:_FEW]
    key = key_of("groups", task.source([graph]), form.name, amax, [sample.group for sample in samples])

    def run(session: Session) -> list[Array]:
        vision = SampleVision(task.bundle, task.ratio, lambda _: session)
        encoded = [image for sample in samples for image in vision.unpruned(vision.prepare(sample))]
        return [image.features for image in encoded]

    source = Quantisable(task.bundle.graph(graph), form, amax, task.options.threads)
    keep = Keep(task.memory.folder / "groups" / f"{key}.jsonl", key)
    return measure(source, run, keep, lambda done, total: progress("groups of layers", done, total))


def _notes(ranges: dict[str, Ranges], amax: dict[str, dict[str, float]]) -> tuple[str, ...]:
    notes = []
    for graph, found in ranges.items():
        if found.failed:
            notes.append(f"{graph}: {len(found.failed)} pictures could not be run")
        large = sorted(set(found.amax) - set(amax[graph]))
        if large:
            notes.append(f"{graph}: {', '.join(large)} is too large for a scale in float16 and stays float32")
    return tuple(notes)
