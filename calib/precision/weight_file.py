"""A file of weights that grows by one tensor at a time, and remembers what it was made from.

Converting a model of 28 GB must not take 28 GB: each weight is read, converted and written before the next is
looked at, and what is left in memory is where it went. Two graphs that read the same bytes get the same new
bytes: the decoder's two forms, and the LM head with the embedding it is tied to.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from calib.precision.scaled import Scaled
from calib.precision.widened import Widened

__all__ = ["INLINE_BYTES", "WeightFile", "initializer_of", "row_chunks", "source_of"]

INLINE_BYTES = 256
"""Tensors up to this size stay inside the graph file, as onnx-ir writes them."""

_CHUNK_BYTES = 1 << 25  # of float32 read at a time
_LARGE, _PAGE, _LINE = 1 << 20, 4096, 64  # large tensors can be mapped into memory where they lie


class WeightFile:
    """Context manager around one data file, written from its start.

    Owns the open file. With `earlier`, what was converted there is not written again, and points into that
    file, which must lie in the same folder.

    Attributes:
        known: what each source became, by a key of its bytes and of how they were converted.
        paths: this file and the earlier ones.
    """

    def __init__(self, path: Path, earlier: WeightFile | None = None) -> None:
        self.path = path.resolve()
        self.known: dict[Hashable, Any] = {} if earlier is None else earlier.known
        self.paths: tuple[Path, ...] = (self.path, *(() if earlier is None else earlier.paths))
        self._file = self.path.open("wb")

    def __enter__(self) -> WeightFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def write(
        self, name: str, dtype: ir.DataType, shape: tuple[int, ...], chunks: Iterable[npt.NDArray[Any]]
    ) -> ir.ExternalTensor:
        """Append one tensor, given as consecutive pieces of its C-ordered bytes."""
        length = dtype.bitwidth * int(np.prod(shape, dtype=np.int64)) // 8
        step = _PAGE if length >= _LARGE else _LINE
        offset = -(-self._file.tell() // step) * step
        self._file.write(b"\0" * (offset - self._file.tell()))
        for chunk in chunks:
            np.ascontiguousarray(chunk).tofile(self._file)
        self._file.flush()
        assert self._file.tell() - offset == length, f"{name}: {self._file.tell() - offset} bytes of {length}"
        return ir.ExternalTensor(
            self.path.name, offset, length, dtype, shape=ir.Shape(shape), name=name, base_dir=self.path.parent
        )

    def keep(self, tensor: ir.TensorProtocol) -> None:
        """Say that a source has been converted: its pages, mapped into memory, are given back.

        What is no place in a file is known by its object, which must not be freed while its key is in use.
        """
        if isinstance(tensor, (Widened, Scaled)):
            self.keep(tensor.source)
        elif isinstance(tensor, ir.ExternalTensor):
            tensor.release()
        else:
            self.known["kept", id(tensor)] = tensor


def source_of(tensor: ir.TensorProtocol) -> Hashable:
    """What two tensors have in common if they are the same bytes: the place in a file, else the object."""
    if isinstance(tensor, Widened):
        return source_of(tensor.source)
    if isinstance(tensor, Scaled):
        return (source_of(tensor.source), tensor.digest)
    if isinstance(tensor, ir.ExternalTensor):
        return (str(Path(tensor.path).resolve()), tensor.offset, tensor.length)
    return id(tensor)


def row_chunks(count: int, row_bytes: int) -> Iterable[slice]:
    """Slices of `count` rows, each of some tens of megabytes at most (one row at least)."""
    step = max(1, _CHUNK_BYTES // max(1, row_bytes))
    return (slice(start, min(start + step, count)) for start in range(0, count, step))


def initializer_of(graph: ir.Graph, tensor: ir.TensorProtocol, name: str) -> ir.Value:
    """The initializer of that name, registered on first use; onnx-ir refuses a name with another tensor."""
    if name in graph.initializers:
        return graph.initializers[name]
    value = ir.Value(
        name=name, const_value=tensor, type=ir.TensorType(tensor.dtype), shape=ir.Shape(tensor.shape.numpy())
    )
    graph.register_initializer(value)
    return value
