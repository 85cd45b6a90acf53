"""Ranges of the vision encoders' activations: those of the pruned graph behind selection see kept tokens
alone, as on a device."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import onnx_ir as ir

from calib.data.sample import Sample
from calib.precision.qdq import Product, QdqFormat, products_of
from calib.quantize.encode import SampleVision
from calib.quantize.memory import key_of
from calib.quantize.split import pictures_of
from calib.quantize.task import Task
from calib.ranges import Collector, Keep, ObservingSession, Ranges, collect_ranges
from runtime import contract

__all__ = ["FORMATS", "products_by_graph", "ranges_of"]

FORMATS = {"w8a8": QdqFormat("int8", unsigned=True), "fp8": QdqFormat("fp8")}
"""As ONNX Runtime runs them while they are judged: unsigned or not, the numbers are the same."""

Progress = Callable[[str, int, int], None]


def products_by_graph(task: Task, graphs: tuple[str, ...]) -> dict[str, tuple[Product, ...]]:
    """The products of graphs of the bundle that can be quantised."""
    form = FORMATS[task.options.precisions.vision.name]
    return {graph: products_of(ir.load(task.bundle.graph(graph)), form) for graph in graphs}


def ranges_of(task: Task, graph: str, products: tuple[Product, ...], progress: Progress) -> Ranges:
    """Greatest magnitudes of the activations of a graph's products on the samples; from an earlier run where
    nothing that they depend on has changed.

    Raises:
        DataError: no sample could be run.
        StoreError: what was kept is damaged.
    """
    samples = pictures_of(task.split.collect)
    tensors = sorted({product.activation for product in products})
    method = task.options.ranges
    groups = [sample.group for sample in samples]
    ratio = task.ratio if graph == contract.VISION_ENCODER_FOPRU else 1.0
    key = key_of("ranges", task.source([graph]), groups, tensors, method.text(), ratio)
    keep = Keep(task.memory.folder / "ranges" / f"{key}.npz", key)
    observer = _Observer(task, graph, tensors)
    return collect_ranges(
        samples, observer.observe, method, keep, lambda done, total: progress(graph, done, total)
    )


class _Observer:
    """Runs samples for a collector; the graph is opened for the first one."""

    def __init__(self, task: Task, graph: str, tensors: list[str]) -> None:
        self._task, self._graph, self._tensors = task, graph, tensors
        self._collector: Collector | None = None
        self._session: ObservingSession | None = None
        self._vision = SampleVision(task.bundle, task.ratio, self._open)

    def observe(self, sample: Sample, collector: Collector) -> None:
        self._collector = collector
        prepared = self._vision.prepare(sample)
        if self._graph == contract.VISION_ENCODER_FOPRU:
            self._vision.pruned(sample, prepared)
        else:
            self._vision.unpruned(prepared)

    def _open(self, graph: str) -> ObservingSession:
        assert graph == self._graph, f"{graph} instead of {self._graph}"
        if self._session is None:
            path = self._task.bundle.graph(graph)
            self._session = ObservingSession(path, self._tensors, self._see, self._task.options.threads)
        return self._session

    def _see(self, tensors: Mapping[str, Any]) -> None:
        assert self._collector is not None
        self._collector.update(tensors)
