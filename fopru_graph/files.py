"""Writing graphs that share weight files."""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path

import onnx_ir as ir

from fopru_graph.errors import GraphFileError
from fopru_graph.weights import external_tensors

__all__ = ["check_shared_folder", "write_model"]


def check_shared_folder(model: ir.Model, source: Path, target: Path) -> None:
    """Refuse a target that would point to weight files in another folder: pointers are relative.

    Raises:
        GraphFileError: the target is not in the folder of a source with external weights.
    """
    shared = sorted({str(tensor.location) for tensor in external_tensors(model)})
    if shared and target.resolve().parent != source.resolve().parent:
        raise GraphFileError(
            f"target '{target}' is not in the folder of '{source}', but it shares the weight file "
            f"'{shared[0]}': write it there"
        )


def write_model(model: ir.Model, target: Path) -> None:
    """Write beside the target and rename: it appears complete or not at all.

    Weights in external files are pointed to; those inside the protobuf are written.

    Raises:
        GraphFileError: it cannot be written.
    """
    try:
        handle, name = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".onnx", dir=target.parent)
    except OSError as error:
        raise GraphFileError(f"cannot write '{target}': {_reason(error)}") from error
    os.close(handle)
    partial = Path(name)
    try:
        ir.save(model, partial)
        partial.chmod(0o644)
        partial.replace(target)
    except OSError as error:
        raise GraphFileError(f"cannot write '{target}': {_reason(error)}") from error
    finally:
        with contextlib.suppress(FileNotFoundError):
            partial.unlink()


def _reason(error: OSError) -> str:
    """What the system said; numpy says "N requested and M written" without an error number on a full disk."""
    if error.strerror:
        return error.strerror
    text = str(error) or type(error).__name__
    return f"no space left on device ({text})" if "requested and" in text else text
