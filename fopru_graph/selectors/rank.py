"""`rank`: the K highest scores."""

from __future__ import annotations

from typing import ClassVar, Literal

import onnx_ir as ir

from fopru_graph.errors import RewriteError
from fopru_graph.selectors.base import SelectContext, highest, seen

__all__ = ["Rank"]


class Rank:
    """The `num_keep` highest scores, ties to the lower position (ONNX says so; a GPU runtime may not)."""

    name: ClassVar[str] = "rank"
    source: ClassVar[str] = "FoPru, arXiv 2411.14164: the most significant tokens of the image"
    needs_scores: ClassVar[bool] = True
    needs_grid: ClassVar[bool] = False
    needs_rows: ClassVar[bool] = False
    takes_mask: ClassVar[bool] = True
    topk: ClassVar[Literal["tokens", "rows", "none"]] = "tokens"

    def aggregation(self, special_tokens: int) -> str:
        del special_tokens
        return "col_mean"

    def select(self, context: SelectContext) -> ir.Value:
        if context.scores is None:
            raise RewriteError(f"selector '{self.name}' was given no scores")
        scores = seen(context, context.scores)
        return highest(context.builder, scores, context.num_keep, (context.images, "kept"))
