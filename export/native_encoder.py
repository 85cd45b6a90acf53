"""Vision towers that take images in their own size (Qwen2.5-VL), as one plain module of fixed form.

transformers splits its attention by lengths that it reads on the host, image by image and window by window,
which no graph can do. Here one image is one call, and windows are a batch axis: all have the same number of
slots, and those that are empty are masked. Tokens stay in reading order throughout.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["NativeVisionEncoder"]


@dataclass(frozen=True)
class _Windows:
    """Where rows go for attention: `tokens` int64 [windows, slots] in, `slots` int64 [tokens] back out,
    `mask` float32 [windows, 1, rows of a window, rows of a window] to add to the logits."""

    tokens: Tensor
    slots: Tensor
    mask: Tensor


class NativeVisionEncoder(nn.Module):
    """Patch embedding, blocks and merger of `Qwen2_5_VisionTransformerPretrainedModel`.

    pixel_values float32 [1, tokens, s * s, K], token_positions int64 [tokens, 2] and, where there are
    windows, window_tokens int64 [windows, slots] (-1 in an empty slot) and token_slots int64 [tokens] →
    image_features float32 [1, tokens, D]. It holds the modules of the loaded model, never copies.
    """

    def __init__(self, tower: Any) -> None:
        super().__init__()
        self.merge = int(tower.spatial_merge_size)
        # The kernel is as large as its input: the convolution is a product with the patch.
        kernel = tower.patch_embed.proj.weight.detach().flatten(1)
        self.patch_embed = nn.Linear(kernel.shape[1], kernel.shape[0], bias=False, device="meta")
        self.patch_embed.weight = nn.Parameter(kernel, requires_grad=False)
        self.rotary_pos_emb = tower.rotary_pos_emb
        full = set(tower.fullatt_block_indexes)
        self.blocks = nn.ModuleList(
            _Block(block, windowed=layer not in full) for layer, block in enumerate(tower.blocks)
        )
        self.merger = tower.merger

    def forward(
        self,
        pixel_values: Tensor,
        token_positions: Tensor,
        window_tokens: Tensor | None = None,
        token_slots: Tensor | None = None,
    ) -> Tensor:
        hidden = self.patch_embed(pixel_values.flatten(0, 2))
        within = torch.cartesian_prod(*[torch.arange(self.merge)] * 2).view(-1, 2)
        patches = (token_positions[:, None] * self.merge + within).flatten(0, 1)
        whole = tuple(angle[None] for angle in self.rotary_pos_emb(hidden, patches))
        windows, inside = None, whole
        if window_tokens is not None and token_slots is not None:
            group = self.merge**2
            windows = _windows(window_tokens, token_slots, group)
            inside = tuple(_gathered(angle[0], windows.tokens, group) for angle in whole)
        for block in self.blocks:
            hidden = block(hidden, *(inside, windows) if block.windowed else (whole, None))
        return self.merger(hidden)[None]


class _Block(nn.Module):
    """One `Qwen2_5_VLVisionBlock`. hidden [patches, E] → the same."""

    def __init__(self, block: Any, *, windowed: bool) -> None:
        super().__init__()
        self.norm1, self.norm2, self.mlp = block.norm1, block.norm2, block.mlp
        self.qkv, self.proj = block.attn.qkv, block.attn.proj
        self.heads = int(block.attn.num_heads)
        self.windowed = windowed

    def forward(self, hidden: Tensor, angles: tuple[Tensor, ...], windows: _Windows | None) -> Tensor:
        """`angles`: cosines and sines [1, patches, d], or [windows, rows of a window, d]."""
        from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import apply_rotary_pos_emb_vision

        rows = self.qkv(self.norm1(hidden))
        group = angles[0].shape[1] // windows.tokens.shape[1] if windows is not None else 1
        packed = rows[None] if windows is None else _gathered(rows, windows.tokens, group)
        query, key, value = packed.unflatten(-1, (3, self.heads, -1)).unbind(2)
        query, key = apply_rotary_pos_emb_vision(query, key, *angles)
        attended = functional.scaled_dot_product_attention(
            query.transpose(1, 2),
            key.transpose(1, 2),
            value.transpose(1, 2),
            attn_mask=None if windows is None else windows.mask,
        )
        out = attended.transpose(1, 2).flatten(2).flatten(0, 1)
        if windows is not None:
            out = _gathered(out, windows.slots[None], group)[0]
        hidden = hidden + self.proj(out)
        return hidden + self.mlp(self.norm2(hidden))


def _windows(tokens: Tensor, slots: Tensor, group: int) -> _Windows:
    filled = (tokens >= 0)[:, :, None].expand(-1, -1, group).flatten(1)
    # A sum, as every form of attention takes one; a row per query, as not all of them repeat it.
    keys = torch.where(filled, 0.0, float("-inf"))[:, None, None]
    mask = keys.expand(-1, 1, filled.shape[1], -1)
    return _Windows(tokens.clamp(min=0), slots, mask)


def _gathered(rows: Tensor, tokens: Tensor, group: int) -> Tensor:
    """[tokens * group, F], tokens int64 [a, b] → [a, b * group, F]; an embedding, as that is one Gather."""
    width = rows.shape[-1]
    found = functional.embedding(tokens, rows.reshape(-1, group * width))
    return found.unflatten(-1, (group, width)).flatten(1, 2)
