"""What two graphs of one decoder have in common: tensors, by where their bytes are."""

from __future__ import annotations

from pathlib import Path
from typing import TypeAlias

import onnx_ir as ir

from calib.precision.widened import Widened

__all__ = ["Tensor", "place_of"]

Tensor: TypeAlias = tuple[str, int, int] | str
"""File name, offset and length; a name where the bytes are inside the graph."""


def place_of(value: ir.Value) -> Tensor:
    """Of an initializer. File names without folders: a bundle may be copied."""
    tensor = value.const_value
    if isinstance(tensor, Widened):
        tensor = tensor.source
    if isinstance(tensor, ir.ExternalTensor):
        return Path(tensor.path).name, int(tensor.offset or 0), int(tensor.length or tensor.nbytes)
    return str(value.name)
