"""transformers: the forward pass with its own KV cache, token by token."""

from __future__ import annotations

from typing import Any

import numpy as np

from bench.peers.base import Array, Engine, Ids, Peer, SteppingEngine, Task, Variant

__all__ = ["PEER"]

_DTYPES = {"fp32": "float32", "bf16": "bfloat16"}


class _Transformers(SteppingEngine):
    """A model and the cache of the running sequence."""

    def __init__(self, task: Task) -> None:
        import torch
        from transformers import AutoModelForCausalLM

        torch.set_num_threads(task.threads)
        self._torch: Any = torch
        self._model: Any = AutoModelForCausalLM.from_pretrained(
            task.checkpoint,
            dtype=getattr(torch, _DTYPES[task.variant.precision]),
            attn_implementation=task.variant.name.split()[-1],
        ).eval()
        self._cache: Any = None

    def prefill(self, ids: Ids) -> Array:
        from transformers import DynamicCache

        self._cache = DynamicCache(config=self._model.config)
        return self._forward(ids[None])

    def step(self, token: int) -> Array:
        return self._forward(np.array([[token]]))

    def _forward(self, ids: Ids) -> Array:
        with self._torch.inference_mode():
            found = self._model(
                self._torch.from_numpy(ids), past_key_values=self._cache, use_cache=True, logits_to_keep=1
            )
        logits: Array = found.logits[0, -1].float().numpy()
        return logits


def _open(task: Task) -> Engine:
    return _Transformers(task)


PEER = Peer(
    name="transformers",
    packages=("transformers", "torch"),
    modules=("transformers", "torch"),
    install="pip install torch transformers",
    variants=(
        Variant("fp32 sdpa", "fp32"),
        Variant("fp32 eager", "fp32"),
        Variant("bf16 sdpa", "bf16"),
        Variant("bf16 eager", "bf16"),
    ),
    open=_open,
    about="transformers: `forward` with a DynamicCache and logits of the last position, without the overhead "
    "of `generate`; bf16 computes in bf16.",
)
