"""A stand-in for onnxruntime-gpu and libcudart: device memory with bounds, computed by ONNX Runtime's CPU.

Tests the logic of the backends `ort-cuda` and `ort-tensorrt`: which options and addresses they pass, what
they copy and when. It says nothing about CUDA's kernels, streams or speed.
"""

from __future__ import annotations

import ctypes
import weakref
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime
import pytest

from runtime.backends import ort_cuda, ort_device

__all__ = ["FakeCudart", "FakeOrt", "Heap", "install"]

CPU = "CPUExecutionProvider"
BFLOAT16 = 16  # its number in ONNX


class Value:
    """An OrtValue on the device: its memory is the host's, but only copies through the heap may touch it."""

    def __init__(self, heap: Heap, shape: Sequence[int], dtype: Any) -> None:
        self.memory = np.full(int(np.prod(shape)) * np.dtype(dtype).itemsize, 0xCD, np.uint8)
        heap.values.add(self)
        heap.allocations += 1

    def data_ptr(self) -> int:
        return int(self.memory.ctypes.data)


class Heap:
    """What is allocated on the device, and what was copied."""

    def __init__(self) -> None:
        self.values: weakref.WeakSet[Value] = weakref.WeakSet()
        self.allocations = 0
        self.copied: Counter[str] = Counter()

    @property
    def nbytes(self) -> int:
        return sum(value.memory.nbytes for value in self.values)

    def holds(self, address: int, nbytes: int) -> bool:
        """Whether so many bytes from there on are the device's; reaching past an allocation is an error."""
        for value in self.values:
            first, size = value.data_ptr(), value.memory.nbytes
            if first <= address < first + size:
                assert address + nbytes <= first + size, "past the end of a device buffer"
                return True
        return False


class FakeCudart:
    """The functions of libcudart that are called; attributes can be set on them as on ctypes' own."""

    def __init__(self, heap: Heap, total: int = 8 << 30) -> None:
        self.heap, self.fails, self.unfinished = heap, 0, False

        def memcpy(target: int, source: int, nbytes: int, kind: int) -> int:
            sides = ("d" if heap.holds(source, nbytes) else "h") + (
                "d" if heap.holds(target, nbytes) else "h"
            )
            assert sides != "hh", "a copy between two host addresses"
            assert kind == 4, "cudaMemcpyDefault"
            ctypes.memmove(target, source, nbytes)
            heap.copied[sides] += nbytes
            self.unfinished = True
            return self.fails

        def memset(address: int, value: int, nbytes: int) -> int:
            assert heap.holds(address, nbytes), "not an address of the device"
            ctypes.memset(address, value, nbytes)
            self.unfinished = True
            return self.fails

        def synchronize(stream: int | None) -> int:
            assert stream is None
            self.unfinished = False
            return 0

        def memory(free: Any, all_: Any) -> int:
            free._obj.value, all_._obj.value = total - heap.nbytes, total
            return self.fails

        def message(code: int) -> bytes:
            return b"no CUDA-capable device is detected" if code == 100 else b"unknown error"

        self.cudaMemcpy, self.cudaMemset, self.cudaStreamSynchronize = memcpy, memset, synchronize
        self.cudaMemGetInfo, self.cudaGetErrorString = memory, message


@dataclass
class FakeOrt:
    """The module: `offered` providers, those that `start`, and operators `left` to the CPU.

    `host_inputs` are read when they are bound, as ONNX Runtime does with what a graph wants on the host. An
    old version does not `tell` which these are, nor who runs what.
    `sessions` holds the arguments of every one that was made.
    """

    heap: Heap
    offered: tuple[str, ...] = ("TensorrtExecutionProvider", "CUDAExecutionProvider", CPU)
    start: tuple[str, ...] = ("TensorrtExecutionProvider", "CUDAExecutionProvider")
    left: tuple[str, ...] = ()
    tells: bool = True
    host_inputs: tuple[str, ...] = ("num_logits_to_keep", "num_keep")
    sessions: list[dict[str, Any]] = field(default_factory=list)
    __version__: str = "1.31.1"
    __file__: str = "/nowhere/onnxruntime/__init__.py"

    def get_available_providers(self) -> list[str]:
        return list(self.offered)

    @property
    def SessionOptions(self) -> Any:  # noqa: N802 - ONNX Runtime's own name
        return onnxruntime.SessionOptions

    @property
    def OrtValue(self) -> Any:  # noqa: N802
        def make(shape: Sequence[int], dtype: Any, kind: str, index: int) -> Value:
            assert (kind, index) == ("cuda", 0)
            return Value(self.heap, shape, dtype)

        return SimpleNamespace(ortvalue_from_shape_and_type=make)

    def InferenceSession(  # noqa: N802
        self, path: str, options: Any, providers: Sequence[tuple[str, dict[str, str]]], enable_fallback: int
    ) -> FakeSession:
        assert enable_fallback == 0
        for _, values in providers:
            assert all(isinstance(value, str) for value in values.values())
        self.sessions.append({"path": path, "providers": list(providers)})
        real = onnxruntime.InferenceSession(path, options, providers=[CPU])
        return FakeSession(self, real, [name for name, _ in providers])


class FakeSession:
    """A CPU session that takes device addresses and says it runs elsewhere."""

    def __init__(self, ort: FakeOrt, real: Any, asked: list[str]) -> None:
        self.ort, self.real = ort, real
        self.providers = [name for name in asked if name in ort.start] + [CPU]
        for name in ("get_inputs", "get_outputs", "run"):
            setattr(self, name, getattr(real, name))
        if ort.tells:
            self.get_provider_graph_assignment_info = self.placement
            self.get_input_memory_infos = self.places

    def get_providers(self) -> list[str]:
        return self.providers

    def placement(self) -> list[Any]:
        nodes = [node for part in self.real.get_provider_graph_assignment_info() for node in part.get_nodes()]
        parts = []
        for provider, left in ((self.providers[0], False), (CPU, True)):
            own = [node for node in nodes if (node.op_type in self.ort.left) == left]
            parts.append(SimpleNamespace(ep_name=provider, get_nodes=lambda own=own: own))
        return [part for part in parts if part.get_nodes()]

    def places(self) -> list[Any]:
        names = [tensor.name for tensor in self.real.get_inputs()]
        return [SimpleNamespace(name="Cpu" if name in self.ort.host_inputs else "Cuda") for name in names]

    def io_binding(self) -> FakeBinding:
        return FakeBinding(self)

    def run_with_iobinding(self, binding: FakeBinding) -> None:
        self.real.run_with_iobinding(binding.real)


class FakeBinding:
    """Checks every address against the heap."""

    def __init__(self, session: FakeSession) -> None:
        self.heap, self.host = session.ort.heap, session.ort.host_inputs
        self.real, self.held = session.real.io_binding(), {}

    def bind_input(self, name: str, kind: str, index: int, dtype: Any, shape: Any, address: int) -> None:
        nbytes = self._check(kind, index, dtype, shape, address)
        if name in self.host:
            self.held[name] = ctypes.create_string_buffer(ctypes.string_at(address, nbytes), nbytes)
            address = ctypes.addressof(self.held[name])
        self.real.bind_input(name, "cpu", 0, dtype, shape, address)

    def bind_output(self, name: str, kind: str, index: int, dtype: Any, shape: Any, address: int) -> None:
        self._check(kind, index, dtype, shape, address)
        self.real.bind_output(name, "cpu", 0, dtype, shape, address)

    def _check(self, kind: str, index: int, dtype: Any, shape: Any, address: int) -> int:
        assert (kind, index) == ("cuda", 0)
        itemsize = 2 if dtype == BFLOAT16 else np.dtype(dtype).itemsize
        nbytes = int(np.prod(shape, dtype=np.int64)) * itemsize
        assert nbytes == 0 or self.heap.holds(address, nbytes), "not an address of the device"
        return nbytes


def install(monkeypatch: pytest.MonkeyPatch, **settings: Any) -> FakeOrt:
    """Put the double where the backends look for onnxruntime and libcudart, with all libraries in place."""
    ort = FakeOrt(Heap(), **settings)
    monkeypatch.setattr(ort_cuda, "require", lambda *_, **__: ort)
    monkeypatch.setattr(ort_cuda, "load_cudart", lambda: FakeCudart(ort.heap))
    for module in (ort_cuda, ort_device):
        monkeypatch.setattr(module, "missing_library", _missing)
    return ort


def _missing(ort: FakeOrt, provider: str) -> str | None:
    if provider not in ort.offered:
        return f"this onnxruntime {ort.__version__} offers {', '.join(ort.offered)}"
    return None
