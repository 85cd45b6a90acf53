"""Multiply-adds and cache bytes, counted from the configuration, before anything is loaded.

Counted: every matrix product (linear layers, QK^T, PV, the patch convolution, the LM head for the last
position). Left out: norms, softmax, activations, rotary embeddings and the gathers, which are memory-bound
and under 1 % of the products. Attention in the decoder is counted over the full square, as an unfused graph
computes it, not over the causal half.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

__all__ = ["DecoderShape", "VisionShape", "decoder_shape", "mlp_projector_macs"]


@dataclass(frozen=True)
class VisionShape:
    """A ViT tower up to the layer that feeds the projector.

    `layers` are the layers used, `special` the rows before the patches (CLS), `prefix` those of them that
    are fed on.
    """

    width: int
    mlp: int
    layers: int
    patches: int
    patch_inputs: int
    special: int
    prefix: int

    @property
    def rows(self) -> int:
        """Q: rows of every layer."""
        return self.patches + self.special

    def layer(self, kept_rows: int | None = None) -> int:
        """Multiply-adds of one layer; `kept_rows` = output rows of an early-gathered one (FoPru spec 6.2).

        Q, K and V are projected for all rows and QK^T covers all rows, because the score needs them; the
        product with V, the output projection and the MLP cover the kept rows only (one pass: QK^T is
        computed once).
        """
        out = self.rows if kept_rows is None else kept_rows
        projections = 3 * self.rows * self.width**2 + out * self.width**2
        attention = (self.rows**2 + out * self.rows) * self.width
        return projections + attention + 2 * out * self.width * self.mlp

    def encoder(self, keep: int | None = None) -> int:
        """Multiply-adds of the tower when an early gather keeps `keep` patches (None: the unpruned tower)."""
        embedding = self.patches * self.patch_inputs * self.width
        last = self.layer(None if keep is None else keep + self.prefix)
        return embedding + (self.layers - 1) * self.layer() + last

    def second_qk(self, keep: int) -> int:
        """Extra multiply-adds of the side branch: QK^T again, for the kept rows of the attention proper."""
        return (keep + self.prefix) * self.rows * self.width


@dataclass(frozen=True)
class DecoderShape:
    """A decoder with gated MLPs (Llama, Qwen2, Mistral, Gemma)."""

    width: int
    mlp: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int

    def prefill(self, rows: int) -> int:
        """Multiply-adds of the first forward pass over `rows` positions, logits for the last one only."""
        queries, values = self.heads * self.head_dim, self.kv_heads * self.head_dim
        projections = rows * self.width * (2 * queries + 2 * values)
        attention = 2 * rows**2 * queries
        return (
            self.layers * (projections + attention + 3 * rows * self.width * self.mlp)
            + self.width * self.vocabulary
        )

    def kv_bytes(self, rows: int, item_bytes: int = 4) -> int:
        """Bytes of keys and values of `rows` positions."""
        return 2 * self.layers * self.kv_heads * self.head_dim * rows * item_bytes


def decoder_shape(text: Any) -> DecoderShape:
    """Shape of a transformers `text_config`."""
    heads = text.num_attention_heads
    return DecoderShape(
        width=text.hidden_size,
        mlp=text.intermediate_size,
        layers=text.num_hidden_layers,
        heads=heads,
        kv_heads=getattr(text, "num_key_value_heads", None) or heads,
        head_dim=getattr(text, "head_dim", None) or text.hidden_size // heads,
        vocabulary=text.vocab_size,
    )


def mlp_projector_macs(rows: int, inputs: int, width: int) -> int:
    """Multiply-adds of a two-layer projector from `inputs` to `width`, on `rows` rows."""
    return rows * (inputs * width + width**2)
