"""VTC-CLS (arXiv 2412.05819): what the class token looks at, added up over layers.

s_j = sum over layers l = `first_layer` .. `layer` of mean over heads of A^(l)[CLS, j]. It is a sum as
published, not a mean: both rank alike.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fopru_graph.attention import AttentionCore
from fopru_graph.errors import OptionError
from fopru_graph.shapes import dims, same

if TYPE_CHECKING:
    from fopru_graph.passes.locate import Located

__all__ = ["summed_cores"]


def summed_cores(located: Located, first_layer: int) -> tuple[AttentionCore, ...]:
    """Attentions of the layers from `first_layer` to the scoring one.

    Raises:
        OptionError: `first_layer` lies behind the scoring layer, or a layer has other tokens than it.
    """
    if first_layer > located.layer:
        raise OptionError(
            f"first_layer is {first_layer}, but the scoring layer is {located.layer}: give a number "
            f"from 0 to {located.layer}"
        )
    numbered = zip(located.cores, located.layers, strict=True)
    chosen = [(core, layer) for core, layer in numbered if first_layer <= layer <= located.layer]
    for core, layer in chosen:
        source = core.anchor if core.form == "softmax" else core.node.inputs[0]
        queries = (dims(source) or (None, None))[-2]
        if not same(queries, located.queries):
            raise OptionError(
                f"layer {layer} has {queries} queries and layer {located.layer} has {located.queries}, so "
                "that cls_sum cannot add them up: give a first_layer behind it, or use cls"
            )
    return tuple(core for core, _ in chosen)
