"""Build one engine with TensorRT's Python package, or with `tensorrt_rtx`, which has the same names.

Networks are strongly typed: precisions stand in the ONNX file, and no builder flag changes one; TF32, which
would, is off. Weights are read from their file by the parser, so that a graph may have more than 2 GB.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runtime.errors import EngineError
from runtime.tensorrt.plan import EnginePlan, GraphPlan, InputProfile

__all__ = ["EngineBuilder"]

_ONE_LINE = 400


@dataclass
class EngineBuilder:
    """Builds the engines of a plan, one after the other, with a timing cache that they share.

    Attributes:
        trt: the module `tensorrt` or `tensorrt_rtx`.
        plan: what to build.
        timings: content of the timing cache, b"" for a new one; grows with every build.
        configure: called with each builder configuration last, for what only one device has.
    """

    trt: Any
    plan: EnginePlan
    timings: bytes = b""
    configure: Callable[[Any], None] | None = None

    def build(self, onnx: Path, graph: GraphPlan, target: Path) -> int:
        """Write the engine of a graph to a file, and return its size.

        TensorRT's own copy is written: another one of gigabytes is what a board may lack just then.

        Raises:
            EngineError: the parser refuses the graph, an input has no profile, or no engine can be built.
            OSError: the file cannot be written.
        """
        errors: list[str] = []
        log = _logger(self.trt, errors)
        builder = self.trt.Builder(log)
        network = builder.create_network(self._network_flags())
        self._parse(network, log, onnx)
        config = builder.create_builder_config()
        config.set_memory_pool_limit(self.trt.MemoryPoolType.WORKSPACE, self.plan.workspace)
        config.builder_optimization_level = self.plan.level
        # On by default, and of 10 bits: float32 in a graph is float32, in fp16 bundles what needs to be.
        config.clear_flag(self.trt.BuilderFlag.TF32)
        timed = self.trt.__name__ == "tensorrt"  # TensorRT for RTX times nothing, and warns about a cache
        if timed:
            self._use_timings(config)
        for number, sizes in enumerate(graph.profiles):
            config.add_optimization_profile(self._profile(builder, network, graph, number, sizes))
        if self.configure is not None:
            self.configure(config)
        engine = builder.build_serialized_network(network, config)
        if engine is None:
            why = _one_line(errors[0]) if errors else "no reason given"
            raise EngineError(
                f"TensorRT built no engine of {graph.graph} ({why}): free memory and try again, or give "
                "smaller limits"
            )
        with target.open("wb") as stream:
            size = stream.write(engine)
        if timed:
            cache = config.get_timing_cache()
            self.timings = b"" if cache is None else bytes(cache.serialize())
        return size

    def _use_timings(self, config: Any) -> None:
        """Attach the timing cache; TensorRT takes none of another version or device."""
        cache = config.create_timing_cache(self.timings)
        if cache is not None and config.set_timing_cache(cache, ignore_mismatch=False):
            return
        warnings.warn(
            "TensorRT does not take the timing cache, which is of another device or version, or damaged: "
            "this build begins a new one, and takes as long as a first",
            stacklevel=3,
        )
        config.set_timing_cache(config.create_timing_cache(b""), ignore_mismatch=False)

    def _network_flags(self) -> int:
        """Strongly typed, which is a flag in TensorRT 10 and the only way in 11 and in TensorRT for RTX."""
        version = str(self.trt.__version__)
        if self.trt.__name__ != "tensorrt" or int(version.split(".")[0]) >= 11:
            return 0
        return 1 << int(self.trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)

    def _parse(self, network: Any, log: Any, onnx: Path) -> None:
        parser = self.trt.OnnxParser(network, log)
        if parser.parse_from_file(str(onnx)):
            return
        error = parser.get_error(0)
        node = error.node_name() or "without a name"
        raise EngineError(
            f"TensorRT does not take {onnx.name}: node {node} ({error.node_operator() or 'no operator'}): "
            f"{_one_line(error.desc())}: build the bundle for this target with `python -m export.build`"
        )

    def _profile(
        self, builder: Any, network: Any, graph: GraphPlan, number: int, sizes: dict[str, InputProfile]
    ) -> Any:
        profile = builder.create_optimization_profile()
        for at in range(network.num_inputs):
            tensor = network.get_input(at)
            shaped = tensor.is_shape_tensor
            if not shaped and -1 not in tuple(tensor.shape):
                continue
            given = sizes.get(tensor.name)
            if given is None or given.values != shaped:
                kind = "a shape tensor" if shaped else f"dims {list(tensor.shape)}"
                raise EngineError(
                    f"input {tensor.name} of {graph.graph} has {kind}, for which the plan has no profile: "
                    "rebuild the bundle with `python -m export.build`"
                )
            (profile.set_shape_input if shaped else profile.set_shape)(tensor.name, *given.points)
        if not profile:
            raise EngineError(
                f"TensorRT does not take profile {graph.profile_names[number]} of {graph.graph}: give "
                "other limits"
            )
        return profile


def _one_line(text: str) -> str:
    return "; ".join(line.strip() for line in text.splitlines() if line.strip())[:_ONE_LINE]


def _logger(trt: Any, errors: list[str]) -> Any:
    """A logger that keeps errors; its base class is known only here, hence no class statement."""

    def log(_self: Any, severity: Any, message: str) -> None:
        # Without a GPU it complains about the missing driver, and goes on.
        if str(severity).endswith("ERROR") and "CUDA driver" not in message:
            errors.append(message)

    def init(self: Any) -> None:
        trt.ILogger.__init__(self)

    return type("EngineLog", (trt.ILogger,), {"__init__": init, "log": log})()
