"""Samples through vision encoders whose sessions are given: observed, quantised, or as they are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from calib.data.sample import Sample
from calib.measure.pictures import open_picture
from runtime.backend import Session
from runtime.bundle import Bundle
from runtime.manifest import IMAGE_NEWLINE
from runtime.plan import plan_pruning
from runtime.preprocess import PreparedImage, prepare
from runtime.request import Request
from runtime.vision import EncodedImage, Selection, VisionEncoder

__all__ = ["Encoding", "SampleVision"]


@dataclass(frozen=True)
class Encoding:
    """What the encoders make of one sample's pictures.

    Attributes:
        features: float32 [rows, D] of the unpruned encoder.
        scores, kept, counts: of the pruned one, unit after unit: float32 [tokens], int64 [kept], int64
            [units].
        tokens: int64 [units], tokens of each unit.
    """

    features: npt.NDArray[np.float32]
    scores: npt.NDArray[np.float32]
    kept: npt.NDArray[np.int64]
    counts: npt.NDArray[np.int64]
    tokens: npt.NDArray[np.int64]


class SampleVision:
    """Runs the encoders of a bundle on samples at one ratio, as the runtime does."""

    def __init__(self, bundle: Bundle, ratio: float, session: Callable[[str], Session]) -> None:
        """`session` opens a graph by its contract name."""
        self._bundle = bundle
        self._ratio = ratio
        self._encoder = VisionEncoder(session, bundle.manifest, bundle.constant(IMAGE_NEWLINE))

    def prepare(self, sample: Sample) -> tuple[PreparedImage, ...]:
        """What the encoder looks at.

        Raises:
            ImageError: a picture that cannot be used.
        """
        manifest = self._bundle.manifest
        return tuple(
            prepare(open_picture(image), manifest.layout, manifest.preprocess) for image in sample.images
        )

    def unpruned(self, prepared: tuple[PreparedImage, ...]) -> tuple[EncodedImage, ...]:
        """All visual tokens."""
        return self._encoder.encode_unpruned(prepared)

    def pruned(self, sample: Sample, prepared: tuple[PreparedImage, ...]) -> tuple[EncodedImage, ...]:
        """The visual tokens that the bundle's own strategy keeps.

        Raises:
            RequestError: a picture too small for the ratio.
        """
        request = Request(sample.prompt, tuple(sample.images), ratio=self._ratio)  # type: ignore[arg-type]  # not opened
        plan = plan_pruning(request, self._bundle.manifest, [image.plan for image in prepared])
        return self._encoder.encode(prepared, Selection(plan.counts))

    def encoding(self, sample: Sample) -> Encoding:
        """Both encoders on a sample.

        Raises:
            ImageError, RequestError: it cannot be used.
        """
        prepared = self.prepare(sample)
        features = np.concatenate([np.asarray(image.features) for image in self.unpruned(prepared)])
        pruned = self.pruned(sample, prepared)
        scores: list[npt.NDArray[Any]] = [own for image in pruned for own in image.scores or ()]
        kept = [own for image in pruned for own in image.kept]
        tokens = [unit.tokens for image in prepared for unit in image.plan.units]
        return Encoding(
            features,
            np.concatenate(scores),
            np.concatenate(kept),
            np.array([len(own) for own in kept], np.int64),
            np.array(tokens, np.int64),
        )
