"""Which decoder graphs a language model gets; nothing here imports torch or onnx."""

from __future__ import annotations

from runtime import contract

__all__ = ["caches_for"]

# GroupQueryAttention of ONNX Runtime takes no other head size.
_HEAD_DIM_MULTIPLE = 8


def caches_for(head_dim: int) -> dict[str, str]:
    """Graph to kind of cache, for `runtime.manifest.DecoderInfo.caches`."""
    caches = {contract.DECODER: contract.SHARED} if head_dim % _HEAD_DIM_MULTIPLE == 0 else {}
    return {**caches, contract.DECODER_PORTABLE: contract.APPEND}
