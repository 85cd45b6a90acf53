"""`vtc_cls`: the K tokens that the class token looks at most, over several layers (VTC-CLS)."""

from __future__ import annotations

from typing import ClassVar

from fopru_graph.errors import OptionError
from fopru_graph.selectors.rank import Rank

__all__ = ["VtcCls"]


class VtcCls(Rank):
    """`rank` on the sum of CLS rows from `PruneOptions.first_layer` to the scoring layer.

    The paper's first layer is not known; the default, 0, sums all.
    """

    name: ClassVar[str] = "vtc_cls"
    source: ClassVar[str] = "VTC-CLS, arXiv 2412.05819: CLS attention summed over layers"

    def aggregation(self, special_tokens: int) -> str:
        if not special_tokens:
            raise OptionError(
                "strategy is 'vtc_cls', but this encoder has no class token to look at the others: use "
                "strategy 'rank', 'visionzip' or 'scope', or give special_tokens if it has one"
            )
        return "cls_sum"
