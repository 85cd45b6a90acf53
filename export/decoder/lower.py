"""The lowering of each kind of cache."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import onnx_ir as ir

from export.decoder.append import lower_append
from export.decoder.shared import lower_shared
from runtime import contract
from runtime.manifest import DecoderInfo

__all__ = ["lowerings"]

_LOWERINGS = {contract.SHARED: lower_shared, contract.APPEND: lower_append}


def lowerings(decoder: DecoderInfo) -> dict[str, Callable[[ir.Model], None]]:
    """By graph name, what makes it of the traced language model, in place."""
    return {
        graph: partial(_LOWERINGS[kind], table=contract.decoder_contract(decoder, kind))
        for graph, kind in decoder.caches.items()
    }
