"""Small questions about values: their dims, whether two dims are certainly equal, their constants."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from fopru_graph.errors import UnsupportedGraphError

__all__ = [
    "INT32_MAX",
    "INT64_MAX",
    "Dim",
    "attribute_int",
    "constant_ints",
    "constant_scalar",
    "dims",
    "same",
    "static_product",
]

Dim = int | str | None
"""A size, the name of a size that varies, or None for a size nobody named."""

INT64_MAX = 2**63 - 1
"""End of a Slice that goes to the end."""

INT32_MAX = 2**31 - 1
"""From here on, the end of a Slice means the end: exporters write this number or a larger one."""

_SMALL = 64  # elements: larger constants are weights, and reading those would pull them from disk


def dims(value: ir.Value | None) -> tuple[Dim, ...] | None:
    """Dims of a value, or None when not even its rank is known."""
    if value is None or value.shape is None:
        return None
    return tuple(_dim(dim) for dim in value.shape)


def _dim(dim: int | ir.SymbolicDim) -> Dim:
    """Symbolic inference leaves a number that it computed as a name made of digits."""
    if isinstance(dim, int):
        return dim
    name = dim.value
    return int(name) if name is not None and name.isdigit() else name


def same(left: Dim, right: Dim) -> bool:
    """Whether two dims are equal for certain; unnamed dims never are."""
    return left is not None and left == right


def static_product(sizes: tuple[Dim, ...]) -> int | None:
    """Product of dims, or None if one is not a number."""
    product = 1
    for size in sizes:
        if not isinstance(size, int):
            return None
        product *= size
    return product


def _small_constant(value: ir.Value | None) -> np.ndarray | None:
    tensor = ir.convenience.get_const_tensor(value) if value is not None else None
    if value is None or tensor is None or tensor.size > _SMALL:
        return None
    try:
        return tensor.numpy()
    except (TypeError, ValueError) as error:  # other bytes than its dims and dtype say
        raise UnsupportedGraphError(
            f"constant '{value.name}' cannot be read ({error}): export the graph again"
        ) from error


def constant_ints(value: ir.Value | None) -> list[int] | None:
    """Elements of a small integer constant, else None."""
    array = _small_constant(value)
    if array is None or array.dtype.kind not in "iu":
        return None
    return [int(element) for element in array.ravel()]


def constant_scalar(value: ir.Value | None) -> float | None:
    """The number in a one-element constant, else None."""
    array = _small_constant(value)
    return float(array.ravel()[0]) if array is not None and array.size == 1 else None


def attribute_int(node: ir.Node, name: str, default: int) -> int:
    """An integer attribute, or its default."""
    attribute = node.attributes.get(name)
    return attribute.as_int() if attribute is not None else default
