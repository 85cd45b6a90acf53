"""What runs in a process of its own, as TensorRT for RTX may abort it: parse, infer shapes, build.

Called by file name with a job (JSON) and a file for results, one JSON object per line, written as they come:
what is in it when the process dies is what was done.
"""

from __future__ import annotations

import importlib
import json
import sys
import time
from pathlib import Path
from typing import Any

__all__ = ["main"]


class _Child:
    def __init__(self, job: dict[str, Any], results: Path) -> None:
        self.trt: Any = importlib.import_module("tensorrt_rtx")
        self.job = job
        self.results = results
        self.errors: list[str] = []
        self.log = _logger(self.trt, self.errors)
        self.builder = self.trt.Builder(self.log)

    def say(self, **what: Any) -> None:
        with self.results.open("a") as file:
            file.write(json.dumps(what) + "\n")

    def parse(self, file: str) -> tuple[Any, list[dict[str, str]]]:
        """(network, errors); the graph's own path is what external weights are relative to."""
        self.errors.clear()
        network = self.builder.create_network(0)
        parser = self.trt.OnnxParser(network, self.log)
        if parser.parse(Path(file).read_bytes(), self.job["path"]):
            return network, []
        found = [parser.get_error(at) for at in range(parser.num_errors)]
        return None, [
            {"op": error.node_operator(), "node": error.node_name(), "message": error.desc()}
            for error in found
        ]

    def run(self) -> None:
        self.say(stage="start", version=self.trt.__version__)
        self.say(stage="parsing")
        began = time.perf_counter()
        network, errors = self.parse(self.job["graph"])
        self.say(stage="parsed", errors=errors, seconds=time.perf_counter() - began)
        if network is None:
            return
        for point, file in self.job["points"].items():
            self.say(stage="inferring", point=point)
            fixed, errors = self.parse(file)
            outputs = [fixed.get_output(at) for at in range(fixed.num_outputs)] if fixed is not None else []
            shapes = {output.name: list(output.shape) for output in outputs}
            self.say(stage="inferred", point=point, errors=errors, logged=self.errors[:3], shapes=shapes)
        inputs = [network.get_input(at) for at in range(network.num_inputs)]
        missing = [
            tensor.name
            for tensor in inputs
            if tensor.name not in self.job["profiles"]
            and (tensor.is_shape_tensor or -1 in tuple(tensor.shape))
        ]
        self.say(stage="inputs", missing=missing)
        if not missing:
            for capability in self.job["capabilities"]:
                self.build(network, inputs, capability)
        self.say(stage="done")

    def build(self, network: Any, inputs: list[Any], capability: str) -> None:
        self.say(stage="building", capability=capability)
        self.errors.clear()
        config = self.builder.create_builder_config()
        config.num_compute_capabilities = 1
        config.set_compute_capability(getattr(self.trt.ComputeCapability, capability), 0)
        profile = self.builder.create_optimization_profile()
        used = False
        for tensor in inputs:
            points = self.job["profiles"].get(tensor.name)
            if points is not None and tensor.is_shape_tensor:
                profile.set_shape_input(tensor.name, *points)
            elif points is not None and -1 in tuple(tensor.shape):
                profile.set_shape(tensor.name, *points)
            else:
                continue
            used = True
        if used:
            config.add_optimization_profile(profile)
        began = time.perf_counter()
        engine = self.builder.build_serialized_network(network, config)
        self.say(
            stage="built",
            capability=capability,
            seconds=time.perf_counter() - began,
            bytes=engine.nbytes if engine is not None else None,
            logged=self.errors[:3],
        )


def _logger(trt: Any, errors: list[str]) -> Any:
    """A logger that keeps errors; its base class is known only here, hence no class statement."""

    def log(_self: Any, severity: Any, message: str) -> None:
        # without a GPU it complains about the missing driver, and goes on
        if str(severity).endswith("ERROR") and "CUDA driver" not in message:
            errors.append(message)

    def init(self: Any) -> None:
        trt.ILogger.__init__(self)

    return type("Log", (trt.ILogger,), {"__init__": init, "log": log})()


def main(arguments: list[str]) -> int:
    """Work off the job in the file `arguments[0]`, results go to `arguments[1]`."""
    _Child(json.loads(Path(arguments[0]).read_text()), Path(arguments[1])).run()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
