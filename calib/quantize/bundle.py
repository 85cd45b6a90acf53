"""The new bundle: converted graphs, everything else copied, what it costs measured and written down."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from calib.bundle_writer import BundleWriter, file_infos
from calib.precision import Precision, Precisions, graph_file_of
from calib.precision.bundle import GraphLogits
from calib.precision.emulate import emulated_decoder, runnable_copy
from calib.precision.loss import LossCase, PrecisionLoss, measure_loss
from calib.quantize.cases import decoder_cases
from calib.quantize.graphs import Recipe, write_graphs
from calib.quantize.memory import key_of
from calib.quantize.targets import lint_graphs
from calib.quantize.task import Task, external_files
from calib.quantize.whole import WholeFidelity, measure_whole
from runtime.bundle import MANIFEST_FILE, load_bundle
from runtime.check import check_bundle
from runtime.costs import components_of, costs_of
from runtime.golden import GOLDEN_TENSORS
from runtime.lazy import require
from runtime.manifest import GraphInfo, Manifest

__all__ = ["Written", "part_bytes", "write_bundle"]

_CACHE = ("past_key_values.", "present.")


@dataclass(frozen=True)
class Written:
    """A finished bundle.

    Attributes:
        parity: as in the manifest; None: the bundle has no golden tensors.
        loss: of the decoder's logits on the answers of held-out samples; None: it stayed as it is.
        whole: answers beside those of float32.
        warnings: of the target's lint, by graph.
        notes: what kept more bits, in sentences.
    """

    path: Path
    parity: Mapping[str, Any] | None
    loss: PrecisionLoss | None
    whole: WholeFidelity
    warnings: Mapping[str, int]
    notes: tuple[str, ...]


def write_bundle(task: Task, recipe: Recipe, command: str, say: Callable[[str], None]) -> Written:
    """Make the bundle; it appears whole or not at all.

    Args:
        recipe: how graphs are converted.
        command: for `created_by`; the same for the same bundle, wherever it is written.
        say: what is done now, in sentences.

    Raises:
        RunError: the target's lint has an error, or no sample can be answered.
        OutputError: it cannot be written.
        FopruError: the finished bundle cannot be run.
    """
    say(f"writing {task.options.output}")
    with BundleWriter(task.options.output) as writer:
        root = writer.path
        made = write_graphs(task, root, task.graphs, recipe)
        _copy_rest(task, root)
        manifest = _manifest(task, root, command)
        _write(manifest, root)
        paths = {name: root / info.file for name, info in manifest.graphs.items()}
        warnings = {} if task.options.target is None else lint_graphs(task.options.target, paths)
        say(f"measuring it on {len(task.split.judge)} samples")
        with runnable_copy(root, tuple(task.precisions.values())) as place:
            loss, parity, whole = _measured(task, manifest, place)
        _write(replace(manifest, parity=parity), root)
        writer.commit()
    notes = dict.fromkeys(note for found in made.values() for note in found.notes)
    return Written(writer.target, parity, loss, whole, warnings, tuple(notes))


def part_bytes(path: Path) -> dict[str, int]:
    """Bytes of graphs and weights of each part of a bundle; weights that two parts read count for both."""
    bundle = load_bundle(path, verify=False)
    files: dict[str, set[str]] = {}
    for graph in bundle.manifest.graphs:
        files.setdefault(Precisions.part_of(graph), set()).update(external_files(bundle, graph))
    return {part: sum(bundle.manifest.files[name].bytes for name in own) for part, own in files.items()}


def _copy_rest(task: Task, root: Path) -> None:
    bundle = task.bundle
    graphs = {name for graph in bundle.manifest.graphs for name in external_files(bundle, graph)}
    for name in bundle.manifest.files:
        if name not in graphs:
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(bundle.path / name, root / name)


def _manifest(task: Task, root: Path, command: str) -> Manifest:
    source = task.bundle.manifest
    created: dict[str, str | int] = dict(source.created_by)
    release = require("onnxruntime", "onnxruntime").__version__  # of whichever package brought it
    created |= {"onnxruntime": release, "quantize": command}
    pruning = source.pruning
    if task.options.ratio is not None:  # what ranges belong to is what a request should get
        pruning = replace(pruning, default_ratio=task.ratio, default_tokens=None)
    return replace(
        source,
        created_by=created,
        pruning=pruning,
        decoder=task.decoder,
        graphs={name: _graph_info(task, name) for name in task.graphs},
        files=file_infos(root),
        parity=None,
    )


def _graph_info(task: Task, name: str) -> GraphInfo:
    info = task.bundle.manifest.graphs[name]
    if name not in task.change:
        return info
    cache = task.decoder.cache_dtype
    inputs, outputs = (
        tuple(replace(spec, dtype=cache) if spec.name.startswith(_CACHE) else spec for spec in specs)
        for specs in (info.inputs, info.outputs)
    )
    precision = task.change[name]
    return GraphInfo(graph_file_of(name, precision), inputs, outputs, precision.name)


def _write(manifest: Manifest, root: Path) -> None:
    (root / MANIFEST_FILE).write_text(manifest.to_json(), encoding="utf-8")


def _measured(
    task: Task, manifest: Manifest, place: Path
) -> tuple[PrecisionLoss | None, dict[str, Any] | None, WholeFidelity]:
    """What the bundle at `place` costs: found before, where the same files were measured on the same data."""
    options = task.options
    files = sorted((name, info.sha256) for name, info in manifest.files.items())
    judged = [sample.digest for sample in task.split.judge]
    key = key_of(
        files, judged, task.ratio, options.max_new_tokens, task.source(tuple(task.bundle.manifest.graphs))
    )
    memory = task.memory
    loss = None
    if any(Precisions.part_of(name) != "vision" for name in task.change):
        cases = decoder_cases(task, task.split.judge)
        found = memory.answer("loss", key, lambda: vars(_loss(task, place, cases)))
        loss = PrecisionLoss(**found)
    parity = None
    if GOLDEN_TENSORS in manifest.files:
        parity = memory.answer("parity", key, lambda: _parity(manifest, place, loss))  # has the loss
    whole = memory.answer("whole", key, lambda: measure_whole(task, place).to_dict())
    return loss, parity, WholeFidelity(**whole)


def _loss(task: Task, place: Path, cases: tuple[LossCase, ...]) -> PrecisionLoss:
    source = task.bundle.manifest
    before = _named({name: info.precision for name, info in source.graphs.items()})
    reference = GraphLogits(task.bundle.path, before, source.decoder)
    measured = GraphLogits(place, _named(task.precisions), emulated_decoder(task.decoder))
    return measure_loss(reference, measured, cases)


def _named(precisions: Mapping[str, str]) -> Precisions:
    parts = {Precisions.part_of(name): Precision(precision) for name, precision in precisions.items()}
    return Precisions(**parts)


def _parity(manifest: Manifest, place: Path, loss: PrecisionLoss | None) -> dict[str, Any]:
    """The golden tensors replayed, and costs as a build writes them."""
    report = check_bundle(load_bundle(place, verify=False))
    precisions = {name: info.precision for name, info in manifest.graphs.items()}
    given = None if loss is None else loss.to_dict()
    components = [each.to_dict() for each in components_of(report, precisions, given)]
    found = {
        **report.to_dict(),
        **({} if given is None else {"loss": given}),
        "costs": costs_of(report, precisions),
        "components": components,
    }
    plain: dict[str, Any] = json.loads(json.dumps(found))
    return plain
