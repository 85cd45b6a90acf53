"""ONNX Runtime's CUDA provider: `--backend ort-cuda` (docs/gpu.md).

Buffers stay on the device. Products are float32 without TF32, because parity is held to float32; a bundle in
fp16 is the way to the tensor cores. Its CUDA graphs are not used: they replay fixed shapes, and the mask of a
decoder step grows with every token.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping
from typing import Any

from runtime.backend import Backend, BackendOptions
from runtime.backends.cudart import CudaCopies, load_cudart
from runtime.backends.ort_device import INSTALL, OrtDevice, OrtDeviceBackend, missing_library
from runtime.errors import BackendError
from runtime.lazy import require

__all__ = ["CUDA_OPTIONS", "CUDA_PROVIDER", "create", "gpu_package"]

CUDA_PROVIDER = "CUDAExecutionProvider"

CUDA_OPTIONS: Mapping[str, str] = {
    "device_id": "0",
    # As much as is asked for: the default doubles, which an 8 GB board cannot spare.
    "arena_extend_strategy": "kSameAsRequested",
    # The default times every algorithm for every new shape: seconds for each new number of tiles.
    "cudnn_conv_algo_search": "HEURISTIC",
    "use_tf32": "0",
}
"""Options of the CUDA provider; what is not here is ONNX Runtime's default."""


def create(options: BackendOptions) -> Backend:
    """Make the backend.

    Raises:
        BackendError: onnxruntime-gpu is not installed, a CUDA library is missing, or there is no GPU.
    """
    ort, copies = gpu_package("ort-cuda", CUDA_PROVIDER)
    device = OrtDevice("cuda", 0, ((CUDA_PROVIDER, CUDA_OPTIONS),))
    return OrtDeviceBackend("ort-cuda", ort, device, copies, options)


def gpu_package(backend: str, provider: str) -> tuple[Any, CudaCopies]:
    """The module onnxruntime with a provider that can start, and copies on the GPU.

    Raises:
        BackendError: it is not installed, or another build of it; a library is missing; there is no GPU.
    """
    ort = require("onnxruntime", "onnxruntime-gpu", extra="gpu")
    if provider not in ort.get_available_providers():
        raise BackendError(
            f"{backend} needs {provider}, but {missing_library(ort, provider)}: pip uninstall -y onnxruntime "
            "&& pip install --force-reinstall 'fopru-edge[gpu]' (two packages, one module; on a Jetson see "
            "docs/jetson.md)"
        )
    if hasattr(ort, "preload_dlls"):  # since 1.21: those that pip installed
        # It says on stdout what it does not find, which is where answers go; what is missing is told below.
        with contextlib.redirect_stdout(io.StringIO()):
            ort.preload_dlls()
    missing = missing_library(ort, provider)
    if missing is not None and "libcuda.so" in missing:  # comes with the driver, not with CUDA
        raise BackendError(f"{backend} needs an NVIDIA GPU with its driver ({missing}): use another backend")
    if missing is not None:
        raise BackendError(f"{backend} needs {provider}, which cannot start ({missing}): {INSTALL}")
    copies = CudaCopies(load_cudart())
    try:
        copies.memory()
    except BackendError as error:
        raise BackendError(
            f"{backend} needs an NVIDIA GPU with its driver ({error}): use another backend"
        ) from error
    return ort, copies
