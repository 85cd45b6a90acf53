"""`none`: every token, for comparisons with the same inputs and outputs."""

from __future__ import annotations

from typing import ClassVar, Literal

import onnx_ir as ir

from fopru_graph.selectors.base import SelectContext, every_token, same_for_all

__all__ = ["NoSelection"]


class NoSelection:
    """All N tokens, whatever `num_keep` says: it stands in for any other selector, K = N."""

    name: ClassVar[str] = "none"
    source: ClassVar[str] = "baseline: nothing is pruned"
    needs_scores: ClassVar[bool] = False
    needs_grid: ClassVar[bool] = False
    needs_rows: ClassVar[bool] = False
    takes_mask: ClassVar[bool] = False
    topk: ClassVar[Literal["tokens", "rows", "none"]] = "none"

    def aggregation(self, special_tokens: int) -> str:
        del special_tokens
        return "col_mean"

    def select(self, context: SelectContext) -> ir.Value:
        return same_for_all(context, every_token(context))
