"""Graphs of a bundle in new precisions, written to another folder; those that share weights share them
again."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import onnx_ir as ir

from calib.precision import PARTS, Precision, Precisions, data_file_of, graph_file_of
from calib.precision.convert import NO_SCALES, Converted, Scales, convert_model
from calib.precision.weight_file import WeightFile
from calib.precision.widened import fold_casts
from calib.quantize.task import Task, external_files
from fopru_graph.files import write_model

__all__ = ["Recipe", "write_graphs"]


@dataclass(frozen=True)
class Recipe:
    """How graphs are converted: `scales` by graph, and `prepare`, which changes the float32 weights of a
    graph before they are quantised."""

    scales: Mapping[str, Scales] = field(default_factory=dict)
    prepare: Mapping[str, Callable[[ir.Model], int]] = field(default_factory=dict)


def write_graphs(task: Task, root: Path, graphs: tuple[str, ...], recipe: Recipe) -> dict[str, Converted]:
    """Write graphs of the new bundle under `root`, with their weights; those that stay as they are, too.

    Returns:
        The converted ones, by name.

    Raises:
        OptionError: a weight that float16 cannot hold.
    """
    (root / "onnx").mkdir(parents=True, exist_ok=True)
    made: dict[str, Converted] = {}
    with ExitStack() as open_files:
        earlier: WeightFile | None = None
        for part in PARTS:
            own = [name for name in graphs if name in task.change and Precisions.part_of(name) == part]
            if not own:
                continue
            precision = task.change[own[0]]
            data = root / data_file_of(_owner(own[0], task), precision)
            earlier = open_files.enter_context(WeightFile(data, earlier))
            for name in own:
                made[name] = _convert(task, name, root, earlier, recipe)
    for name in graphs:
        if name not in task.change:
            for file in external_files(task.bundle, name):
                if not (root / file).exists():
                    (root / file).parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(task.bundle.path / file, root / file)
    return made


def _owner(graph: str, task: Task) -> str:
    """The graph that a part's weight file is named after: its first one in a whole bundle."""
    part = Precisions.part_of(graph)
    return next(name for name in task.bundle.manifest.graphs if Precisions.part_of(name) == part)


def _convert(task: Task, name: str, root: Path, file: WeightFile, recipe: Recipe) -> Converted:
    precision: Precision = task.change[name]
    model = ir.load(task.bundle.graph(name))
    fold_casts(model)
    if name in recipe.prepare:
        recipe.prepare[name](model)
    scales = recipe.scales.get(name, NO_SCALES)
    found = convert_model(model, precision, file, tensorrt=task.options.tensorrt, scales=scales)
    write_model(model, root / graph_file_of(name, precision))
    return found
