"""Pass 2, score: one float32 number per token, from the attention that the tokens receive."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from fopru_graph.attention import AttentionCore
from fopru_graph.builder import GraphBuilder, Made
from fopru_graph.errors import OptionError, RewriteError
from fopru_graph.merging import token_scores
from fopru_graph.options import TOKEN_SCORES, PruneOptions
from fopru_graph.passes.base import GraphPass, Rewritten
from fopru_graph.passes.locate import Located
from fopru_graph.scoring import (
    Choice,
    Site,
    SlicedRows,
    choose,
    chunked_means,
    probabilities,
    query_range,
    summed_cores,
    tapped,
)
from fopru_graph.shapes import Dim, dims

__all__ = ["ScorePass", "Scored"]

_FLOAT = ir.DataType.FLOAT


@dataclass(frozen=True)
class Scored:
    """What was added.

    Attributes:
        scores: float32 [images, N].
        path: `one_pass`, `side_branch`, `cls_row` or `chunked`; of the scoring layer if there are several.
        added: number of nodes.
        note: what a user should know about precision or memory, or empty.
        bytes: of the float32 probabilities of one image that the plain path holds; None where Q varies.
        chunk: queries in a chunk; None where the graph computes it, and for paths other than `chunked`.
    """

    scores: ir.Value
    path: str
    added: int
    note: str = ""
    bytes: int | None = None
    chunk: int | None = None


class ScorePass(GraphPass[Scored]):
    """Adds the score of each token; the attention itself is left as it is.

    Rules:
        1. A float32 Softmax is tapped (`one_pass`: QK^T is computed once). Beside an Attention operator, and
           where QK^T or the Softmax has fewer bits than float32, Q and K are multiplied again in float32,
           with the scale, cap and mask of the original: for the averaged queries (`side_branch`) or the class
           token alone (`cls_row`). Above `score_memory`, queries are worked off in chunks (`chunked`).
        2. Reductions run in float32. Probabilities that only a tap vouches for are taken as they are; a note
           says so if they have fewer bits.
        3. Queries are averaged first, heads second: over 16 heads of 577 x 577 this is 20 times as fast on
           ONNX Runtime CPU as one reduction over both axes, and its error is 2e-7 relative, not 5e-6.
        4. `cls_sum` does so for several layers and adds up.
        5. Columns that are not among the patches are cut off; patches that are merged into one token are
           averaged, and tokens of another order put into that of the features (`merging.py`).
        6. `token_scores` becomes an output if the options say so.
        7. A query that may look at no key is NaN in softmax. Where the graph guards against that
           (`Where(IsNaN(p), 0, p)`), so does the score; any other NaN or Inf is up to the runtime.
    """

    name: ClassVar[str] = "score"

    def __init__(self, options: PruneOptions, located: Located) -> None:
        super().__init__()
        self._options = options
        self._located = located
        self._rows = query_range(located.aggregation, located.special, located.queries)

    def requires(self, model: ir.Model) -> None:
        del model
        aggregation, special, queries = (
            self._located.aggregation,
            self._located.special,
            self._located.queries,
        )
        if aggregation.startswith("cls") and special == 0:
            raise OptionError(
                f"aggregation is '{aggregation}', but this encoder has no CLS row "
                "(special_tokens is 0): use col_mean or col_mean_patch"
            )
        if aggregation == "cls_sum" and self._options.tap is not None:
            raise OptionError(
                f"aggregation is 'cls_sum', which adds up layers, but tap '{self._options.tap}' is one "
                "tensor: give layer instead, or use cls"
            )
        if isinstance(queries, int) and special >= queries:
            raise OptionError(
                f"special_tokens is {special}, but the attention has {queries} rows: leave at least one patch"
            )

    def call(self, model: ir.Model) -> Rewritten[Scored]:
        builder, located = GraphBuilder(model.graph, self.name), self._located
        choice = choose(located, located.core, self._rows, self._options.score_memory)
        if located.aggregation == "cls_sum":
            columns = self._sum_of_layers(builder, choice)
        else:
            columns = self._column_means(builder, located.core, choice)
        scores = token_scores(builder, located, self._options, self._cut_patches(builder, columns))
        if self._options.scores_output:
            scores.name = TOKEN_SCORES
            scores.shape = ir.Shape([self._images(), "tokens"])
            model.graph.outputs.append(scores)
        model.graph.sort()
        scored = Scored(scores, choice.path, builder.added, choice.note, choice.bytes, choice.chunk)
        return Rewritten(model, scored, builder.added)

    def ensures(self, model: ir.Model) -> None:
        if self._options.scores_output and TOKEN_SCORES not in {value.name for value in model.graph.outputs}:
            raise RewriteError(f"the score pass left no output '{TOKEN_SCORES}' in the graph")

    def _sum_of_layers(self, builder: GraphBuilder, choice: Choice) -> ir.Value:
        """The memory limit is about the scoring layer: those before it hold their probabilities anyway."""
        means = []
        for core in summed_cores(self._located, self._options.first_layer):
            own = choice if core is self._located.core else choose(self._located, core, self._rows, None)
            means.append(self._column_means(builder, core, own))
        if len(means) == 1:
            return means[0]
        return builder.op("Sum", means, Made("summed_scores", _FLOAT, dims(means[0]) or ()))

    def _column_means(self, builder: GraphBuilder, core: AttentionCore, choice: Choice) -> ir.Value:
        """float32 [images, Q]: mean over the averaged queries, then over heads."""
        if choice.path == "chunked":
            budget = self._options.score_memory or 0
            rows = chunked_means(builder, core, self._rows, choice, budget)
        else:
            sliced = SlicedRows(builder, self._rows)
            if choice.path == "one_pass":
                rows = tapped(core, builder, sliced)
            else:
                rows = probabilities(core, Site(builder, builder, sliced))
        queries, images = self._located.queries, self._images()
        heads: Dim = (dims(rows) or (None, None))[1]
        per_head = builder.mean(rows, 2, Made("head_scores", _FLOAT, (images, heads, queries)))
        return builder.mean(per_head, 1, Made("column_scores", _FLOAT, (images, queries)))

    def _cut_patches(self, builder: GraphBuilder, columns: ir.Value) -> ir.Value:
        first, patches = self._located.first, self._located.patches
        if first == 0 and (patches == self._located.queries or not isinstance(patches, int)):
            return columns
        bounds = (first, first + patches if isinstance(patches, int) else None)
        return builder.slice(columns, 1, bounds, Made("patch_scores", _FLOAT, (self._images(), patches)))

    def _images(self) -> Dim:
        return (dims(self._located.features) or (None,))[0]
