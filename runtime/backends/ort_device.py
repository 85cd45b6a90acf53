"""ONNX Runtime on a device of its own memory: what its CUDA and TensorRT providers share.

Buffers are OrtValues on the device; a view is their address plus an offset, and IO binding passes it on, so
that a bound run moves nothing between host and device but what its graph wants on the host. A provider that
cannot start is an error: ONNX Runtime itself would go on on the CPU with no more than a log line.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from runtime import contract
from runtime.backend import Array, BackendOptions, View
from runtime.backends.cudart import DeviceCopies
from runtime.backends.onnxruntime import is_float8, message_of, session_options, shapes_of
from runtime.dtypes import BFLOAT16, storage_dtype
from runtime.errors import BackendError

__all__ = [
    "HEAVY_OPERATORS",
    "INSTALL",
    "DeviceBuffer",
    "OrtDevice",
    "OrtDeviceBackend",
    "OrtDeviceBinding",
    "OrtDeviceSession",
    "host_inputs_of",
    "missing_library",
    "placement_of",
]

CPU = "CPUExecutionProvider"
_RECORD = "session.record_ep_graph_assignment_info"
_ONNX_BFLOAT16 = 16  # TensorProto.BFLOAT16

INSTALL = (
    "install onnxruntime-gpu and the CUDA it was built for with `pip install 'fopru-edge[gpu]' "
    "'onnxruntime-gpu[cuda,cudnn]'` (on a Jetson see docs/jetson.md)"
)

HEAVY_OPERATORS = frozenset(
    {
        *("Attention", "Conv", "DynamicQuantizeLinear", "FusedMatMul", "Gemm", "GroupQueryAttention"),
        *("LayerNormalization", "MatMul", "MatMulInteger", "MatMulNBits", "MultiHeadAttention"),
        *("QLinearConv", "QLinearMatMul", "RotaryEmbedding", "SimplifiedLayerNormalization"),
        *("SkipSimplifiedLayerNormalization", "Softmax", "TopK"),
    }
)
"""Operators that must not stay on the CPU. Others may: ONNX Runtime computes shapes there on purpose."""


@dataclass(frozen=True)
class OrtDevice:
    """Where sessions run: `kind` and `index` as ONNX Runtime names devices ("cuda", 0), `providers` with
    their options, the one that must take part first."""

    kind: str
    index: int
    providers: tuple[tuple[str, Mapping[str, str]], ...]

    @property
    def provider(self) -> str:
        """The provider that must take part."""
        return self.providers[0][0]


@dataclass(frozen=True)
class DeviceBuffer:
    """A flat buffer of `size` values of `dtype` on the device; freed with its last reference.

    `element` is their type as ONNX Runtime binds it: numpy's, or the number in ONNX of what numpy lacks.
    """

    value: Any
    dtype: np.dtype[Any]
    size: int
    element: Any

    def address(self, view: View) -> int:
        """Where a view of this buffer begins.

        Raises:
            BackendError: the view reaches past the end.
        """
        elements = math.prod(view.shape)
        if view.offset < 0 or view.offset + elements > self.size:
            raise BackendError(
                f"a view of {elements} values from {view.offset} on does not fit its buffer of {self.size}"
            )
        return int(self.value.data_ptr()) + view.offset * self.dtype.itemsize


class OrtDeviceBackend:
    """Opens sessions on one device; buffers are OrtValues there."""

    # "append" computes in float32 too: ONNX Runtime's GroupQueryAttention, which "shared" is made of, has
    # kernels for float16 and bfloat16 only on CUDA (see `kinds_for`).
    cache_kinds: tuple[str, ...] = (contract.APPEND, contract.SHARED, contract.CONCAT)

    def __init__(
        self, name: str, ort: Any, device: OrtDevice, copies: DeviceCopies, options: BackendOptions
    ) -> None:
        """Keep the imported package, where to run, and how to copy."""
        self.name = name
        self._ort, self._device, self._copies, self._options = ort, device, copies, options

    def kinds_for(self, cache_dtype: str) -> tuple[str, ...]:
        """`cache_kinds` in the order for a decoder whose cache has this dtype."""
        if cache_dtype in ("float16", BFLOAT16) and contract.SHARED in self.cache_kinds:
            rest = (kind for kind in self.cache_kinds if kind != contract.SHARED)
            return (contract.SHARED, *rest)
        return self.cache_kinds

    def open(self, graph: Path) -> OrtDeviceSession:
        """Load an ONNX file on the device.

        Raises:
            BackendError: the provider did not start, or left work to the CPU; or the graph is refused.
        """
        device = self._device_for(graph)
        settings = session_options(self._ort, self._options.threads, float8=is_float8(graph))
        # Versions that do not know it, ignore it.
        settings.add_session_config_entry(_RECORD, "1")
        providers = [(name, dict(values)) for name, values in device.providers]
        try:
            session = self._ort.InferenceSession(str(graph), settings, providers=providers, enable_fallback=0)
        # ONNX Runtime has a dozen exception classes with no common base of its own.
        except Exception as error:
            if device.provider != CPU and missing_library(self._ort, device.provider):
                raise self._not_started(device.provider) from error
            raise BackendError(f"{self.name} cannot load {graph}: {message_of(error)}") from error
        if device.provider not in session.get_providers():
            raise self._not_started(device.provider)
        opened = OrtDeviceSession(session, graph.stem, self)
        self._check_placement(opened, device.provider)
        return opened

    def allocate(self, elements: int, dtype: str) -> DeviceBuffer:
        """A flat buffer of zeros on the device.

        Rows behind the valid ones of a cache may be read under a mask, and 0 x NaN is NaN.
        """
        kind = storage_dtype(dtype)
        try:
            # A buffer of no values has no address, which binding wants.
            value = self._ort.OrtValue.ortvalue_from_shape_and_type(
                (max(1, elements),), kind.type, self._device.kind, self._device.index
            )
        except Exception as error:
            raise BackendError(
                f"{self.name} cannot allocate {elements * kind.itemsize} bytes on the device "
                f"({message_of(error)}): free memory there, or lower the ratio or max_new_tokens"
            ) from error
        self._copies.clear(int(value.data_ptr()), max(1, elements) * kind.itemsize)
        element = _ONNX_BFLOAT16 if dtype == BFLOAT16 else kind.type
        return DeviceBuffer(value, kind, elements, element)

    def upload(self, array: Array) -> View:
        """A copy of the array on the device."""
        view = View(self.allocate(array.size, array.dtype.name), array.shape)
        self.write(view, array)
        return view

    def write(self, view: View, array: Array) -> None:
        """Copy an array into a view of the same size and dtype."""
        flat = np.ascontiguousarray(array)
        buffer: DeviceBuffer = view.buffer
        if flat.dtype != buffer.dtype or flat.size != math.prod(view.shape):
            raise BackendError(
                f"cannot write {flat.size} values of {flat.dtype} into a view of {math.prod(view.shape)} of "
                f"{buffer.dtype}: give as many of the same dtype"
            )
        if flat.size:
            self._copies.copy(buffer.address(view), flat.ctypes.data, flat.nbytes)

    def copy(self, target: View, source: View) -> None:
        """Copy a view into another of the same size and dtype, on the device."""
        into, out = target.buffer, source.buffer
        elements = math.prod(source.shape)
        if into.dtype != out.dtype or elements != math.prod(target.shape):
            raise BackendError(
                f"cannot copy {elements} values of {out.dtype} into a view of {math.prod(target.shape)} of "
                f"{into.dtype}: give as many of the same dtype"
            )
        if elements:
            nbytes = elements * into.dtype.itemsize
            self._copies.copy(into.address(target), out.address(source), nbytes)

    def download(self, view: View) -> Array:
        """The values of a view as a new host array."""
        buffer: DeviceBuffer = view.buffer
        array: Array = np.empty(view.shape, buffer.dtype)
        source = buffer.address(view)
        if array.size:
            self._copies.copy(array.ctypes.data, source, array.nbytes)
        return array

    @property
    def device(self) -> OrtDevice:
        """Where sessions run."""
        return self._device

    def _device_for(self, graph: Path) -> OrtDevice:  # noqa: ARG002 - TensorRT's options depend on the graph
        """Providers and options for one graph."""
        return self._device

    def _not_started(self, provider: str) -> BackendError:
        cause = missing_library(self._ort, provider) or "its libraries load, so it is the GPU or its driver"
        return BackendError(
            f"{self.name} needs {provider}, which did not start ({cause}): {INSTALL}, or use another backend"
        )

    def _check_placement(self, session: OrtDeviceSession, provider: str) -> None:
        placement = session.placement
        if placement is None:
            return
        if not placement.get(provider):
            raise BackendError(
                f"{self.name} opened {session.name}, but {provider} took none of its nodes "
                f"({_listed(placement)}): use another backend for this bundle"
            )
        left = {name: n for name, n in placement.get(CPU, {}).items() if name in HEAVY_OPERATORS}
        if left and provider != CPU:
            nodes = ", ".join(f"{count} {name}" for name, count in sorted(left.items()))
            raise BackendError(
                f"{self.name} would leave {nodes} of {session.name} to the CPU, for which {provider} has no "
                "kernel in this precision: build the bundle with --precision fp16, or use another backend"
            )


class OrtDeviceSession:
    """One session on the device; `placement` counts nodes by provider and operator, None where this version
    of ONNX Runtime does not say."""

    def __init__(self, session: Any, name: str, backend: OrtDeviceBackend) -> None:
        """Wrap an InferenceSession; `name` is for messages."""
        self._session, self._backend, self.name = session, backend, name
        self.inputs = shapes_of(session.get_inputs())
        self.outputs = shapes_of(session.get_outputs())
        self.placement = placement_of(session)

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Run with host arrays, which ONNX Runtime copies to the device and back."""
        try:
            values = self._session.run(None, dict(feeds))
        except Exception as error:
            raise BackendError(f"{self._backend.name} failed in {self.name}: {message_of(error)}") from error
        return dict(zip(self.outputs, values, strict=True))

    def bind(self, inputs: Mapping[str, View], outputs: Mapping[str, View]) -> OrtDeviceBinding:
        """Bind device buffers by address."""
        binding = OrtDeviceBinding(self._session, self.name, self._backend)
        binding.update(inputs, outputs)
        return binding


class OrtDeviceBinding:
    """An IO binding that keeps the buffers alive whose addresses it holds.

    ONNX Runtime copies an input that the graph wants on the host when it is bound, not when it runs. Such
    inputs are bound again for every run, as their buffers may have been written to; all are, where the
    session does not say which (before 1.23).
    """

    def __init__(self, session: Any, name: str, backend: OrtDeviceBackend) -> None:
        """Bind nothing yet; `name` is for messages."""
        self._session, self._name, self._backend = session, name, backend
        self._binding = session.io_binding()
        self._host_inputs = host_inputs_of(session)
        self._inputs: dict[str, View] = {}
        self._outputs: dict[str, View] = {}

    def update(self, inputs: Mapping[str, View], outputs: Mapping[str, View]) -> None:
        """Bind these tensors anew."""
        self._inputs.update(inputs)
        self._outputs.update(outputs)
        self._bind(inputs, self._binding.bind_input)
        self._bind(outputs, self._binding.bind_output)

    def run(self) -> None:
        """Run with what is bound, and wait for the device."""
        again = {
            name: view
            for name, view in self._inputs.items()
            if self._host_inputs is None or name in self._host_inputs
        }
        self._bind(again, self._binding.bind_input)
        try:
            self._session.run_with_iobinding(self._binding)
        except Exception as error:
            raise BackendError(f"{self._backend.name} failed in {self._name}: {message_of(error)}") from error

    def _bind(self, tensors: Mapping[str, View], bind: Callable[..., None]) -> None:
        device = self._backend.device
        for name, view in tensors.items():
            address = view.buffer.address(view)
            try:
                bind(name, device.kind, device.index, view.buffer.element, view.shape, address)
            except Exception as error:
                raise BackendError(
                    f"{self._backend.name} cannot bind {name} of {self._name}: {message_of(error)}"
                ) from error


def host_inputs_of(session: Any) -> frozenset[str] | None:
    """Inputs that the graph reads on the host; None where this version of ONNX Runtime does not say."""
    if not hasattr(session, "get_input_memory_infos"):
        return None
    names = [tensor.name for tensor in session.get_inputs()]
    places = [info.name for info in session.get_input_memory_infos()]
    return frozenset(name for name, place in zip(names, places, strict=True) if place != "Cuda")


def placement_of(session: Any) -> dict[str, dict[str, int]] | None:
    """Nodes by provider and operator; None before ONNX Runtime 1.24, which does not say."""
    if not hasattr(session, "get_provider_graph_assignment_info"):
        return None
    placement: dict[str, dict[str, int]] = {}
    for part in session.get_provider_graph_assignment_info():
        own = placement.setdefault(part.ep_name, {})
        for node in part.get_nodes():
            own[node.op_type] = own.get(node.op_type, 0) + 1
    return placement


def missing_library(ort: Any, provider: str) -> str | None:
    """Why a provider cannot start: this build has none, or a library is missing; None where all load."""
    offered: Sequence[str] = ort.get_available_providers()
    if provider not in offered:
        return f"this onnxruntime {ort.__version__} offers {', '.join(offered)}"
    name = provider.removesuffix("ExecutionProvider").lower()
    folder = Path(ort.__file__).parent / "capi"
    library = folder / f"libonnxruntime_providers_{name}.so"
    try:
        # The provider looks for symbols of this one, which ONNX Runtime loads first too.
        ctypes.CDLL(str(folder / "libonnxruntime_providers_shared.so"), ctypes.RTLD_GLOBAL)
        ctypes.CDLL(str(library))
    except OSError as error:
        return str(error).replace(f"{library}: ", "")
    return None


def _listed(placement: Mapping[str, Mapping[str, int]]) -> str:
    parts = [f"{provider} has {sum(own.values())}" for provider, own in placement.items()]
    return ", ".join(parts) or "nothing was placed"
