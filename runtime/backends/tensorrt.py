"""TensorRT on an NVIDIA GPU: the engines of a bundle, built on this device by `python -m runtime.engine`.

Needs the `tensorrt` package (on a Jetson it comes with JetPack) and `cuda-python`; no torch. Everything runs
on one stream of its own. Engines have their precision in the graph, so there is none to choose here, and
`threads` has no meaning.

Visual tokens, embeddings and the KV cache stay on the device; the host sees kept indices, scores, and the
logits of one position. A decoding step is recorded as a CUDA graph (see `runtime.step_graph`).
"""

from __future__ import annotations

import mmap
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from runtime import contract
from runtime.backend import Array, Backend, BackendOptions, Binding, Session, View
from runtime.errors import BackendError
from runtime.lazy import require
from runtime.tensorrt.buffers import Buffer, Pending, Pool, address_of, elements_of
from runtime.tensorrt.cuda import Cuda, load_cudart
from runtime.tensorrt.graph_capture import CaptureError, Replay
from runtime.tensorrt.session import Engine, Messages, Scratch, TrtBinding, TrtSession, upload

__all__ = ["TrtBackend", "create"]


def create(options: BackendOptions) -> Backend:  # noqa: ARG001 - the device has no threads to bound
    """Make the backend on the current device.

    Raises:
        BackendError: tensorrt or cuda-python is not installed, or there is no GPU with a driver.
    """
    return TrtBackend(require("tensorrt", "tensorrt", extra="tensorrt"), load_cudart(), _engine_of_device)


class TrtBackend:
    """Opens engines on one device. Buffers are flat device memory that is used again after it is freed.

    Not to be used from two threads at once.
    """

    name = "tensorrt"
    cache_kinds: tuple[str, ...] = (contract.APPEND,)

    def __init__(self, trt: Any, cudart: Any, find: Callable[[Path], Path]) -> None:
        """Take the two packages, and a function from an ONNX file to its engine on this device.

        Raises:
            BackendError: CUDA cannot start.
        """
        self._trt, self._find = trt, find
        self._messages = Messages()
        self._cuda = Cuda(cudart)
        self.pool = Pool(self._cuda)
        self._scratch = Scratch(self.pool)
        self._logger = _logger(trt, self._messages)
        self._runtime = trt.Runtime(self._logger)

    def open(self, graph: Path) -> Session:
        """Load the engine of an ONNX file.

        Raises:
            BackendError: there is none for this device, or TensorRT refuses it.
        """
        path = self._find(graph)
        try:
            with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
                # Mapped, as a copy of the weights on the host would not fit beside those on the device.
                engine = self._runtime.deserialize_cuda_engine(content)
        except (OSError, ValueError) as error:
            raise BackendError(
                f"the engine {path} cannot be read ({error}): build it again with `python -m runtime.engine`"
            ) from error
        if engine is None:
            raise BackendError(
                f"tensorrt cannot load the engine {path}: {self._messages.take()}; build it again with "
                "`python -m runtime.engine`"
            )
        made = Engine(self._trt, engine, graph.stem, self._messages)
        return TrtSession(made, self._cuda, self.pool, self._scratch)

    def allocate(self, elements: int, dtype: str) -> Buffer:
        """A flat buffer of zeros on the device."""
        return self.pool.allocate(elements, dtype)

    def upload(self, array: Array) -> View:
        """A copy on the device."""
        return upload(self.pool, self._cuda, array)

    def download(self, view: View) -> Array:
        """A copy on the host; waits for the work before it."""
        return self.fetch(view).result()

    def fetch(self, view: View) -> Pending:
        """Start to copy a view to the host."""
        return self.pool.fetch(view)

    def write(self, view: View, array: Array) -> None:
        """Copy a host array into a view of the same size and dtype."""
        flat = np.ascontiguousarray(array).reshape(-1)
        _check_same(view, flat.size, flat.dtype)
        if flat.size:
            self._cuda.to_device(address_of(view), int(flat.ctypes.data), flat.nbytes)
        if view.buffer.host is not None:
            view.buffer.host[view.offset : view.offset + flat.size] = flat

    def copy(self, target: View, source: View) -> None:
        """Copy a view into another on the device."""
        size, dtype = elements_of(source.shape), source.buffer.dtype
        _check_same(target, size, dtype)
        if size:
            self._cuda.copy(address_of(target), address_of(source), size * dtype.itemsize)

    def copy_rows(self, target: View, source: View, pitches: tuple[int, int]) -> None:
        """Copy rows that begin so many elements apart in the target and in the source."""
        (rows, width), dtype = source.shape, source.buffer.dtype
        _check_same(target, rows * width, dtype)
        if not rows * width:
            return
        into, out = (_spread(view, pitch) for view, pitch in zip((target, source), pitches, strict=True))
        item = dtype.itemsize
        self._cuda.copy_rows((into, pitches[0] * item), (out, pitches[1] * item), width * item, rows)

    def capture(self, bindings: Sequence[Binding]) -> Callable[[], None]:
        """A function that replays these runs; runs them plainly, with a warning, where they cannot be
        recorded."""
        own = [binding for binding in bindings if isinstance(binding, TrtBinding)]
        try:
            return Replay(own, self._cuda, self._scratch)
        except CaptureError as error:
            warnings.warn(
                f"decoding steps are not recorded as a CUDA graph, and run slower: {error}", stacklevel=2
            )

        def run() -> None:
            for binding in own:
                binding.run()

        return run

    def synchronize(self) -> None:
        """Wait for everything."""
        self._cuda.synchronize()


def _check_same(view: View, size: int, dtype: np.dtype[Any]) -> None:
    if size != elements_of(view.shape) or dtype != view.buffer.dtype:
        raise BackendError(
            f"cannot copy {size} values of {dtype} into a view of {elements_of(view.shape)} of "
            f"{view.buffer.dtype}: give as many of the same dtype"
        )


def _spread(view: View, pitch: int) -> int:
    """Address of rows that begin `pitch` elements apart, after a look at where the last one ends."""
    rows, width = view.shape
    return address_of(View(view.buffer, ((rows - 1) * pitch + width,), view.offset))


def _logger(trt: Any, messages: Messages) -> Any:
    """TensorRT's logger, of which errors are kept for the sentence of the exception."""

    class Logger(trt.ILogger):  # type: ignore[misc]  # the package is not there when types are checked
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
                messages.add(message)

    return Logger()


def _engine_of_device(graph: Path) -> Path:
    from runtime.tensorrt.engines import find_engine
    from runtime.tensorrt.identity import find_identity

    return find_engine(graph, find_identity())
