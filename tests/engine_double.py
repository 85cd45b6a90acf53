"""A stand-in for the `tensorrt` module that builds "engines": what the builder asks of it, recorded.

It reads inputs from the ONNX file, holds profiles to what TensorRT documents, and writes an engine that names
what it was built with. Nothing of it says anything about TensorRT itself.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from enum import Enum
from types import ModuleType
from typing import Any

import onnx

__all__ = ["DAMAGED", "OF_ANOTHER_DEVICE", "SHAPE_TENSORS", "fake_tensorrt"]

SHAPE_TENSORS = ("num_keep", "num_logits_to_keep", "grid")
DAMAGED, OF_ANOTHER_DEVICE = b"damaged", b"of another device"
"""Timing caches that TensorRT makes nothing of, and that it does not attach."""


@dataclass
class _Tensor:
    name: str
    shape: tuple[int, ...]
    is_shape_tensor: bool


@dataclass
class _Network:
    flags: int
    inputs: list[_Tensor] = field(default_factory=list)

    @property
    def num_inputs(self) -> int:
        return len(self.inputs)

    def get_input(self, at: int) -> _Tensor:
        return self.inputs[at]


@dataclass
class _Error:
    text: str

    def desc(self) -> str:
        return self.text

    def node_name(self) -> str:
        return "/tower/NonZero_3"

    def node_operator(self) -> str:
        return "NonZero"


@dataclass
class _Profile:
    shapes: dict[str, Any] = field(default_factory=dict)
    values: dict[str, Any] = field(default_factory=dict)
    takes: bool = True

    def set_shape(self, name: str, low: Any, usual: Any, high: Any) -> None:
        self.shapes[name] = [low, usual, high]

    def set_shape_input(self, name: str, low: Any, usual: Any, high: Any) -> None:
        self.values[name] = [low, usual, high]

    def __bool__(self) -> bool:
        return self.takes


class _Cache:
    def __init__(self, content: bytes) -> None:
        self.content = content

    def serialize(self) -> bytes:
        return self.content + b"+"


class _Config:
    def __init__(self) -> None:
        self.pools: dict[str, int] = {}
        self.builder_optimization_level = -1
        self.profiles: list[_Profile] = []
        self.cache: _Cache | None = None
        self.flags = {"TF32"}

    def clear_flag(self, flag: Enum) -> None:
        self.flags.remove(flag.name)

    def set_memory_pool_limit(self, pool: Enum, size: int) -> None:
        self.pools[pool.name] = size

    def create_timing_cache(self, content: bytes) -> _Cache | None:
        return None if content == DAMAGED else _Cache(content)

    def set_timing_cache(self, cache: _Cache, ignore_mismatch: bool) -> bool:
        assert not ignore_mismatch
        if cache.content == OF_ANOTHER_DEVICE:
            return False
        self.cache = cache
        return True

    def get_timing_cache(self) -> _Cache | None:
        return self.cache

    def add_optimization_profile(self, profile: _Profile) -> int:
        self.profiles.append(profile)
        return len(self.profiles) - 1


def fake_tensorrt(version: str = "10.3.0", *, fails: str = "", name: str = "tensorrt") -> Any:
    """A module; `fails` is `parse`, `build`, `profile` or `interrupt`, and where it does so."""
    module = ModuleType(name)
    module.built = []  # type: ignore[attr-defined]

    class Logger:
        def __init__(self) -> None:
            pass

    class Parser:
        num_errors = 1

        def __init__(self, network: _Network, _log: Any) -> None:
            self.network = network

        def parse_from_file(self, path: str) -> bool:
            if fails == "parse":
                return False
            for value in onnx.load(path, load_external_data=False).graph.input:
                dims = value.type.tensor_type.shape.dim
                shape = tuple(dim.dim_value if dim.HasField("dim_value") else -1 for dim in dims)
                self.network.inputs.append(_Tensor(value.name, shape, value.name in SHAPE_TENSORS))
            return True

        def get_error(self, _at: int) -> _Error:
            return _Error("this operator is\n not supported")

    class Builder:
        def __init__(self, log: Any) -> None:
            self.log = log

        def create_network(self, flags: int) -> _Network:
            return _Network(flags)

        def create_builder_config(self) -> _Config:
            return _Config()

        def create_optimization_profile(self) -> _Profile:
            return _Profile(takes=fails != "profile")

        def build_serialized_network(self, network: _Network, config: _Config) -> bytes | None:
            module.built.append((network, config))  # type: ignore[attr-defined]
            if fails == "interrupt" and len(module.built) > 1:
                raise KeyboardInterrupt
            if fails == "build":
                self.log.log("Severity.ERROR", "Could not allocate 1 GiB\nfor tactic 7")
                return None
            return json.dumps([network.flags, [tensor.name for tensor in network.inputs]]).encode()

    module.__version__ = version  # type: ignore[attr-defined]
    module.ILogger = Logger  # type: ignore[attr-defined]
    module.Builder = Builder  # type: ignore[attr-defined]
    module.OnnxParser = Parser  # type: ignore[attr-defined]
    module.BuilderFlag = Enum("BuilderFlag", ["TF32"])  # type: ignore[attr-defined]
    module.MemoryPoolType = Enum("MemoryPoolType", ["WORKSPACE"])  # type: ignore[attr-defined]
    flag = Enum("NetworkDefinitionCreationFlag", {"STRONGLY_TYPED": 1})
    flag.__int__ = lambda _self: 1  # type: ignore[attr-defined]
    module.NetworkDefinitionCreationFlag = flag  # type: ignore[attr-defined]
    return module
