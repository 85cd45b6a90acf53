"""`cls`: the K tokens that the class token looks at most (FasterVLM)."""

from __future__ import annotations

from typing import ClassVar

from fopru_graph.errors import OptionError
from fopru_graph.selectors.rank import Rank

__all__ = ["Cls"]


class Cls(Rank):
    """`rank` on the row of the class token, mean over heads; every image (tile) for itself."""

    name: ClassVar[str] = "cls"
    source: ClassVar[str] = "FasterVLM, arXiv 2412.01818v1: CLS attention at the layer of the features"

    def aggregation(self, special_tokens: int) -> str:
        if not special_tokens:
            raise OptionError(
                "strategy is 'cls', but this encoder has no class token to look at the others: use strategy "
                "'rank', 'visionzip' or 'scope', or give special_tokens if it has one"
            )
        return "cls"
