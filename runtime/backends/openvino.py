"""OpenVINO on the CPU, from the same ONNX files: an optional backend (`pip install 'fopru-edge[openvino]'`).

Computes in float32, as the default backend does: the hint `INFERENCE_PRECISION_HINT` says so, and the mode
ACCURACY, without which weight-only int8 and int4 decoders have their activations quantised too. The backend
`openvino-bf16` multiplies in bfloat16 instead. Shapes stay dynamic: a graph is compiled once, not per length.

The "append" decoder runs in place: past and new rows are views of one buffer. The "shared" one, which
OpenVINO reads as well, does not: its GroupQueryAttention is taken apart into a concatenation that returns
another tensor than the one bound.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from runtime import contract
from runtime.backend import Array, Backend, BackendOptions, Session, View
from runtime.dtypes import BFLOAT16, no_bfloat16
from runtime.errors import BackendError
from runtime.lazy import require

__all__ = ["OvBackend", "OvBinding", "OvSession", "create", "make"]

_DEVICE = "CPU"
_MAX_LENGTH = 400
_PLACES = re.compile(r"Exception from \S+:\d+:|Check '.*?' failed at \S+:\d+:|Caught exception:", re.DOTALL)
_RESULT = "/sink_port_0"  # what OpenVINO appends to an output's name to name the node that returns it


def create(options: BackendOptions) -> Backend:
    """Make the backend in float32; raises BackendError when openvino is not installed."""
    return make("openvino", options, "f32")


def make(name: str, options: BackendOptions, precision: str) -> OvBackend:
    """Make a backend that computes in `precision`, `f32` or `bf16`.

    Raises:
        BackendError: openvino is not installed, or this processor has no instructions for bf16.
    """
    ov = require("openvino", "openvino", extra="openvino")
    core = ov.Core()
    # Without the instructions OpenVINO would compute in float32 without a word.
    if precision == "bf16" and "BF16" not in core.get_property(_DEVICE, "OPTIMIZATION_CAPABILITIES"):
        raise BackendError(
            f"backend {name} needs a processor with bfloat16 instructions (AVX512_BF16 or AMX), which this "
            "one lacks: use openvino"
        )
    settings: dict[str, Any] = {
        "PERFORMANCE_HINT": "LATENCY",
        "EXECUTION_MODE_HINT": "ACCURACY",
        "INFERENCE_PRECISION_HINT": precision,
    }
    if options.threads is not None:
        settings["INFERENCE_NUM_THREADS"] = options.threads
    return OvBackend(name, ov, core, settings)


class OvBackend:
    """Opens sessions on the CPU; buffers are flat numpy arrays."""

    cache_kinds: tuple[str, ...] = (contract.APPEND, contract.CONCAT)

    def __init__(self, name: str, ov: Any, core: Any, settings: Mapping[str, Any]) -> None:
        """Keep the imported package, its Core, and the properties of every compiled graph."""
        self.name = name
        self._ov, self._core, self._settings = ov, core, dict(settings)

    def kinds_for(self, cache_dtype: str) -> tuple[str, ...]:
        """`cache_kinds`; raises BackendError for a cache in bfloat16."""
        if cache_dtype == BFLOAT16:
            raise no_bfloat16(self.name, "the decoder's KV cache")
        return self.cache_kinds

    def open(self, graph: Path) -> Session:
        """Read and compile an ONNX file with its weight file beside it."""
        # Core.read_model asks the readers of all formats, and TensorFlow's complains on stderr.
        reader = self._ov.frontend.FrontEndManager().load_by_framework("onnx")
        try:
            model = reader.convert(reader.load(str(graph)))
            compiled = self._core.compile_model(model, _DEVICE, self._settings)
        # OpenVINO raises RuntimeError and classes of its own with no common base.
        except Exception as error:
            raise BackendError(f"openvino cannot load {graph}: {_message(error)}") from error
        return OvSession(self._ov, compiled, graph.stem)

    def allocate(self, elements: int, dtype: str) -> Array:
        """A flat numpy array, uninitialised."""
        return np.empty(elements, dtype)

    def upload(self, array: Array) -> View:
        """The array itself, made contiguous where it is not."""
        return View(np.ascontiguousarray(array).reshape(-1), array.shape)

    def download(self, view: View) -> Array:
        """The view as a numpy view, no copy."""
        return _array(view)


class OvSession:
    """One compiled graph. Bindings share its weights and its working memory; each has its own request."""

    def __init__(self, ov: Any, compiled: Any, name: str) -> None:
        """Wrap a CompiledModel; `name` is for messages."""
        self._ov, self._compiled, self._name = ov, compiled, name
        self.inputs = {_name(port): _shape(port) for port in compiled.inputs}
        self.outputs = {_name(port): _shape(port) for port in compiled.outputs}
        self._host = self.bind({}, {})

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Run with host arrays."""
        views = {
            name: View(np.ascontiguousarray(array).reshape(-1), array.shape) for name, array in feeds.items()
        }
        absent = [name for name in self.inputs if name not in feeds]
        if absent:  # else a tensor of the last run would be read again
            raise BackendError(f"openvino cannot run {self._name} without {', '.join(absent)}")
        self._host.update(views, {})
        self._host.run()
        return {name: self._host.output(name).copy() for name in self.outputs}

    def bind(self, inputs: Mapping[str, View], outputs: Mapping[str, View]) -> OvBinding:
        """Bind numpy buffers; what is not bound of the outputs goes to memory of the engine."""
        binding = OvBinding(self._ov, self._compiled, self._name)
        binding.update(inputs, outputs)
        return binding


class OvBinding:
    """An inference request whose tensors are views of numpy buffers, which it keeps alive."""

    def __init__(self, ov: Any, compiled: Any, name: str) -> None:
        """Bind nothing yet; `name` is for messages."""
        self._ov, self._name = ov, name
        self._request = compiled.create_infer_request()
        # By port: a tensor may have several names in OpenVINO, and a search by name costs more.
        self._inputs = {_name(port): port for port in compiled.inputs}
        self._outputs = {_name(port): port for port in compiled.outputs}
        # OpenVINO keeps the address of an array, not the array.
        self._held: dict[str, View] = {}
        self._bound: dict[str, tuple[Any, tuple[int, ...]]] = {}

    def update(self, inputs: Mapping[str, View], outputs: Mapping[str, View]) -> None:
        """Bind these tensors anew.

        Raises:
            BackendError: the graph has no such tensor, or it is of another shape or dtype.
        """
        for name, view in inputs.items():
            self._set(name, view, self._port(name, self._inputs))
        for name, view in outputs.items():
            self._bound[name] = self._set(name, view, self._port(name, self._outputs)), view.shape

    def run(self) -> None:
        """Run with what is bound."""
        absent = [name for name in self._inputs if name not in self._held]
        if absent:
            raise BackendError(f"openvino cannot run {self._name} without {', '.join(absent)}: bind them")
        try:
            # Not `infer()`: with one thread, OpenVINO 2026.4 loses the exceptions of its nodes there.
            self._request.start_async()
            self._request.wait()
        except Exception as error:
            raise BackendError(f"openvino failed in {self._name}: {_message(error)}") from error
        for name, (tensor, shape) in self._bound.items():
            got = tuple(tensor.shape)
            if got != shape:  # a smaller result is written all the same
                raise BackendError(
                    f"openvino failed in {self._name}: {name} came out as {list(got)}, but a view of "
                    f"{list(shape)} is bound"
                )

    def output(self, name: str) -> Array:
        """An output of the last run that is not bound: valid until the next."""
        array: Array = self._request.get_tensor(self._outputs[name]).data
        return array

    def _set(self, name: str, view: View, port: Any) -> Any:
        try:
            tensor = self._ov.Tensor(_array(view), shared_memory=True)
            self._request.set_tensor(port, tensor)
        except BackendError:
            raise
        except Exception as error:
            raise BackendError(f"openvino cannot bind {name} of {self._name}: {_message(error)}") from error
        self._held[name] = view
        return tensor

    def _port(self, name: str, ports: Mapping[str, Any]) -> Any:
        if name not in ports:
            raise BackendError(f"{self._name} has no tensor {name}, only {', '.join(ports)}")
        return ports[name]


def _array(view: View) -> Array:
    size = 1
    for dim in view.shape:
        size *= dim
    array: Array = view.buffer[view.offset : view.offset + size]
    if array.size != size:
        raise BackendError(
            f"a view of {size} values from {view.offset} on does not fit its buffer of {view.buffer.size}"
        )
    return array.reshape(view.shape)


def _name(port: Any) -> str:
    """The tensor's name in the ONNX file: passes may give it those of tensors that became the same one."""
    node = str(port.node.friendly_name).removesuffix(_RESULT)
    return node if node in port.names else str(port.any_name)


def _shape(port: Any) -> tuple[int | None, ...]:
    dims: Iterable[Any] = port.partial_shape
    return tuple(None if dim.is_dynamic else int(dim.get_length()) for dim in dims)


def _message(error: Exception) -> str:
    """The engine's message in one line, without the places in its source."""
    text = " ".join(_PLACES.sub(" ", str(error)).split())
    return text[:_MAX_LENGTH] or type(error).__name__
