"""What the runtime needs from an inference engine, as two small protocols, and the registry that finds one
by name.

A backend is one file in `runtime/backends/` with a function `create(options) -> Backend`, and one line in
`_MODULES`.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol, TypeAlias, runtime_checkable

import numpy.typing as npt

from runtime.errors import BackendError

__all__ = [
    "NATIVE_BACKENDS",
    "Array",
    "Backend",
    "BackendOptions",
    "Binding",
    "CapturingBackend",
    "DeviceBackend",
    "Fetched",
    "Session",
    "View",
    "available_backends",
    "create_backend",
]

Array: TypeAlias = npt.NDArray[Any]

# Far more threads than cores only wait for each other; an engine asked for 10^5 of them never returns.
_MAX_THREADS = 1024

_MODULES = {
    "onnxruntime": "runtime.backends.onnxruntime",
    "openvino": "runtime.backends.openvino",
    "openvino-bf16": "runtime.backends.openvino_bf16",
    "ort-cuda": "runtime.backends.ort_cuda",
    "ort-tensorrt": "runtime.backends.ort_tensorrt",
    "tensorrt": "runtime.backends.tensorrt",
}


@dataclass(frozen=True)
class BackendOptions:
    """Options of every backend: `threads` inside one operator, None for the engine's choice (all cores)."""

    threads: int | None = None

    def __post_init__(self) -> None:
        whole = isinstance(self.threads, int) and not isinstance(self.threads, bool)
        if self.threads is not None and not (whole and 1 <= self.threads <= _MAX_THREADS):
            raise BackendError(
                f"threads is {self.threads!r}, expected 1..{_MAX_THREADS}, or none for all cores"
            )


@dataclass(frozen=True)
class View:
    """A tensor inside a buffer of the backend: `shape`, C-contiguous, from element `offset` on.

    `buffer` is what `allocate` or `upload` returned; the view does not own it, and keeps it alive.
    """

    buffer: Any
    shape: tuple[int, ...]
    offset: int = 0


class Binding(Protocol):
    """Buffers bound to a graph's tensors, for running it again and again without allocating."""

    def update(self, inputs: Mapping[str, View], outputs: Mapping[str, View]) -> None:
        """Bind these tensors anew; the others stay as they are."""
        ...

    def run(self) -> None:
        """Run; an output must have exactly the shape of its view.

        Raises:
            BackendError: a tensor is not bound or has a wrong shape, or the engine fails.
        """
        ...


class Session(Protocol):
    """One loaded graph. Not to be run from two threads at once.

    `inputs` and `outputs` are the graph's own tensors: name to shape, with None where a dimension varies.
    """

    @property
    def inputs(self) -> Mapping[str, tuple[int | None, ...]]: ...

    @property
    def outputs(self) -> Mapping[str, tuple[int | None, ...]]: ...

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Run with host arrays; returns every output as a new host array."""
        ...

    def bind(self, inputs: Mapping[str, View], outputs: Mapping[str, View]) -> Binding:
        """Bind buffers of the backend; tensors may be missing until the first run."""
        ...


class Backend(Protocol):
    """An inference engine on one device. Buffers are flat, owned by the caller, and live while referenced."""

    name: str
    cache_kinds: tuple[str, ...]
    """Kinds of KV cache (`contract.CACHES`) of the decoder graphs that it runs, the best first."""

    def open(self, graph: Path) -> Session:
        """Load an ONNX file; raises BackendError when the engine refuses it."""
        ...

    def allocate(self, elements: int, dtype: str) -> Any:
        """A flat buffer of `elements` values on the device, uninitialised."""
        ...

    def upload(self, array: Array) -> View:
        """A view of the device's form of a host array; on the CPU the array itself."""
        ...

    def download(self, view: View) -> Array:
        """The values of a view on the host; on the CPU not a copy, so valid until the buffer changes."""
        ...


@runtime_checkable
class DeviceBackend(Backend, Protocol):
    """A backend whose buffers the host cannot touch: `upload` and `download` copy.

    With one, visual tokens stay on the device from the encoder to the prompt (`runtime.rows`).
    """

    def write(self, view: View, array: Array) -> None:
        """Copy a host array into a view of the same size and dtype; it may change afterwards."""
        ...

    def copy(self, target: View, source: View) -> None:
        """Copy a view into another of the same size and dtype, on the device; they do not overlap."""
        ...


class Fetched(Protocol):
    """Values on their way to the host."""

    def result(self) -> Array:
        """The values, once they are there."""
        ...


@runtime_checkable
class CapturingBackend(DeviceBackend, Protocol):
    """A device backend that can also record a run with fixed shapes, and replay it for less."""

    def fetch(self, view: View) -> Fetched:
        """Start to copy a view to the host."""
        ...

    def copy_rows(self, target: View, source: View, pitches: tuple[int, int]) -> None:
        """Copy [rows, width] whose rows begin so many elements apart in the target and in the source."""
        ...

    def capture(self, bindings: Sequence[Binding]) -> Callable[[], None]:
        """A function that runs these one after the other as they are bound now.

        Recording runs them once. What was recorded with the same buffers before is not recorded again.
        """
        ...


NATIVE_BACKENDS: Mapping[str, str] = MappingProxyType(
    {
        "native": "onnxruntime",
        "native:ort-cuda": "ort-cuda",
        "native:ort-tensorrt": "ort-tensorrt",
        "native:tensorrt": "tensorrt",
    }
)
"""Further names for `Generator`, which stand for the C++ runtime, and what that calls them."""


def available_backends() -> tuple[str, ...]:
    """Names that `create_backend` knows; whether its package is installed shows when it is created."""
    return tuple(_MODULES)


def create_backend(name: str, options: BackendOptions) -> Backend:
    """Make a backend by name.

    Raises:
        BackendError: unknown name, or the engine's package is not installed.
    """
    if name not in _MODULES:
        names = ", ".join((*available_backends(), *NATIVE_BACKENDS))
        raise BackendError(f'backend is "{name}", expected one of {names}')
    backend: Backend = importlib.import_module(_MODULES[name]).create(options)
    return backend
