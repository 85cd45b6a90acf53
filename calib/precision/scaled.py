"""Weights times factors per channel, computed each time they are read: a scaled model takes no memory."""

from __future__ import annotations

import hashlib

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

__all__ = ["Scaled"]


class Scaled(ir.LazyTensor):
    """float32 values of `source`, times `values` along `axis` for each factor (axis, values), in order.

    Attributes:
        source: what is scaled.
        digest: of the factors; two tensors of one source and one digest are the same numbers.
    """

    def __init__(
        self, source: ir.TensorProtocol, factors: tuple[tuple[int, npt.NDArray[np.float32]], ...]
    ) -> None:
        super().__init__(
            lambda: ir.Tensor(_product(source, factors)),
            dtype=ir.DataType.FLOAT,
            shape=ir.Shape(source.shape.numpy()),
            name=source.name,
        )
        self.source = source
        known = hashlib.sha256()
        for axis, values in factors:
            known.update(f"{axis} {values.shape}".encode() + np.ascontiguousarray(values).tobytes())
        self.digest = known.hexdigest()


def _product(
    source: ir.TensorProtocol, factors: tuple[tuple[int, npt.NDArray[np.float32]], ...]
) -> npt.NDArray[np.float32]:
    array = np.array(source.numpy(), np.float32)  # a copy: the source may be mapped into memory
    for axis, values in factors:
        shape = [1] * array.ndim
        shape[axis] = -1
        array *= values.reshape(shape)
    return array
