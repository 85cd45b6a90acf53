"""Whether scales are worth it: logits of the rounded decoder with and without them.

The search makes the error of each product smaller, one at a time. What that does to logits is another
question: where no channel is much larger than others there is little to gain.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from calib.awq.scales import AwqScales
from calib.precision import Precision
from calib.precision.bundle import CaseFeeds
from calib.precision.convert import convert_model
from calib.precision.loss import LossCase, measure_loss
from calib.precision.weight_file import WeightFile
from calib.precision.widened import fold_casts
from fopru_graph.files import write_model
from runtime import contract
from runtime.backend import BackendOptions
from runtime.backends.onnxruntime import create

__all__ = ["JUDGED", "Trial"]

JUDGED = 16
"""Prompts that are run, evenly spaced."""


class _Logits:
    """Logits of one decoder graph, whose inputs are made by `feeds`."""

    def __init__(self, graph: Path, feeds: CaseFeeds) -> None:
        self._session, self._feeds = create(BackendOptions(feeds.threads)).open(graph), feeds

    def __call__(self, case: LossCase) -> npt.NDArray[np.float32]:
        found: npt.NDArray[np.float32] = self._session.run(self._feeds(case))[contract.LOGITS][0]
        return found


@dataclass(frozen=True)
class Trial:
    """A float32 decoder graph, what makes its inputs, the precision, prompts, and a folder to write into."""

    graph: Path
    feeds: CaseFeeds
    precision: Precision
    cases: Sequence[LossCase]
    folder: Path

    def divergence(self, scales: AwqScales | None) -> float:
        """Mean KL divergence in nats, over the positions of text, of the rounded decoder from float32.

        Weights are rounded as for ONNX Runtime, which is near enough to TensorRT's way to compare scales.
        """
        target = self.folder / ("plain.onnx" if scales is None else "scaled.onnx")
        _write(self.graph, target, self.precision, scales)
        some = self.cases[:: -(-len(self.cases) // JUDGED)]
        return measure_loss(_Logits(self.graph, self.feeds), _Logits(target, self.feeds), some).mean_kl


def _write(source: Path, target: Path, precision: Precision, scales: AwqScales | None) -> None:
    model = ir.load(source)
    fold_casts(model)
    if scales is not None:
        scales.apply(model)
    with WeightFile(target.with_suffix(".onnx_data")) as file:
        convert_model(model, precision, file)
    write_model(model, target)
