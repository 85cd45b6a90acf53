"""Weights in int4 as the numbers that they stand for, for twins that ONNX Runtime runs on a processor.

It would dequantise every weight anew for every token. Written out once, they are multiplied as float weights
are, with the same numbers.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from calib.precision.qdq import TENSORRT_DOMAIN
from calib.precision.weight_file import WeightFile, initializer_of, row_chunks

__all__ = ["fits_unpacked", "int4_nodes", "unpack_int4"]

_SHARE = 0.25  # of this machine's memory


def int4_nodes(model: ir.Model) -> list[ir.Node]:
    """The nodes that dequantise weights in int4: TensorRT's own operator, or the standard one."""
    return [node for node in model.graph if _is_int4(node)]


def fits_unpacked(model: ir.Model) -> bool:
    """Whether ONNX Runtime can hold the weights in float32, as it multiplies those of float16."""
    sizes = (node.inputs[0].const_value.size for node in int4_nodes(model))  # type: ignore[union-attr]
    return 4 * sum(sizes) <= _SHARE * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def unpack_int4(model: ir.Model, file: WeightFile) -> int:
    """Put initializers in `file` in the place of those nodes; in place.

    Returns:
        Weights.
    """
    nodes = int4_nodes(model)
    for node in nodes:
        weight, scale = (value.const_value for value in node.inputs[:2])  # type: ignore[union-attr]
        assert weight is not None
        assert scale is not None
        made, axis = node.outputs[0], node.attributes.get_int("axis", 1)
        shape = tuple(int(size) for size in weight.shape.numpy())
        numbers = _numbers(weight, scale.numpy(), axis)
        tensor = file.write(f"{made.name}_unpacked", scale.dtype, shape, numbers)
        file.keep(weight)
        made.replace_all_uses_with(initializer_of(model.graph, tensor, tensor.name))
        model.graph.remove(node, safe=True)
    model.opset_imports.pop(TENSORRT_DOMAIN, None)
    return len(nodes)


def _numbers(weight: ir.TensorProtocol, scales: npt.NDArray[Any], axis: int) -> Iterator[npt.NDArray[Any]]:
    """Rows of a matrix in the dtype of its scales, of which there are fewer along one axis; each number
    rounded once, as DequantizeLinear does."""
    values = weight.numpy()
    block = values.shape[axis] // scales.shape[axis]
    rows = len(values) // len(scales)  # that share a row of scales
    for some in row_chunks(len(scales), 4 * rows * values.shape[1]):
        wide = np.repeat(scales[some].astype(np.float32), block, axis=axis)
        wide *= values[some.start * rows : some.stop * rows].astype(np.float32)
        yield wide.astype(scales.dtype)


def _is_int4(node: ir.Node) -> bool:
    if node.domain == TENSORRT_DOMAIN:
        return True
    stored = node.inputs[0] if node.domain == "" and node.op_type == "DequantizeLinear" else None
    return stored is not None and stored.dtype == ir.DataType.INT4
