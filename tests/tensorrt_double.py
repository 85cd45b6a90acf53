"""Stand-ins for the packages `tensorrt` and `cuda.bindings.runtime`, for machines without a GPU.

Device memory is numpy arrays under made-up addresses, so nothing outside an allocation can be touched, and a
freed one is gone. New memory, and scratch memory after every run, holds NaN. Work is done when it is waited
for, not when it is enqueued; pinned memory is read and written then, too. Engines are ONNX files run by ONNX
Runtime, with the profiles of an `EnginePlan`: a shape outside of them is refused. Graphs in
bfloat16 run as their twin in float32 whose every value is rounded (`calib.precision.emulate`); device memory
holds 16 bits.

Tests logic, sizes and lifetimes; not TensorRT's kernels, nor its own behaviour where it is not documented.
"""

# ruff: noqa: ARG002, N802, N815 - names and arguments are those of CUDA
from __future__ import annotations

import ctypes
import json
import types
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum, IntEnum
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime

from calib.precision.emulate import emulate_bfloat16, emulate_int4
from runtime import contract
from runtime.bundle import load_bundle
from runtime.contract import TensorSpec
from runtime.dtypes import BFLOAT16
from runtime.manifest import GraphInfo
from runtime.tensorrt.plan import Limits, plan_engines

OK, INVALID, NO_MEMORY, ILLEGAL, UNSUPPORTED = 0, 1, 2, 700, 900
_WORDS = {
    INVALID: b"invalid argument",
    NO_MEMORY: b"out of memory",
    ILLEGAL: b"an illegal memory access was encountered",
    UNSUPPORTED: b"operation not permitted when stream is capturing",
}
_DTYPES = {
    "tensor(float)": ("FLOAT", np.float32),
    "tensor(float16)": ("HALF", np.float16),
    "tensor(int64)": ("INT64", np.int64),
    "tensor(bool)": ("BOOL", np.bool_),
}
_SHAPE_TENSORS = (contract.NUM_KEEP, contract.GRID, contract.NUM_LOGITS_TO_KEEP)


class FaultError(Exception):
    """Device memory touched that is not allocated."""


@dataclass
class Device:
    """The memory, the stream, and what was done."""

    total: int = 1 << 30
    counts: Counter[str] = field(default_factory=Counter)
    to_host: list[int] = field(default_factory=list)
    blocks: dict[int, np.ndarray] = field(default_factory=dict)
    pinned: dict[int, np.ndarray] = field(default_factory=dict)
    recording: list[Callable[[], None]] | None = None
    unrecordable: bool = False
    coherent: bool = False
    """Copies from pageable memory read it when they are done, too: CUDA does not promise otherwise."""
    broken: int = OK
    last_error: int = OK
    _queue: list[Callable[[], None]] = field(default_factory=list)
    _next: int = 0x7_0000_0000

    @property
    def used(self) -> int:
        """Bytes allocated."""
        return sum(block.size for block in self.blocks.values())

    def allocate(self, nbytes: int) -> int | None:
        """Memory full of NaN; None where it does not fit."""
        if self.used + nbytes > self.total:
            return None
        address, self._next = self._next, self._next + -(-nbytes // 4096) * 4096 + 4096
        self.blocks[address] = np.full(nbytes, 0xFF, np.uint8)
        return address

    def at(self, address: int, nbytes: int) -> np.ndarray:
        """Bytes of the device.

        Raises:
            FaultError: they are not all in one allocation.
        """
        for base, block in self.blocks.items():
            if base <= address < base + block.size:
                if address + nbytes > base + block.size:
                    break
                return block[address - base : address - base + nbytes]
        raise FaultError(f"{nbytes} bytes at {address:#x}")

    def is_pinned(self, address: int) -> bool:
        return any(base <= address < base + block.size for base, block in self.pinned.items())

    def enqueue(self, work: Callable[[], None]) -> None:
        (self._queue if self.recording is None else self.recording).append(work)

    def drain(self) -> int:
        """Do what is enqueued; an illegal access breaks the device for good, as CUDA's does."""
        while self._queue and not self.broken:
            try:
                self._queue.pop(0)()
            except FaultError:
                self.broken = ILLEGAL
        return self.broken


def cudart(device: Device) -> types.ModuleType:
    """The module `cuda.bindings.runtime`."""
    module = types.ModuleType("cuda.bindings.runtime")
    for name, value in vars(_Cudart).items():
        if name.startswith("cuda"):
            setattr(module, name, getattr(_Cudart(device), name) if callable(value) else value)
    module.cudaMemcpyKind = _Kind  # type: ignore[attr-defined]
    module.cudaStreamCaptureMode = _Mode  # type: ignore[attr-defined]
    module.cudaDeviceAttr = _Attribute  # type: ignore[attr-defined]
    return module


class _Kind(IntEnum):
    cudaMemcpyHostToDevice = 1
    cudaMemcpyDeviceToHost = 2
    cudaMemcpyDeviceToDevice = 3


class _Mode(IntEnum):
    cudaStreamCaptureModeThreadLocal = 1


class _Attribute(IntEnum):
    cudaDevAttrPageableMemoryAccess = 88


class _Cudart:
    """Functions as in cuda-python 13: a tuple of the error and what comes back."""

    def __init__(self, device: Device) -> None:
        self._device = device

    def cudaStreamCreateWithFlags(self, flags: int) -> tuple[int, int]:
        assert flags == 1
        return OK, 17

    def cudaStreamDestroy(self, stream: int) -> tuple[int]:
        return (OK,)

    def cudaGetErrorString(self, error: int) -> tuple[int, bytes]:
        return OK, _WORDS[error]

    def cudaMemGetInfo(self) -> tuple[int, int, int]:
        return OK, self._device.total - self._device.used, self._device.total

    def cudaGetLastError(self) -> tuple[int]:
        self._device.last_error = OK
        return (OK,)

    def cudaGetDevice(self) -> tuple[int, int]:
        return OK, 0

    def cudaDeviceGetAttribute(self, attribute: int, device: int) -> tuple[int, int]:
        assert (attribute, device) == (_Attribute.cudaDevAttrPageableMemoryAccess, 0)
        return OK, int(self._device.coherent)

    def cudaMalloc(self, size: int) -> tuple[int, int | None]:
        if self._device.recording is not None:
            return UNSUPPORTED, None
        self._device.counts["malloc"] += 1
        address = self._device.allocate(size)
        self._device.last_error = NO_MEMORY if address is None else self._device.last_error
        return (NO_MEMORY, None) if address is None else (OK, address)

    def cudaFree(self, address: int) -> tuple[int]:
        error = self._device.drain()
        if self._device.blocks.pop(address, None) is None:
            return (INVALID,)
        self._device.counts["free"] += 1
        return (error,)

    def cudaMallocHost(self, size: int) -> tuple[int, int]:
        self._device.counts["malloc_host"] += 1
        memory = np.full(size, 0xFF, np.uint8)
        address = int(memory.ctypes.data)
        self._device.pinned[address] = memory
        return OK, address

    def cudaFreeHost(self, address: int) -> tuple[int]:
        return (INVALID if self._device.pinned.pop(address, None) is None else OK,)

    def cudaMemcpyAsync(self, dst: int, src: int, count: int, kind: int, stream: int) -> tuple[int]:
        device = self._device
        try:
            device.at(src if kind != _Kind.cudaMemcpyHostToDevice else dst, count)
            if kind == _Kind.cudaMemcpyDeviceToDevice:
                device.at(dst, count)
        except FaultError:
            return (INVALID,)
        if kind == _Kind.cudaMemcpyHostToDevice:
            device.counts["to_device"] += 1
            # Pageable memory is staged, so read before the call returns, where the device cannot read it.
            late = device.coherent or device.is_pinned(src)
            held = None if late else ctypes.string_at(src, count)

            def write() -> None:
                content = ctypes.string_at(src, count) if held is None else held
                device.at(dst, count)[:] = np.frombuffer(content, np.uint8)

            device.enqueue(write)
        elif kind == _Kind.cudaMemcpyDeviceToHost:
            device.to_host.append(count)
            device.enqueue(lambda: ctypes.memmove(dst, device.at(src, count).tobytes(), count) and None)
            if not device.is_pinned(dst):
                return (device.drain(),)
        else:
            device.counts["copy"] += 1
            if src < dst + count and dst < src + count:
                return (INVALID,)  # undefined in CUDA
            device.enqueue(lambda: np.copyto(device.at(dst, count), device.at(src, count)))
        return (device.broken,)

    def cudaMemcpy2DAsync(
        self, dst: int, dpitch: int, src: int, spitch: int, width: int, height: int, kind: int, stream: int
    ) -> tuple[int]:
        device = self._device
        assert kind == _Kind.cudaMemcpyDeviceToDevice
        if width > min(dpitch, spitch):
            return (INVALID,)
        device.counts["copy"] += 1

        def copy() -> None:
            for row in range(height):
                device.at(dst + row * dpitch, width)[:] = device.at(src + row * spitch, width)

        device.enqueue(copy)
        return (OK,)

    def cudaMemsetAsync(self, address: int, value: int, count: int, stream: int) -> tuple[int]:
        self._device.enqueue(lambda: self._device.at(address, count).fill(value))
        return (OK,)

    def cudaStreamSynchronize(self, stream: int) -> tuple[int]:
        return (UNSUPPORTED if self._device.recording is not None else self._device.drain(),)

    def cudaEventCreateWithFlags(self, flags: int) -> tuple[int, int]:
        self._device.counts["events"] += 1
        return OK, 23

    def cudaEventRecord(self, event: int, stream: int) -> tuple[int]:
        return (OK,)

    def cudaEventSynchronize(self, event: int) -> tuple[int]:
        return (UNSUPPORTED if self._device.recording is not None else self._device.drain(),)

    def cudaEventDestroy(self, event: int) -> tuple[int]:
        self._device.counts["events"] -= 1
        return (OK,)

    def cudaStreamBeginCapture(self, stream: int, mode: int) -> tuple[int]:
        assert self._device.recording is None
        self._device.recording = []
        return (OK,)

    def cudaStreamEndCapture(self, stream: int) -> tuple[int, Any]:
        work, self._device.recording = self._device.recording, None
        return UNSUPPORTED if self._device.unrecordable else OK, work

    def cudaGraphInstantiate(self, graph: Any, flags: int) -> tuple[int, Any]:
        self._device.counts["captured"] += 1
        return OK, tuple(graph)

    def cudaGraphDestroy(self, graph: Any) -> tuple[int]:
        return (OK,)

    def cudaGraphExecDestroy(self, made: Any) -> tuple[int]:
        self._device.counts["captured"] -= 1
        return (OK,)

    def cudaGraphLaunch(self, made: Any, stream: int) -> tuple[int]:
        self._device.counts["launched"] += 1
        for work in made:
            self._device.enqueue(work)
        return (self._device.broken,)


class TensorIOMode(Enum):
    INPUT = 1
    OUTPUT = 2


class ExecutionContextAllocationStrategy(Enum):
    STATIC = 0
    USER_MANAGED = 2


DataType = Enum("DataType", [*(name for name, _ in _DTYPES.values()), "BF16"])


class ILogger:
    """Base of loggers."""

    class Severity(Enum):
        INTERNAL_ERROR = 0
        ERROR = 1
        WARNING = 2

    def __init__(self) -> None:
        pass


def trt(device: Device) -> types.ModuleType:
    """The module `tensorrt`."""
    module = types.ModuleType("tensorrt")
    for part in (TensorIOMode, ExecutionContextAllocationStrategy, DataType, ILogger):
        setattr(module, part.__name__, part)
    module.Runtime = lambda logger: _Runtime(device, logger)  # type: ignore[attr-defined]
    module.__version__ = "10.3.0"  # type: ignore[attr-defined]
    return module


class _Runtime:
    def __init__(self, device: Device, logger: Any) -> None:
        self._device, self._logger = device, logger

    def deserialize_cuda_engine(self, content: Any) -> _Engine | None:
        try:
            plan = json.loads(bytes(content))
        except ValueError:
            self._logger.log(
                ILogger.Severity.ERROR, "Serialization assertion magicTagRead == kMAGIC_TAG failed."
            )
            return None
        return _Engine(self._device, self._logger, plan)


class _Engine:
    def __init__(self, device: Device, logger: Any, plan: dict[str, Any]) -> None:
        options = onnxruntime.SessionOptions()
        options.log_severity_level, options.intra_op_num_threads = 4, 1
        self.device, self.logger, self.plan = device, logger, plan
        self.session = onnxruntime.InferenceSession(plan["onnx"], options, providers=["CPUExecutionProvider"])
        self.brain = frozenset(plan.get("brain", ()))  # tensors in bfloat16, which the twin has in float32
        self.inputs = {tensor.name: tensor for tensor in self.session.get_inputs()}
        self.outputs = {tensor.name: tensor for tensor in self.session.get_outputs()}
        self.names = [*self.inputs, *self.outputs]
        self.shapes: dict[Any, dict[str, tuple[int, ...]]] = {}
        self.num_io_tensors = len(self.names)
        self.num_optimization_profiles = len(plan["profiles"])
        self.device_memory_size_v2 = int(plan["scratch"])

    def get_tensor_name(self, place: int) -> str:
        return self.names[place]

    def get_tensor_mode(self, name: str) -> TensorIOMode:
        return TensorIOMode.INPUT if name in self.inputs else TensorIOMode.OUTPUT

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        tensor = self.inputs.get(name) or self.outputs[name]
        return tuple(dim if isinstance(dim, int) else -1 for dim in tensor.shape)

    def get_tensor_dtype(self, name: str) -> Any:
        return DataType["BF16" if name in self.brain else _DTYPES[self._tensor(name).type][0]]

    def dtype(self, name: str) -> Any:
        """Of the values that ONNX Runtime computes with."""
        return _DTYPES[self._tensor(name).type][1]

    def stored(self, name: str) -> Any:
        """Of the values in device memory."""
        return np.dtype(np.uint16 if name in self.brain else self.dtype(name))

    def read(self, name: str, raw: np.ndarray) -> np.ndarray:
        """Values of bytes of the device."""
        values = raw.view(self.stored(name))
        if name in self.brain:
            return (values.astype(np.uint32) << 16).view(np.float32)
        return values.copy()

    def bytes_of(self, name: str, array: np.ndarray) -> np.ndarray:
        """The way back; what is stored in bfloat16 has been rounded by the graph."""
        flat = np.ascontiguousarray(array).reshape(-1)
        if name in self.brain:
            bits = flat.view(np.uint32)
            assert not (bits & 0xFFFF).any()
            flat = (bits >> 16).astype(np.uint16)
        return flat.view(np.uint8)

    def _tensor(self, name: str) -> Any:
        return self.inputs.get(name) or self.outputs[name]

    def is_shape_inference_io(self, name: str) -> bool:
        return name in _SHAPE_TENSORS

    def get_tensor_profile_shape(self, name: str, index: int) -> list[list[int]]:
        profile: list[list[int]] = self.plan["profiles"][index][name]
        return profile

    def get_tensor_profile_values(self, index: int, name: str) -> list[list[int]]:
        """The order of the binding, not that of its documentation."""
        assert name in _SHAPE_TENSORS
        least, most = self.plan["values"].get(name, (None, None))
        size = int(np.prod(self.get_tensor_shape(name)))
        return [] if least is None else [[least] * size, [most] * size, [most] * size]

    def create_execution_context(self, strategy: Any) -> _Context:
        assert strategy is ExecutionContextAllocationStrategy.USER_MANAGED
        self.device.counts["contexts"] += 1
        return _Context(self)

    def refuse(self, message: str) -> bool:
        self.logger.log(ILogger.Severity.ERROR, message)
        return False


class _Context:
    """As TensorRT's: what is set stays; nothing is checked late that TensorRT checks early."""

    def __init__(self, engine: _Engine) -> None:
        self._engine = engine
        self._profile: int | None = None
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}
        self._scratch = (0, 0)

    def set_optimization_profile_async(self, index: int, stream: int) -> bool:
        assert stream == 17
        if not 0 <= index < self._engine.num_optimization_profiles:
            raise RuntimeError("Error in set optimization profile async.")
        self._profile = index
        return True

    def set_device_memory(self, address: int, size: int) -> None:
        assert address % 256 == 0
        self._scratch = address, size

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        engine = self._engine
        assert self._profile is not None
        fixed = engine.get_tensor_shape(name)
        least, _, most = engine.plan["profiles"][self._profile].get(name, (fixed, fixed, fixed))
        if len(shape) != len(least) or any(
            not low <= dim <= high for low, dim, high in zip(least, shape, most, strict=True)
        ):
            return engine.refuse(f"Static dimension mismatch while setting input shape for {name}.")
        self._shapes[name] = tuple(shape)
        return True

    def set_tensor_address(self, name: str, address: int) -> bool:
        # "The pointer must have at least 256-byte alignment" (NvInferRuntime.h); host memory is numpy's own.
        assert name in _SHAPE_TENSORS or address % 256 == 0, name
        self._addresses[name] = address
        return address != 0

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        if name in self._engine.inputs:
            return self._shapes[name]
        values = {own: self._value(own) for own in _SHAPE_TENSORS if own in self._engine.inputs}
        key = tuple(sorted(self._shapes.items())), tuple((own, bytes(each)) for own, each in values.items())
        known = self._engine.shapes
        if key not in known:
            feeds = {
                own: values.get(own, np.zeros(self._shapes[own], self._engine.dtype(own)))
                for own in self._engine.inputs
            }
            made = self._engine.session.run(None, feeds)
            known[key] = {own: each.shape for own, each in zip(self._engine.outputs, made, strict=True)}
        return known[key][name]

    def execute_async_v3(self, stream: int) -> bool:
        engine, device = self._engine, self._engine.device
        assert stream == 17
        if self._scratch[1] < engine.device_memory_size_v2:
            return engine.refuse("The device memory set is too small.")
        absent = [name for name in engine.names if name not in self._addresses]
        if absent:
            return engine.refuse(f"Address is not set for {absent[0]}.")
        values = {own: self._value(own) for own in _SHAPE_TENSORS if own in engine.inputs}
        for name, value in values.items():
            least, most = engine.plan["values"].get(name, (0, 1 << 40))
            if (value < least).any() or (value > most).any():
                return engine.refuse(f"Shape tensor {name} is outside of its profile.")
        device.counts["enqueued"] += 1
        shapes, addresses, scratch = dict(self._shapes), dict(self._addresses), self._scratch
        sizes = {name: self.get_tensor_shape(name) for name in engine.outputs}

        def run() -> None:
            feeds = dict(values)
            for name in engine.inputs:
                if name not in values:
                    count = int(np.prod(shapes[name])) * engine.stored(name).itemsize
                    raw = device.at(addresses[name], max(count, 1))[:count]
                    feeds[name] = engine.read(name, raw).reshape(shapes[name])
            outputs = engine.session.run(None, feeds)
            if scratch[1]:
                device.at(*scratch).fill(0xFF)
            for name, array in zip(engine.outputs, outputs, strict=True):
                assert array.shape == sizes[name]
                flat = engine.bytes_of(name, array)
                device.at(addresses[name], max(flat.size, 1))[: flat.size] = flat

        device.enqueue(run)
        return True

    def _value(self, name: str) -> np.ndarray:
        dtype, shape = np.dtype(self._engine.dtype(name)), self._shapes[name]
        count = int(np.prod(shape)) * dtype.itemsize
        content = ctypes.string_at(self._addresses[name], count)
        return np.frombuffer(content, dtype).reshape(shape).copy()


def write_engines(bundle: Path, folder: Path, limits: Limits | None = None, scratch: int = 4096) -> Path:
    """Engines for the double, with the profiles that the real ones are built with; each graph needs another
    amount of scratch memory."""
    manifest = load_bundle(bundle).manifest
    plan = plan_engines(manifest, limits or Limits(max_new_tokens=600, unpruned=True), 1 << 30)
    folder.mkdir(parents=True, exist_ok=True)
    for number, graph in enumerate(plan.graphs):
        record = {
            "onnx": str(_runnable(bundle / graph.file, folder)),
            "brain": [spec.name for spec in _specs(manifest.graphs[graph.graph]) if spec.dtype == BFLOAT16],
            "profiles": [
                {name: own.points for name, own in profile.items() if not own.values}
                for profile in graph.profiles
            ],
            "values": {
                name: (min(own.minimum), max(own.maximum))
                for name, own in graph.profiles[0].items()
                if own.values
            },
            "scratch": scratch * (number + 1),
        }
        (folder / f"{Path(graph.file).stem}.engine").write_text(json.dumps(record))
    return folder


def _specs(info: GraphInfo) -> tuple[TensorSpec, ...]:
    return (*info.inputs, *info.outputs)


def _runnable(graph: Path, folder: Path) -> Path:
    """The graph, or its twin where ONNX Runtime has no operators for it."""
    model = ir.load(graph)
    if not emulate_bfloat16(model) + emulate_int4(model):
        return graph
    twin = folder / graph.name
    ir.save(ir.external_data.load_to_model(model), twin)
    return twin


@contextmanager
def installed(device: Device, engines: Path, patch: Any) -> Iterator[None]:
    """With the double in place of the packages, and its engines in place of this device's."""
    import sys

    import runtime.backends.tensorrt as backend

    root, bindings = types.ModuleType("cuda"), types.ModuleType("cuda.bindings")
    modules = {"cuda": root, "cuda.bindings": bindings, "cuda.bindings.runtime": cudart(device)}
    with patch.context() as context:
        for name, module in {**modules, "tensorrt": trt(device)}.items():
            context.setitem(sys.modules, name, module)
        context.setattr(backend, "_engine_of_device", lambda graph: engines / f"{graph.stem}.engine")
        yield
