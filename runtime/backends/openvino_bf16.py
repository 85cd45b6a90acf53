"""OpenVINO on the CPU in bfloat16, for processors with instructions for it: faster prefill, not exact.

Matrix products take operands rounded to 8 bits of mantissa and add in float32; what is bound stays float32.
Stages differ from the reference by far more than the tolerances of `runtime.parity`, and other visual tokens
may be kept: chosen by name, never by default.
"""

from __future__ import annotations

from runtime.backend import Backend, BackendOptions
from runtime.backends.openvino import make

__all__ = ["create"]


def create(options: BackendOptions) -> Backend:
    """Make the backend; raises BackendError without openvino or bfloat16 instructions."""
    return make("openvino-bf16", options, "bf16")
