"""ONNX Runtime's TensorRT provider: `--backend ort-tensorrt` (docs/gpu.md).

Its profiles are those of `runtime.tensorrt.plan`: an engine takes what those of `python -m runtime.engine`
take. The provider runs one profile per engine, so prefill and decode share theirs. Engines and the
timing cache lie in `BUNDLE/engines/ort-tensorrt/<graph>/`; what TensorRT does not take goes to CUDA, and a
graph of which it takes nothing is refused.

Limits other than the defaults are read from `BUNDLE/engines/ort-tensorrt/plan.json`, an `EnginePlan`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from runtime import contract
from runtime.backend import Backend, BackendOptions
from runtime.backends.cudart import DeviceCopies
from runtime.backends.ort_cuda import CUDA_OPTIONS, CUDA_PROVIDER, gpu_package
from runtime.backends.ort_device import OrtDevice, OrtDeviceBackend, OrtDeviceSession
from runtime.bundle import load_bundle
from runtime.errors import BackendError
from runtime.tensorrt.plan import EnginePlan, GraphPlan, InputProfile, Limits, plan_engines

__all__ = [
    "ENGINES",
    "PLAN_FILE",
    "TENSORRT_PROVIDER",
    "WORKSPACE",
    "OrtTensorrtBackend",
    "create",
    "joined_profile",
    "provider_options",
]

TENSORRT_PROVIDER = "TensorrtExecutionProvider"
ENGINES = "engines/ort-tensorrt"
PLAN_FILE = f"{ENGINES}/plan.json"
WORKSPACE = 2 << 30
"""Bytes of scratch memory of the builder, unless the plan file says otherwise."""

_POINTS = ("min", "opt", "max")


def create(options: BackendOptions) -> Backend:
    """Make the backend.

    Raises:
        BackendError: onnxruntime-gpu is not installed, a library of CUDA or TensorRT is missing, or there is
        no GPU.
    """
    ort, copies = gpu_package("ort-tensorrt", TENSORRT_PROVIDER)
    return OrtTensorrtBackend(ort, copies, options)


class OrtTensorrtBackend(OrtDeviceBackend):
    """TensorRT first, CUDA for what it leaves; an engine is built when its graph is first opened."""

    # GroupQueryAttention, which "shared" is made of, is no operator of TensorRT.
    cache_kinds: tuple[str, ...] = (contract.APPEND,)

    def __init__(self, ort: Any, copies: DeviceCopies, options: BackendOptions) -> None:
        """Keep the imported package and how to copy; the provider's options come with each graph."""
        device = OrtDevice("cuda", 0, ((TENSORRT_PROVIDER, {}), (CUDA_PROVIDER, CUDA_OPTIONS)))
        super().__init__("ort-tensorrt", ort, device, copies, options)
        self._plans: dict[Path, EnginePlan] = {}

    def open(self, graph: Path) -> OrtDeviceSession:
        """Build or load the engine of a graph of a bundle.

        Raises:
            BackendError: as of any device; also where the plan cannot be made, nothing can be written beside
            the bundle, or TensorRT took no node.
        """
        session = super().open(graph)
        # Before 1.24 the session does not say who runs what, but an engine that was built is a file.
        if session.placement is None and not any(_folder(graph).glob("*.engine")):
            raise BackendError(
                f"ort-tensorrt opened {graph.stem}, but TensorRT built no engine in {_folder(graph)}: use "
                "--backend ort-cuda for this bundle"
            )
        return session

    def _device_for(self, graph: Path) -> OrtDevice:
        root = graph.parent.parent
        if root not in self._plans:
            self._plans[root] = _plan_of(root)
        folder = _folder(graph)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise BackendError(
                f"ort-tensorrt keeps its engines in {folder}, which cannot be made ({error}): make the "
                "bundle writable, or copy it to where it is"
            ) from error
        plan = self._plans[root]
        options = provider_options(_planned(plan, root, graph), plan.workspace, folder)
        (name, _), cuda = self._device.providers
        return replace(self._device, providers=((name, options), cuda))


def provider_options(graph: GraphPlan, workspace: int, folder: Path) -> dict[str, str]:
    """Options of the TensorRT provider for one graph; what is not here is its default.

    Args:
        graph: the plan of the graph.
        workspace: bytes of scratch memory of the builder.
        folder: where engines and timing cache are kept.
    """
    profile = joined_profile(graph.profiles)
    shapes = {
        f"trt_profile_{name}_shapes": ",".join(
            f"{tensor}:{'x'.join(map(str, own.points[at]))}" for tensor, own in profile.items()
        )
        for at, name in enumerate(_POINTS)
    }
    return {
        "device_id": "0",
        "trt_max_workspace_size": str(workspace),
        # Off, which makes the network strongly typed: the precision is in the graph.
        "trt_fp16_enable": "0",
        "trt_engine_cache_enable": "1",
        "trt_engine_cache_path": str(folder),
        "trt_timing_cache_enable": "1",
        "trt_timing_cache_path": str(folder),
        **shapes,
    }


def joined_profile(profiles: Iterable[Mapping[str, InputProfile]]) -> dict[str, InputProfile]:
    """One profile that takes all that several do, tuned for the last: for a decoder, its single steps.

    What ONNX Runtime before September 2026 passes to TensorRT 10.11 and later as the optimum of a shape
    tensor's values is the maximum, and the other way round (microsoft/onnxruntime#32415): so both are equal.
    """
    every = list(profiles)
    joined = {}
    for name, last in every[-1].items():
        same = [profile[name] for profile in every]
        low = tuple(map(min, zip(*(own.minimum for own in same), strict=True)))
        high = tuple(map(max, zip(*(own.maximum for own in same), strict=True)))
        joined[name] = InputProfile(low, high if last.values else last.optimum, high, last.values)
    return joined


def _planned(plan: EnginePlan, root: Path, graph: Path) -> GraphPlan:
    """The plan of an ONNX file, whose name may have the suffix of a precision."""
    found = [each for each in plan.graphs if root / each.file == graph]
    if not found:
        raise BackendError(
            f"the plan of {root} has no {graph.name}, only {', '.join(each.file for each in plan.graphs)}: "
            f"write one of this bundle, with --unpruned, to {PLAN_FILE}, or remove that file"
        )
    return found[0]


def _plan_of(root: Path) -> EnginePlan:
    """The plan in the bundle's folder, else the default one of every graph."""
    file = root / PLAN_FILE
    if not file.is_file():
        manifest = load_bundle(root, verify=False).manifest
        return plan_engines(manifest, Limits(unpruned=True), WORKSPACE)
    try:
        return EnginePlan.from_dict(json.loads(file.read_text(encoding="utf-8")), str(file))
    except (OSError, ValueError) as error:
        raise BackendError(
            f"{file} cannot be read ({error}): write a plan there, or remove it for the default one"
        ) from error


def _folder(graph: Path) -> Path:
    return graph.parent.parent / ENGINES / graph.stem
