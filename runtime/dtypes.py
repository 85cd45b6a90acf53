"""How numbers are held that numpy has no dtype for: bfloat16 as uint16, bit by bit.

Nothing is computed with them on the host. They lie in the KV cache of a device, where only their size counts.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from runtime.errors import BackendError

__all__ = ["BFLOAT16", "no_bfloat16", "storage_dtype"]

BFLOAT16 = "bfloat16"


def storage_dtype(name: str) -> np.dtype[Any]:
    """The numpy dtype in which values of a dtype are held, named as in numpy or `bfloat16`."""
    return np.dtype(np.uint16) if name == BFLOAT16 else np.dtype(name)


def no_bfloat16(backend: str, what: str) -> BackendError:
    """The error of a backend on the CPU that is given `what`, in words, in bfloat16."""
    return BackendError(
        f"{what} is in bfloat16, for which {backend} has no kernels: run it with --backend tensorrt on an "
        "NVIDIA GPU, or build the bundle with --precision fp16 or fp32"
    )
