"""`visionzip`: VisionZip's dominant tokens, without its merged ones."""

from __future__ import annotations

from typing import ClassVar

from fopru_graph.selectors.rank import Rank

__all__ = ["VisionZip"]


class VisionZip(Rank):
    """`rank` on CLS attention, or on the mean over all queries for an encoder without a class token.

    The paper sums over heads, which ranks like the mean. Its contextual tokens are means of other tokens, no
    rows of the features, and are left out: its "64 tokens" are the class token, 53 of these, and 10 merged.
    """

    name: ClassVar[str] = "visionzip"
    source: ClassVar[str] = "VisionZip, arXiv 2412.04467: the dominant tokens only"

    def aggregation(self, special_tokens: int) -> str:
        return "cls" if special_tokens else "col_mean"
