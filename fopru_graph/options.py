"""What a user may choose about pruning, and the names of the tensors that it adds to a graph."""

from __future__ import annotations

from dataclasses import dataclass

from fopru_graph.errors import OptionError

__all__ = [
    "AGGREGATIONS",
    "IMAGE_FEATURES",
    "KEPT_INDICES",
    "NUM_KEEP",
    "STRATEGIES",
    "TOKEN_SCORES",
    "PruneOptions",
]

IMAGE_FEATURES = "image_features"
NUM_KEEP = "num_keep"
KEPT_INDICES = "kept_indices"
TOKEN_SCORES = "token_scores"

STRATEGIES = ("rank", "row")
AGGREGATIONS = ("col_mean", "col_mean_patch", "cls")


@dataclass(frozen=True)
class PruneOptions:
    """How to prune one vision encoder.

    Attributes:
        strategy: `rank` keeps the highest scores; `row` keeps whole grid rows with the highest mean score. A
            `num_keep` that is no multiple of the grid's columns is cut down to one at run time.
        aggregation: how attention becomes one score per token. `col_mean`: mean over heads and all queries;
            `col_mean_patch`: the same over patch queries only; `cls`: mean over heads of the first query, the
            CLS token.
        layer: 0-based number of the encoder layer whose attention scores the tokens; None: the deepest
            attention whose result reaches the features.
        tap: name of a tensor of attention probabilities [images, heads, queries, keys] to score by, instead
            of `layer`.
        prefix_tokens: p, leading rows of the features that are always kept and not scored (a CLS row that the
            language model gets).
        special_tokens: leading rows of the attention that are not patches (CLS, registers). None: the prefix
            plus the rows dropped on the way to the features. Say 0 for an encoder without CLS whose first
            patch is dropped.
        grid: (R, C) of the scored tokens, row-major; `row` needs it.
        features: name of the output to prune, [images, p + N, D].
        scores_output: whether `token_scores` [images, N] float32 becomes an output.
        dropped_rows: o, leading attention rows that never become features: row i of the features is row i + o
            of the attention. None: the rows are followed through the graph, and where a node in between hides
            them, pruning is refused. State it only for features in the order of the attention rows.
    """

    strategy: str = "rank"
    aggregation: str = "col_mean"
    layer: int | None = None
    tap: str | None = None
    prefix_tokens: int = 0
    special_tokens: int | None = None
    grid: tuple[int, int] | None = None
    features: str = IMAGE_FEATURES
    scores_output: bool = True
    dropped_rows: int | None = None

    def __post_init__(self) -> None:
        if self.strategy not in STRATEGIES:
            raise OptionError(f"strategy is {self.strategy!r}, but it is one of {', '.join(STRATEGIES)}")
        if self.aggregation not in AGGREGATIONS:
            raise OptionError(
                f"aggregation is {self.aggregation!r}, but it is one of {', '.join(AGGREGATIONS)}"
            )
        if self.layer is not None and self.tap is not None:
            raise OptionError(
                f"layer {self.layer} and tap {self.tap!r} both name the scoring attention: give one"
            )
        if self.layer is not None and self.layer < 0:
            raise OptionError(
                f"layer is {self.layer}, but layers are counted from 0: give a number >= 0, or None"
            )
        if self.prefix_tokens < 0:
            raise OptionError(
                f"prefix_tokens is {self.prefix_tokens}: give the number of leading rows kept, >= 0"
            )
        if self.special_tokens is not None and self.special_tokens < 0:
            raise OptionError(
                f"special_tokens is {self.special_tokens}: give the number of leading rows, >= 0"
            )
        if self.dropped_rows is not None and self.dropped_rows < 0:
            raise OptionError(
                f"dropped_rows is {self.dropped_rows}: give the number of leading attention rows that never "
                "become features, >= 0, or None"
            )
        if self.grid is not None and (len(self.grid) != 2 or min(self.grid) < 1):
            raise OptionError(f"grid is {self.grid}, but it is (rows, columns), both >= 1")
        if self.strategy == "row" and self.grid is None:
            raise OptionError(
                "strategy 'row' keeps whole grid rows: give grid=(rows, columns), or use strategy 'rank'"
            )
