"""What weights become in 8 or 4 bits, as float32 numbers again: to try out, not to store."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from calib.precision.names import Precision
from calib.precision.qdq import QdqFormat, scale_for
from calib.precision.weight_only import quantized_rows

__all__ = ["rounded_rows"]


def rounded_rows(
    rows: npt.NDArray[Any], precision: Precision, *, tensorrt: bool = False
) -> npt.NDArray[np.float32]:
    """Quantise and dequantise float32 [N, K], blocks along K.

    Args:
        rows: K is a multiple of the block.
        precision: int8 or int4.
        tensorrt: as `qdq` rounds to int4: symmetric, with scales in float16.
    """
    count, width = rows.shape
    blocks = width // precision.block
    if tensorrt:
        form = QdqFormat("int4", precision.block)
        parts = np.asarray(rows, np.float32).reshape(count, blocks, precision.block)
        scales = scale_for(np.abs(parts).max(axis=2, keepdims=True), form)
        found: npt.NDArray[np.float32] = np.clip(np.rint(parts / scales), -7, 7) * scales
        return found.reshape(count, width)
    values, scales, zeros = quantized_rows(rows, precision)
    numbers = _unpacked(values.reshape(count, -1), precision.bits).reshape(count, blocks, precision.block)
    middle: npt.NDArray[Any] = np.array(1 << (precision.bits - 1), np.float32)
    if not precision.symmetric:
        middle = _unpacked(zeros, precision.bits)[:, :blocks, None]
    numbers -= middle
    numbers *= scales[:, :, None]
    return numbers.reshape(count, width)


def _unpacked(values: npt.NDArray[np.uint8], bits: int) -> npt.NDArray[np.float32]:
    """The numbers in bytes, the lower half first."""
    if bits == 8:
        return values.astype(np.float32)
    numbers = np.empty((*values.shape[:-1], 2 * values.shape[-1]), np.float32)
    numbers[..., 0::2] = values & np.uint8(15)
    numbers[..., 1::2] = values >> np.uint8(4)
    return numbers
