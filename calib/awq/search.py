"""The scale of each group of products: the exponent whose rounded weights give the nearest outputs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from calib.awq.scales import AwqScales
from calib.precision import FLOAT32, Precision, Precisions
from calib.precision.loss import LossCase
from calib.ranges.collect import Keep
from runtime.manifest import DecoderInfo

__all__ = ["DecoderSource", "scale_decoder"]


@dataclass(frozen=True)
class DecoderSource:
    """A bundle whose decoder is float32: its directory, what its manifest says of the decoder, and the
    precisions of its graphs, of which the embedding is run. `tensorrt`: weights will be rounded as
    TensorRT's are."""

    root: Path
    decoder: DecoderInfo
    precisions: Precisions = FLOAT32
    tensorrt: bool = False


def _silent(_done: int, _total: int) -> None:
    """No progress."""


def scale_decoder(
    source: DecoderSource,
    precision: Precision,
    cases: Sequence[LossCase],
    keep: Keep,
    progress: Callable[[int, int], None] = _silent,
) -> AwqScales:
    """Find scales for the products of a decoder."""
    raise NotImplementedError
