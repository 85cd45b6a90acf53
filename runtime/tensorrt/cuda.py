"""The CUDA calls that the TensorRT backend needs, over `cuda.bindings.runtime`, on one stream of its own.

Everything is enqueued on that stream, so copies and graphs run in the order in which they were asked for, and
memory may be reused as soon as its last user has been enqueued.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from runtime.errors import BackendError
from runtime.lazy import require

__all__ = ["Cuda", "Launch", "load_cudart"]

_OUT_OF_MEMORY = 2
_NON_BLOCKING = 1  # cudaStreamNonBlocking: no waiting for the legacy default stream
_NO_TIMING = 2  # cudaEventDisableTiming


def load_cudart() -> Any:
    """The module of the CUDA runtime's bindings.

    Raises:
        BackendError: cuda-python is not installed, or cannot be imported.
    """
    try:
        return require("cuda.bindings.runtime", "cuda-python", extra="tensorrt")
    except BackendError:
        try:  # where cuda-python before 12.6 has it
            return importlib.import_module("cuda.cudart")
        except ImportError:
            pass
        raise


class Cuda:
    """One stream of the current device; addresses are plain integers, sizes bytes.

    Every method raises BackendError with CUDA's own words when a call fails. Not to be used from two threads
    at once.
    """

    def __init__(self, cudart: Any) -> None:
        """Make the stream, which starts CUDA on the device."""
        self._rt = cudart
        try:
            self._stream = self._call("cudaStreamCreateWithFlags", _NON_BLOCKING)
        except (BackendError, RuntimeError) as error:  # the bindings raise where there is no libcuda at all
            raise BackendError(
                f"tensorrt needs an NVIDIA GPU with its driver ({error}): use another backend"
            ) from error
        self._coherent = self._reads_host_memory()
        kinds = cudart.cudaMemcpyKind
        self._to_device, self._to_host = kinds.cudaMemcpyHostToDevice, kinds.cudaMemcpyDeviceToHost
        self._inside = kinds.cudaMemcpyDeviceToDevice

    def __del__(self) -> None:
        """Let the stream go, if it was made."""
        if hasattr(self, "_stream"):
            self._rt.cudaStreamDestroy(self._stream)

    @property
    def stream(self) -> int:
        """The stream's handle, as TensorRT wants it."""
        return int(self._stream)

    def malloc(self, nbytes: int) -> int | None:
        """The address of new device memory; None where there is not enough."""
        error, address = self._rt.cudaMalloc(nbytes)
        if int(error) == _OUT_OF_MEMORY:
            self._rt.cudaGetLastError()  # else the next look at it, by whomever, finds this one
            return None
        self._check("cudaMalloc", error)
        return int(address)

    def free(self, address: int) -> None:
        """Give device memory back; waits for the work that may use it."""
        self._call("cudaFree", address)

    def malloc_host(self, nbytes: int) -> int:
        """The address of new pinned host memory: copies from the device into it do not wait."""
        return int(self._call("cudaMallocHost", nbytes))

    def free_host(self, address: int) -> None:
        """Give pinned memory back."""
        self._call("cudaFreeHost", address)

    def to_device(self, target: int, source: int, nbytes: int) -> None:
        """From host memory, which may change once this has returned unless it is pinned."""
        self._call("cudaMemcpyAsync", target, source, nbytes, self._to_device, self._stream)
        if self._coherent:
            self.synchronize()

    def to_host(self, target: int, source: int, nbytes: int) -> None:
        """Into host memory: there after `wait` or `synchronize`."""
        self._call("cudaMemcpyAsync", target, source, nbytes, self._to_host, self._stream)

    def copy(self, target: int, source: int, nbytes: int) -> None:
        """Inside the device; the two do not overlap."""
        self._call("cudaMemcpyAsync", target, source, nbytes, self._inside, self._stream)

    def copy_rows(self, target: tuple[int, int], source: tuple[int, int], width: int, rows: int) -> None:
        """Rows of `width` bytes inside the device; target and source are (address, bytes from row to row)."""
        self._call("cudaMemcpy2DAsync", *target, *source, width, rows, self._inside, self._stream)

    def clear(self, address: int, nbytes: int) -> None:
        """Fill with zeros."""
        self._call("cudaMemsetAsync", address, 0, nbytes, self._stream)

    def synchronize(self) -> None:
        """Wait for everything."""
        self._call("cudaStreamSynchronize", self._stream)

    def mark(self) -> Any:
        """A mark behind what is enqueued now, for `wait`."""
        event = self._call("cudaEventCreateWithFlags", _NO_TIMING)
        self._call("cudaEventRecord", event, self._stream)
        return event

    def wait(self, mark: Any) -> None:
        """Wait for what was enqueued before a mark, and let the mark go."""
        self._call("cudaEventSynchronize", mark)
        self._call("cudaEventDestroy", mark)

    def capture(self, run: Callable[[], None]) -> Launch:
        """Record what `run` enqueues instead of running it.

        Raises:
            BackendError: something in it cannot be recorded, or `run` raised one.
        """
        mode = self._rt.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self._call("cudaStreamBeginCapture", self._stream, mode)
        try:
            run()
        except BaseException:
            self._rt.cudaStreamEndCapture(self._stream)  # the stream would refuse all else
            raise
        graph = self._call("cudaStreamEndCapture", self._stream)
        try:
            made = self._call("cudaGraphInstantiate", graph, 0)
        finally:
            self._call("cudaGraphDestroy", graph)
        return Launch(self, made)

    def memory(self) -> tuple[int, int]:
        """(free, total) bytes of the device."""
        error, free, total = self._rt.cudaMemGetInfo()
        self._check("cudaMemGetInfo", error)
        return int(free), int(total)

    def launch(self, made: Any) -> None:
        """Enqueue a recorded graph."""
        self._call("cudaGraphLaunch", made, self._stream)

    def drop(self, made: Any) -> None:
        """Let a recorded graph go."""
        self._call("cudaGraphExecDestroy", made)

    def _reads_host_memory(self) -> bool:
        """Whether the device reads any memory of the host by itself, as Thor does. CUDA need not stage copies
        from pageable memory there, and promises nowhere that they are done when the call returns."""
        attribute = self._rt.cudaDeviceAttr.cudaDevAttrPageableMemoryAccess
        return bool(self._call("cudaDeviceGetAttribute", attribute, self._call("cudaGetDevice")))

    def _call(self, name: str, *arguments: Any) -> Any:
        error, *values = getattr(self._rt, name)(*arguments)
        self._check(name, error)
        return values[0] if values else None

    def _check(self, name: str, error: Any) -> None:
        if int(error):
            _, text = self._rt.cudaGetErrorString(error)
            words = text.decode() if isinstance(text, bytes) else str(text)
            raise BackendError(f"CUDA failed in {name}: {words} (error {int(error)})")


class Launch:
    """A recorded graph; calling it enqueues it. Freed with the object."""

    def __init__(self, cuda: Cuda, made: Any) -> None:
        """Own an instantiated graph."""
        self._cuda, self._made = cuda, made

    def __call__(self) -> None:
        """Enqueue it."""
        self._cuda.launch(self._made)

    def __del__(self) -> None:
        """Destroy it."""
        with suppress(BackendError):  # a device that has failed says so elsewhere
            self._cuda.drop(self._made)
