"""Scales that were found, and their way into the weights of a graph."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from calib.awq.folds import Fold
from calib.awq.places import Tensor, place_of
from calib.precision.scaled import Scaled
from calib.precision.widened import fold_casts

__all__ = ["AwqScales", "Factor", "FoldScale", "factors_of"]


@dataclass(frozen=True)
class Factor:
    """`values` float32 [size of the axis] that a weight is multiplied by along `axis`."""

    axis: int
    values: npt.NDArray[np.float32]


@dataclass(frozen=True)
class FoldScale:
    """What was chosen for the products that share one input.

    Attributes:
        name: as `layers.3.mlp.input`.
        alpha: the exponent of the mean magnitude, in [0, 1]; 0 leaves everything as it is.
        error: mean square error of the products' outputs with it, over that of what they should be.
        plain: the same without scales.
    """

    name: str
    alpha: float
    error: float
    plain: float


@dataclass(frozen=True)
class AwqScales:
    """Scales of a decoder, for each of its graphs.

    Attributes:
        folds: one per group of products, in the order of the graph.
        notes: what could not be scaled, in sentences.
        factors: what each tensor is multiplied by, in this order.
        divergence: mean KL divergence of the logits from float32, in nats, without scales and with those
            that were found; None where none were.
    """

    folds: tuple[FoldScale, ...]
    notes: tuple[str, ...]
    factors: Mapping[Tensor, tuple[Factor, ...]] = field(repr=False)
    divergence: tuple[float, float] | None = None

    def apply(self, model: ir.Model) -> int:
        """Scale the weights of a graph in place, each when it is read: nothing is computed here.

        Returns:
            Tensors that are scaled; those that are already, by a call before, are left as they are.
        """
        fold_casts(model)
        count = 0
        for value in model.graph.initializers.values():
            tensor = value.const_value
            factors = self.factors.get(place_of(value)) if tensor is not None else None
            if tensor is not None and factors and not isinstance(tensor, Scaled):
                value.const_value = Scaled(tensor, tuple((each.axis, each.values) for each in factors))
                count += 1
        return count


def factors_of(scales: Sequence[tuple[Fold, npt.NDArray[np.float32]]]) -> dict[Tensor, tuple[Factor, ...]]:
    """What each tensor is multiplied by, for folds with the scale of their divided side."""
    found: dict[Tensor, tuple[Factor, ...]] = {}
    for fold, scale in scales:
        more = [(side, fold.spread(scale)) for side in fold.multiplied]
        more += [(side, np.float32(1) / scale) for side in fold.divided]
        for side, values in sorted(more, key=lambda each: repr(each[0])):
            found[side.tensor] = (*found.get(side.tensor, ()), Factor(side.axis, values))
    return found
