"""Weights in external files: which there are, whether they are whole, how to keep ONNX's tools off them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import onnx_ir as ir

from fopru_graph.errors import GraphFileError, UnsupportedGraphError

__all__ = ["check_inner_weights", "check_weight_files", "external_tensors", "without_external_weights"]

_SMALL = 64  # elements: shapes and axes, which shape inference wants to see


def external_tensors(model: ir.Model) -> list[ir.ExternalTensor]:
    """Initializers of the main graph that live in files."""
    tensors = [value.const_value for value in model.graph.initializers.values()]
    return [tensor for tensor in tensors if isinstance(tensor, ir.ExternalTensor)]


def check_weight_files(model: ir.Model, path: Path) -> None:
    """Compare what the graph in `path` points to with the files that are there; reads no weight.

    Raises:
        GraphFileError: a weight file is missing or too short.
    """
    for tensor in external_tensors(model):
        location = Path(tensor.location)  # as it is written: model caches keep weights behind links
        if location.is_absolute() or ".." in location.parts:
            raise GraphFileError(
                f"weight file '{location}' of '{path}' lies outside the folder of the graph: move both into "
                "one folder and export again"
            )
        file = Path(tensor.path)
        if not file.is_file():
            raise GraphFileError(f"weight file '{file}' of '{path}' is missing: keep both in one folder")
        end, size = (tensor.offset or 0) + tensor.nbytes, file.stat().st_size
        if size < end:
            raise GraphFileError(
                f"weight file '{file}' has {size} bytes, but '{tensor.name}' of '{path}' ends at {end}: "
                "copy it again"
            )


def check_inner_weights(model: ir.Model) -> None:
    """Compare weights inside the protobuf with their dims; the ONNX checker leaves large ones out.

    Raises:
        UnsupportedGraphError: a weight has another number of bytes than its dims and dtype need.
    """
    for value in model.graph.initializers.values():
        tensor = value.const_value
        if not isinstance(tensor, ir.TensorProtoTensor) or not tensor.raw.HasField("raw_data"):
            continue
        if len(tensor.raw.raw_data) != tensor.nbytes:
            raise UnsupportedGraphError(
                f"weight '{tensor.name}' has {len(tensor.raw.raw_data)} bytes, but its dims and dtype need "
                f"{tensor.nbytes}: export it again"
            )


@contextlib.contextmanager
def without_external_weights(model: ir.Model) -> Iterator[None]:
    """Hide external weights from the ONNX C++ tools, which would look for their files in the current
    directory.

    Small ones are shown with their content.
    """
    hidden = {
        value: value.const_value
        for value in model.graph.initializers.values()
        if isinstance(value.const_value, ir.ExternalTensor)
    }
    try:
        for value, tensor in hidden.items():
            value.const_value = ir.tensor(tensor.numpy(), name=tensor.name) if tensor.size <= _SMALL else None
        yield
    finally:
        for value, tensor in hidden.items():
            value.const_value = tensor
