"""What was done to a graph, for people and for manifests."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

__all__ = ["PassCount", "PruneReport"]


@dataclass(frozen=True)
class PassCount:
    """One pass and the number of nodes it added, changed or removed; 0 = it left the graph as it was."""

    name: str
    modified: int


@dataclass(frozen=True)
class PruneReport:
    """What `prune` found and did.

    Attributes:
        layer: 0-based number of the scoring layer.
        locator: how it was found: `scope`, `name`, `structure` or `tensor`.
        locator_misses: why each earlier locator of the chain did not answer.
        attention: name of the scoring node, `form` its form (`softmax` or `attention_op`).
        score_path: `one_pass` (QK^T is computed once and its softmax is tapped), `side_branch` (a second
            QK^T in float32), `cls_row` (the same for the class token's row alone), `chunked` (a block of
            queries at a time) or `none` for a selector that needs no scores.
        score_bytes: bytes of the float32 probabilities of one image that a path other than `chunked` holds;
            None where the number of tokens varies, or without scores.
        score_chunk: queries in a block of `chunked`, 0 if the graph computes their number; else None.
        gather: `early` (the last used layer computes kept rows only), `late`, or `none` if only scores were
            asked for, with `gather_reason` in words.
        gathered: tensors from which kept rows are taken.
        heads: attention heads of the scoring layer.
        features: name of the pruned output.
        tokens: N, tokens per image before pruning, prefix not counted; "tokens" where it varies.
        prefix_tokens: leading rows always kept.
        dropped_rows: leading attention rows that never reach the features.
        special_tokens: leading attention rows that are not patches.
        merge: s, where s x s patches make one of the N tokens, in order `merge_order`; 1: nothing is merged.
        token_order: input that says which merged token each token of the features is, or None.
        mask: whether the input `token_mask` says which tokens may be kept.
        dropped_outputs: outputs that were removed.
        passes: modification count of each pass, in order.
        notes: limits that a runtime may meet, and scores of lower precision, in words.
        nodes_added, nodes_removed: totals.
    """

    layer: int
    locator: str
    locator_misses: tuple[str, ...]
    attention: str
    form: str
    score_path: str
    score_bytes: int | None
    score_chunk: int | None
    gather: str
    gather_reason: str
    gathered: tuple[str, ...]
    heads: int
    features: str
    tokens: int | str | None
    prefix_tokens: int
    dropped_rows: int
    special_tokens: int
    dropped_outputs: tuple[str, ...]
    strategy: str
    aggregation: str
    passes: tuple[PassCount, ...]
    notes: tuple[str, ...]
    nodes_added: int
    nodes_removed: int
    merge: int = 1
    merge_order: str = "row_major"
    token_order: str | None = None
    mask: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Plain types only, ready for JSON."""
        plain = dataclasses.asdict(self)
        return {key: list(value) if isinstance(value, tuple) else value for key, value in plain.items()}
