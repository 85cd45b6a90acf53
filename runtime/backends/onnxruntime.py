"""ONNX Runtime on the CPU: the default backend and the reference for the others.

Session options: the default graph optimisation level (all), `threads` inside an operator, one operator at a
time, no log messages (an error is raised, and its message says the same). Bound runs pass addresses of numpy
buffers (IO binding), so that no output is allocated.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from runtime import contract
from runtime.backend import Array, Backend, BackendOptions, Session, View
from runtime.dtypes import BFLOAT16, no_bfloat16
from runtime.errors import BackendError
from runtime.lazy import require

__all__ = [
    "OrtBackend",
    "OrtBinding",
    "OrtSession",
    "create",
    "is_float8",
    "message_of",
    "session_options",
    "shapes_of",
]

_LOG_FATAL = 4
_MAX_LINES = 6
_BF16, _FP8 = "_bf16", "_fp8"  # how names of graph files in these precisions end


def create(options: BackendOptions) -> Backend:
    """Make the backend; raises BackendError when onnxruntime is not installed."""
    return OrtBackend(require("onnxruntime", "onnxruntime"), options)


def session_options(ort: Any, threads: int | None, *, float8: bool = False) -> Any:
    """The `SessionOptions` of every session; `threads` None leaves the choice to ONNX Runtime. `float8`: the
    graph has numbers of that kind."""
    options = ort.SessionOptions()
    options.log_severity_level = _LOG_FATAL
    # A plan of memory is kept for every combination of input shapes: decoding has a new one for each token.
    options.enable_mem_pattern = False
    # Products with dequantised 4-bit weights would round their activations to 8 bits.
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "0")
    if float8:  # products that are fused with their (de)quantisation take integers alone
        options.add_session_config_entry("session.disable_quant_qdq", "1")
    if threads is not None:
        options.intra_op_num_threads = threads
    return options


def is_float8(graph: Path) -> bool:
    """Whether a graph file is in float8, by its name."""
    return graph.stem.endswith(_FP8)


class OrtBackend:
    """Opens sessions on the CPU provider; buffers are flat numpy arrays."""

    name = "onnxruntime"
    cache_kinds: tuple[str, ...] = (contract.SHARED, contract.APPEND, contract.CONCAT)

    def __init__(self, ort: Any, options: BackendOptions) -> None:
        """Keep the imported package and the options for every session."""
        self._ort = ort
        self._options = options

    def kinds_for(self, cache_dtype: str) -> tuple[str, ...]:
        """`cache_kinds`; raises BackendError for a cache in bfloat16."""
        if cache_dtype == BFLOAT16:
            raise no_bfloat16(self.name, "the decoder's KV cache")
        return self.cache_kinds

    def open(self, graph: Path) -> Session:
        """Load an ONNX file with its weight file beside it."""
        settings = session_options(self._ort, self._options.threads, float8=is_float8(graph))
        try:
            session = self._ort.InferenceSession(str(graph), settings, providers=["CPUExecutionProvider"])
        # ONNX Runtime has a dozen exception classes with no common base of its own.
        except Exception as error:
            if graph.stem.endswith(_BF16):
                raise no_bfloat16(self.name, str(graph)) from error
            raise BackendError(f"onnxruntime cannot load {graph}: {message_of(error)}") from error
        return OrtSession(session, graph.stem)

    def allocate(self, elements: int, dtype: str) -> Array:
        """A flat numpy array, uninitialised."""
        return np.empty(elements, dtype)

    def upload(self, array: Array) -> View:
        """The array itself, made contiguous where it is not."""
        flat = np.ascontiguousarray(array).reshape(-1)
        return View(flat, array.shape)

    def download(self, view: View) -> Array:
        """The view as a numpy view, no copy."""
        array: Array = _span(view).reshape(view.shape)
        return array


class OrtSession:
    """One ONNX Runtime session."""

    def __init__(self, session: Any, name: str) -> None:
        """Wrap an InferenceSession; `name` is for messages."""
        self._session = session
        self._name = name
        self.inputs = shapes_of(session.get_inputs())
        self.outputs = shapes_of(session.get_outputs())

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Run with host arrays."""
        try:
            values = self._session.run(None, dict(feeds))
        except Exception as error:
            raise BackendError(f"onnxruntime failed in {self._name}: {message_of(error)}") from error
        return dict(zip(self.outputs, values, strict=True))

    def bind(self, inputs: Mapping[str, View], outputs: Mapping[str, View]) -> OrtBinding:
        """Bind numpy buffers by address."""
        binding = OrtBinding(self._session, self._name)
        binding.update(inputs, outputs)
        return binding


class OrtBinding:
    """An IO binding that keeps the buffers alive whose addresses it holds."""

    def __init__(self, session: Any, name: str) -> None:
        """Bind nothing yet; `name` is for messages."""
        self._session, self._name = session, name
        self._binding = session.io_binding()
        self._held: dict[str, View] = {}

    def update(self, inputs: Mapping[str, View], outputs: Mapping[str, View]) -> None:
        """Bind these tensors anew."""
        try:
            for name, view in inputs.items():
                self._binding.bind_input(name, "cpu", 0, view.buffer.dtype, view.shape, _address(view))
            for name, view in outputs.items():
                self._binding.bind_output(name, "cpu", 0, view.buffer.dtype, view.shape, _address(view))
        except BackendError:
            raise
        except Exception as error:
            raise BackendError(f"onnxruntime cannot bind {self._name}: {message_of(error)}") from error
        self._held.update(inputs)
        self._held.update(outputs)

    def run(self) -> None:
        """Run with what is bound."""
        try:
            self._session.run_with_iobinding(self._binding)
        except Exception as error:
            raise BackendError(f"onnxruntime failed in {self._name}: {message_of(error)}") from error


def _span(view: View) -> Array:
    size = int(np.prod(view.shape, dtype=np.int64))
    array: Array = view.buffer[view.offset : view.offset + size]
    if array.size != size:
        raise BackendError(
            f"a view of {size} values from {view.offset} on does not fit its buffer of {view.buffer.size}"
        )
    return array


def _address(view: View) -> int:
    _span(view)  # a wrong size would be read or written past the end
    return int(view.buffer.ctypes.data) + view.offset * int(view.buffer.itemsize)


def shapes_of(tensors: Any) -> dict[str, tuple[int | None, ...]]:
    """Names and shapes of a session's inputs or outputs; None for a dimension with a name or none at all."""
    return {
        tensor.name: tuple(dim if isinstance(dim, int) else None for dim in tensor.shape)
        for tensor in tensors
    }


def message_of(error: Exception) -> str:
    """The engine's message in one line: where it counts dimensions, the numbers stand in the later ones."""
    lines = [line.strip() for line in str(error).splitlines()]
    useful = [line for line in lines if line and not line.startswith("Please fix")]
    text = " ".join(useful[:_MAX_LINES])
    return text or type(error).__name__
