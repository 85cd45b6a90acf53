"""Copies to, on and from a CUDA device, and what memory it has, through `libcudart` alone (ctypes).

ONNX Runtime's Python package allocates on a device and binds addresses, but copies whole values only; the
runtime copies parts of buffers. The library is the one that ONNX Runtime's CUDA provider has loaded already.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any, Protocol

from runtime.errors import BackendError

__all__ = ["CudaCopies", "DeviceCopies", "HostCopies", "load_cudart"]

# The major version that ONNX Runtime was built for; both share the device's memory, so either will do.
_LIBRARIES = ("libcudart.so.13", "libcudart.so.12", "libcudart.so")
_ANY_DIRECTION = 4  # cudaMemcpyDefault: the driver knows whose address it is
_DEFAULT_STREAM = None


class DeviceCopies(Protocol):
    """Copies of bytes between two addresses, of the device or of the host; done when the call returns."""

    def copy(self, target: int, source: int, nbytes: int) -> None: ...

    def clear(self, address: int, nbytes: int) -> None: ...


class HostCopies:
    """Copies where the device is the CPU: for tests of the code above it."""

    def copy(self, target: int, source: int, nbytes: int) -> None:
        """Copy; the two may overlap."""
        ctypes.memmove(target, source, nbytes)

    def clear(self, address: int, nbytes: int) -> None:
        """Fill with zeros."""
        ctypes.memset(address, 0, nbytes)


def load_cudart(load: Callable[[str], Any] = ctypes.CDLL) -> Any:
    """The CUDA runtime library.

    Raises:
        BackendError: there is none.
    """
    for name in _LIBRARIES:
        try:
            return load(name)
        except OSError:
            continue
    raise BackendError(
        f"none of {', '.join(_LIBRARIES)} can be loaded: install the CUDA runtime, on a Jetson with "
        "`sudo apt install nvidia-jetpack`, else with `pip install 'onnxruntime-gpu[cuda,cudnn]'`"
    )


class CudaCopies:
    """Copies through cudaMemcpy, and the memory of the current device."""

    def __init__(self, cudart: Any) -> None:
        """Take the library; its functions get their argument types here."""
        pointer, size = ctypes.c_void_p, ctypes.c_size_t
        cudart.cudaMemcpy.argtypes = [pointer, pointer, size, ctypes.c_int]
        cudart.cudaMemset.argtypes = [pointer, ctypes.c_int, size]
        cudart.cudaStreamSynchronize.argtypes = [pointer]
        cudart.cudaMemGetInfo.argtypes = [ctypes.POINTER(size), ctypes.POINTER(size)]
        cudart.cudaGetErrorString.argtypes = [ctypes.c_int]
        cudart.cudaGetErrorString.restype = ctypes.c_char_p
        self._cudart = cudart

    def copy(self, target: int, source: int, nbytes: int) -> None:
        """Copy and wait.

        Raises:
            BackendError: CUDA refuses, or an earlier operation on the device failed.
        """
        self._check("cudaMemcpy", self._cudart.cudaMemcpy(target, source, nbytes, _ANY_DIRECTION))
        # From pageable memory, and on the device, it returns before the copy is done; ONNX Runtime computes
        # on a stream of its own, which does not wait for it.
        self._check("cudaStreamSynchronize", self._cudart.cudaStreamSynchronize(_DEFAULT_STREAM))

    def clear(self, address: int, nbytes: int) -> None:
        """Fill with zeros, and wait.

        Raises:
            BackendError: as `copy`.
        """
        self._check("cudaMemset", self._cudart.cudaMemset(address, 0, nbytes))
        self._check("cudaStreamSynchronize", self._cudart.cudaStreamSynchronize(_DEFAULT_STREAM))

    def memory(self) -> tuple[int, int]:
        """Bytes free and bytes in all; on a Jetson the GPU shares them with the CPU."""
        free, total = ctypes.c_size_t(), ctypes.c_size_t()
        code = self._cudart.cudaMemGetInfo(ctypes.byref(free), ctypes.byref(total))
        self._check("cudaMemGetInfo", code)
        return free.value, total.value

    def _check(self, call: str, code: int) -> None:
        if code:
            text = self._cudart.cudaGetErrorString(code)
            reason = text.decode() if isinstance(text, bytes) else f"error {code}"
            raise BackendError(f"{call} failed: {reason}")
