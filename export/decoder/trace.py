"""The language model with its attention left open.

Attention with a cache is one node of our own while torch traces: what is put in its place depends on who runs
the graph, and finding it again among twenty standard operators would be guesswork. transformers lets an
attention function be registered by name (`AttentionInterface`), and gives models with an unknown name no
mask.
"""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, DynamicCache

from export.errors import TraceError
from runtime import contract
from runtime.manifest import DecoderInfo

__all__ = ["ATTENTION", "DOMAIN", "Decoder", "traced_contract"]

DOMAIN, ATTENTION = "fopru", "CachedAttention"
_IMPLEMENTATION = "fopru_cached"

# Arguments of attention functions that change what comes out, and that the graphs have no form for.
_UNKNOWN = {
    "attention_mask": "a mask of its own",
    "s_aux": "attention sinks",
    "head_mask": "a head mask",
    "position_bias": "a position bias",
}


def traced_contract(info: DecoderInfo) -> contract.GraphContract:
    """Contract of the traced graph: the cache that went in, and per layer the new rows as they were made."""
    table = contract.decoder_contract(info, contract.CONCAT)
    rows = ("batch", info.kv_heads, "seq", info.head_dim)
    logits, *present = table.outputs
    return replace(table, outputs=(logits, *(replace(spec, shape=rows) for spec in present)))


class _NewRows(DynamicCache):
    """Keeps each layer's new keys and values [batch, kv_heads, seq, head_dim], and appends nothing."""

    def __init__(self, past: list[Tensor], mask: Tensor) -> None:
        super().__init__()
        self.past, self.mask = past, mask
        self.rows: dict[int, tuple[Tensor, Tensor]] = {}
        self.windows: dict[int, int] = {}  # of the layers whose attention is open; 0 looks back without end

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        self.rows[layer_idx] = (key_states, value_states)
        return key_states, value_states


_CACHE: ContextVar[_NewRows] = ContextVar("_CACHE")


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """One layer's attention as a node: query [batch, heads, seq, head_dim], result with axes 1, 2 swapped."""
    # The model itself is asked for no mask: one that comes all the same is more than causal.
    for name, meaning in _UNKNOWN.items():
        if {**options, "attention_mask": attention_mask}.get(name) is not None:
            raise TraceError(
                f"{type(module).__name__} has {meaning} ({name}), for which there is no decoder graph: use a "
                "checkpoint whose language model attends without"
            )
    cache: _NewRows = _CACHE.get()
    layer = int(module.layer_idx)  # type: ignore[arg-type]
    batch, heads, seq, head_dim = query.shape
    cache.windows[layer] = int(options.get("sliding_window") or 0)
    attributes: dict[str, Any] = {
        "layer": layer,
        "num_heads": heads,
        "kv_num_heads": key.shape[1],
        "scale": float(options.get("scaling") or head_dim**-0.5),
        "window": cache.windows[layer],
        "softcap": float(options.get("softcap") or 0.0),
    }
    out = torch.onnx.ops.symbolic(
        f"{DOMAIN}::{ATTENTION}",
        (query, key, value, cache.past[2 * layer], cache.past[2 * layer + 1], cache.mask),
        attributes,
        dtype=query.dtype,
        shape=(batch, seq, heads, head_dim),
        version=1,
    )
    return out, None


class Decoder(nn.Module):
    """Language model and head with an explicit cache, to be traced only.

    inputs_embeds float32 [batch, seq, D], attention_mask int64 [batch, past + seq], position_ids int64
    [batch, seq] (or [axes, batch, seq]), num_logits_to_keep int64 scalar, past: 2 x layers tensors float32
    [batch, kv_heads, past, head_dim] → logits float32 [batch, kept, V] of the last `num_logits_to_keep`
    positions (0 = all), then each layer's new keys and values [batch, kv_heads, seq, head_dim].
    """

    def __init__(self, language_model: Any, lm_head: nn.Module) -> None:
        super().__init__()
        self.language_model = language_model
        self.lm_head = lm_head

    def forward(
        self,
        inputs_embeds: Tensor,
        attention_mask: Tensor,
        position_ids: Tensor,
        num_logits_to_keep: Tensor,
        past: list[Tensor],
    ) -> tuple[Tensor, ...]:
        cache = _NewRows(past, attention_mask)
        AttentionInterface.register(_IMPLEMENTATION, _attend)
        before = self.language_model.config._attn_implementation
        self.language_model.set_attn_implementation(_IMPLEMENTATION)
        token = _CACHE.set(cache)
        try:
            hidden = self.language_model(
                inputs_embeds=inputs_embeds,
                position_ids=position_ids,
                past_key_values=cache,
                use_cache=True,
            ).last_hidden_state
        finally:
            _CACHE.reset(token)
            self.language_model.set_attn_implementation(before)
        logits = self.lm_head(_last_rows(hidden, num_logits_to_keep))
        if sorted(cache.rows) != list(range(len(past) // 2)):
            raise TraceError(
                f"{type(self.language_model).__name__} keeps keys and values of layers {sorted(cache.rows)} "
                f"of {len(past) // 2}: its layers share a cache, for which there is no decoder graph"
            )
        if set(cache.windows) != set(cache.rows):
            raise TraceError(
                f"{type(self.language_model).__name__} has an attention of its own, which does not follow "
                "transformers' AttentionInterface, so that its cache cannot be opened: use a checkpoint with "
                "another language model (Llama, Qwen2, Mistral, Gemma, Phi …)"
            )
        _check_windows(self.language_model, cache.windows)
        return (logits, *(part for layer in sorted(cache.rows) for part in cache.rows[layer]))


def _check_windows(language_model: Any, windows: dict[int, int]) -> None:
    """Some models have their window in the mask alone, which the open attention does not get."""
    config = language_model.config
    every = "sliding_attention" if getattr(config, "sliding_window", None) else "full_attention"
    kinds = getattr(config, "layer_types", None) or [every] * len(windows)
    for layer, kind in enumerate(kinds):
        if kind != "full_attention" and not (kind == "sliding_attention" and windows[layer]):
            raise TraceError(
                f"layer {layer} of {type(language_model).__name__} is of kind {kind}, but says nothing of it "
                "to its attention: use a checkpoint with another language model"
            )


def _last_rows(hidden: Tensor, count: Tensor) -> Tensor:
    """Rows -count.. of axis 1; count 0 is a start of -0 = 0, i.e. all rows, without a branch in the graph."""
    start = -count.item()
    return hidden[:, start:]
