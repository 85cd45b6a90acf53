"""What a precision costs: logits of the converted graphs beside those of PyTorch in float32, position by
position.

Teacher-forced: both sides read the same tokens, so that one early difference does not decide the rest. Every
position of text counts, not the last of each prompt alone. The numbers are reported as they are; what they
are worth is for the reader, and `PrecisionLoss.warning` says a sentence where they are poor.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["MIN_POSITIONS", "Logits", "LossCase", "PrecisionLoss", "measure_loss"]

Logits = Callable[["LossCase"], npt.NDArray[np.float32]]
"""Runs a model on a case: float32 [S, V], the logits of every position."""

MIN_POSITIONS = 500
# Below, every tenth greedy token is another one, and a long answer leaves the one of float32 within its first
# words: people should look at answers before they ship that. It is a remark, nothing passes or fails by it.
_AGREEMENT = 0.9


@dataclass(frozen=True)
class LossCase:
    """One teacher-forced prompt.

    Attributes:
        ids: int64 [S]; where `visual` has rows, the image token.
        visual: bool [S], which positions are visual rows; None: none.
        features: float32 [count of visual, D] in their place, the same on both sides: what the vision
            encoder's own precision costs is another stage.
        positions: int64 [axes, S]; None: 0, 1, 2, …
    """

    ids: npt.NDArray[np.int64]
    visual: npt.NDArray[np.bool_] | None = None
    features: npt.NDArray[np.float32] | None = None
    positions: npt.NDArray[np.int64] | None = None


@dataclass(frozen=True)
class PrecisionLoss:
    """How far logits are from those of float32, over all positions of text.

    Attributes:
        positions: how many were compared.
        mean_cosine, min_cosine: of two rows of logits, each minus its mean (adding a number to all logits
            changes no token, and would hide differences).
        mean_gain: length of such a row over that of float32's: a cosine does not see a wrong scale.
        top1_agreement: fraction of positions with the same most likely token.
        mean_kl: KL divergence of the probabilities from those of float32, in nats.
        max_abs_diff: largest difference of two logits.
    """

    positions: int
    mean_cosine: float
    min_cosine: float
    mean_gain: float
    top1_agreement: float
    mean_kl: float
    max_abs_diff: float

    @property
    def warning(self) -> str | None:
        """A sentence where the loss is large, None where it is not; numbers that are not finite are large."""
        if self.top1_agreement >= _AGREEMENT and np.isfinite(self.mean_kl):
            return None
        return (
            f"only {self.top1_agreement:.1%} of {self.positions} positions keep the most likely token of "
            "float32: compare answers before you use this precision, or give --precision more bits, a "
            "smaller block or asymmetric"
        )

    def to_dict(self) -> dict[str, Any]:
        """For JSON; a value that is not finite is None, which JSON can hold."""
        return {
            name: None if isinstance(value, float) and not np.isfinite(value) else value
            for name, value in asdict(self).items()
        }


def measure_loss(reference: Logits, measured: Logits, cases: Sequence[LossCase]) -> PrecisionLoss:
    """Compare two ways to run a model; both are called once per case, one case at a time.

    Raises:
        ValueError: no case, or logits of different shapes: a fault of the caller.
    """
    return _loss((_read(reference, case), _read(measured, case)) for case in cases)


def _read(logits: Logits, case: LossCase) -> npt.NDArray[np.float32]:
    """The rows that count: nobody takes a token from what follows a visual row."""
    rows = logits(case)
    return rows if case.visual is None or len(rows) != len(case.visual) else rows[~case.visual]


def _loss(pairs: Iterable[tuple[npt.NDArray[Any], npt.NDArray[Any]]]) -> PrecisionLoss:
    cosines: list[float] = []
    gains: list[float] = []
    divergences: list[float] = []
    largest: list[float] = []
    agreeing = 0
    for reference, measured in pairs:
        if reference.shape != measured.shape:
            raise ValueError(
                f"logits {list(measured.shape)} beside {list(reference.shape)}: run the same case"
            )
        for wanted, got in zip(reference, measured, strict=True):  # row by row: [S, V] in float64 is large
            one, other = wanted.astype(np.float64), got.astype(np.float64)
            cosine, gain = _cosine_and_gain(one, other)
            cosines.append(cosine)
            gains.append(gain)
            divergences.append(_divergence(one, other))
            agreeing += int(one.argmax() == other.argmax() and np.isfinite(other).all())
            largest.append(float(np.abs(one - other).max()))
    if not cosines:
        raise ValueError("no positions to compare: give at least one case")
    return PrecisionLoss(
        positions=len(cosines),
        mean_cosine=float(np.mean(cosines)),
        min_cosine=float(np.min(cosines)),
        mean_gain=float(np.mean(gains)),
        top1_agreement=agreeing / len(cosines),
        mean_kl=float(np.mean(divergences)),
        max_abs_diff=float(np.max(largest)),
    )


def _cosine_and_gain(one: npt.NDArray[np.float64], other: npt.NDArray[np.float64]) -> tuple[float, float]:
    one, other = one - one.mean(), other - other.mean()
    wanted, got = float(np.linalg.norm(one)), float(np.linalg.norm(other))
    if wanted * got == 0.0:
        return (1.0, 1.0) if np.array_equal(one, other) else (0.0, float("inf") if got else 0.0)
    return float(one @ other) / (wanted * got), got / wanted


def _divergence(one: npt.NDArray[np.float64], other: npt.NDArray[np.float64]) -> float:
    log_one, log_other = _log_softmax(one), _log_softmax(other)
    return float(np.exp(log_one) @ (log_one - log_other))


def _log_softmax(row: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    shifted = row - row.max()
    result: npt.NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum())
    return result
