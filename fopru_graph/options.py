"""What a user may choose about pruning, and the names of the tensors that it adds to a graph."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fopru_graph.errors import OptionError
from fopru_graph.selectors import SELECTORS

__all__ = [
    "AGGREGATIONS",
    "GRID",
    "IMAGE_FEATURES",
    "KEPT_INDICES",
    "MERGE_ORDERS",
    "NUM_KEEP",
    "STRATEGIES",
    "TOKEN_MASK",
    "TOKEN_SCORES",
    "PruneOptions",
]

IMAGE_FEATURES = "image_features"
NUM_KEEP = "num_keep"
KEPT_INDICES = "kept_indices"
TOKEN_SCORES = "token_scores"
TOKEN_MASK = "token_mask"
GRID = "grid"

STRATEGIES = tuple(SELECTORS)
AGGREGATIONS = ("col_mean", "col_mean_patch", "cls", "cls_sum")
MERGE_ORDERS = ("row_major", "packed")


@dataclass(frozen=True)
class PruneOptions:
    """How to prune one vision encoder.

    Attributes:
        strategy: name of a selector (docs/selectors.md). `rank` keeps the highest scores; `row` keeps
            whole grid rows with the highest mean score. A `num_keep` that is no multiple of the grid's
            columns is cut down to one at run time.
        aggregation: how attention becomes one score per token. `col_mean`: mean over heads and all queries;
            `col_mean_patch`: the same over patch queries only; `cls`: mean over heads of the first query, the
            CLS token; `cls_sum`: sum of `cls` over the layers from `first_layer` to the scoring layer. None:
            what the selector is published with, which is `col_mean` for `rank` and `row`.
        layer: 0-based number of the encoder layer whose attention scores the tokens; None: the deepest
            attention whose result reaches the features.
        first_layer: first layer that `cls_sum` adds up; needs a CLS row, and no `tap`.
        tap: name of a tensor of attention probabilities [images, heads, queries, keys] to score by, instead
            of `layer`.
        prefix_tokens: p, leading rows of the features that are always kept and not scored (a CLS row that the
            language model gets). None: the special tokens that reach the features.
        special_tokens: leading rows of the attention that are not patches (CLS, registers). None: they are
            looked for in the graph; where the graph hides them, the prefix plus the rows dropped on the way
            to the features.
        grid: (R, C) of the scored tokens, row-major; `row` needs it. "input": the graph gets an input `grid`
            int64 [2], for encoders that take images of any size.
        features: name of the output to prune, [images, p + N, D]; None: `image_features`, or the only output
            of rank 3.
        keep_other_outputs: whether outputs besides the features stay. Those that need every row of the last
            used layer forbid an early gather.
        scores_output: whether `token_scores` [images, N] float32 becomes an output.
        scores_only: the features stay unpruned and only `token_scores` is added, for a runtime that selects
            on the host.
        score_memory: most bytes per image that scoring may hold beside Q, K and V (a batch of B holds B times
            as much). Above it, and wherever Q varies, column sums are added up over chunks of queries; where
            Q varies a chunk has at least one query, even if that is more. None: no limit.
        similarity: name of a tensor [images, p + N, D'] whose rows a selector by diversity compares; None:
            the features.
        seed: of the selector `random`, >= 0.
        dropped_rows: o, leading attention rows that never become features: row i of the features is row i + o
            of the attention. None: the rows are followed through the graph, and where a node in between hides
            them, pruning is refused. State it only for features in the order of the attention rows.
        merge: s, where s x s patches (attention rows behind the special ones) become one token before the
            features: N = patches / s^2. A token's score is the mean over its patches; `num_keep`,
            `kept_indices`, `token_scores` and `grid` are all about merged tokens. 1: nothing is merged.
        merge_order: which patches become one token. `row_major`: patches lie in reading order, token (y, x)
            is made of patches (s y + a, s x + b), as pixel shuffle and pooling do, and `grid` is fixed.
            `packed`: the s^2 patches of a token lie together, and their number may vary.
        token_order: name of an input int64 [N] or [1, N], for an encoder that works in another order than
            its features have (windows): token t of the features is merged token `order[t]` of the attention.
            None: the same order.
        mask: whether the graph gets the input `token_mask` bool [images, N], True for a token that shows
            image. Others are not kept while `num_keep` is at most the number of True ones; `row` means over
            True ones only, and still keeps whole grid rows. `token_scores` are not masked.
    """

    strategy: str = "rank"
    aggregation: str | None = None
    layer: int | None = None
    first_layer: int = 0
    tap: str | None = None
    prefix_tokens: int | None = None
    special_tokens: int | None = None
    grid: tuple[int, int] | Literal["input"] | None = None
    features: str | None = None
    keep_other_outputs: bool = True
    scores_output: bool = True
    scores_only: bool = False
    score_memory: int | None = None
    similarity: str | None = None
    seed: int = 0
    dropped_rows: int | None = None
    merge: int = 1
    merge_order: Literal["row_major", "packed"] = "row_major"
    token_order: str | None = None
    mask: bool = False

    def __post_init__(self) -> None:
        self._check_choices()
        self._check_numbers()
        self._check_grid()
        self._check_merge()
        self._check_mask()

    @property
    def maps_tokens(self) -> bool:
        """Whether `merge` and `token_order` say which attention rows make a token; else rows are followed."""
        return self.merge > 1 or self.token_order is not None

    def _check_choices(self) -> None:
        if self.strategy not in STRATEGIES:
            raise OptionError(f"strategy is {self.strategy!r}, but it is one of {', '.join(STRATEGIES)}")
        if self.aggregation is not None and self.aggregation not in AGGREGATIONS:
            raise OptionError(
                f"aggregation is {self.aggregation!r}, but it is one of {', '.join(AGGREGATIONS)}"
            )
        if self.layer is not None and self.tap is not None:
            raise OptionError(
                f"layer {self.layer} and tap {self.tap!r} both name the scoring attention: give one"
            )
        if self.scores_only and not self.scores_output:
            raise OptionError(
                "scores_only is True and scores_output is False: then nothing is added, leave one"
            )
        if self.scores_only and not SELECTORS[self.strategy].needs_scores:
            raise OptionError(
                f"scores_only is True, but strategy {self.strategy!r} makes no scores: use strategy 'rank'"
            )

    def _check_numbers(self) -> None:
        if self.layer is not None and self.layer < 0:
            raise OptionError(
                f"layer is {self.layer}, but layers are counted from 0: give a number >= 0, or None"
            )
        if self.first_layer < 0:
            raise OptionError(
                f"first_layer is {self.first_layer}, but layers are counted from 0: give a number >= 0"
            )
        if self.prefix_tokens is not None and self.prefix_tokens < 0:
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
        if self.score_memory is not None and self.score_memory < 1:
            raise OptionError(
                f"score_memory is {self.score_memory}: give a number of bytes >= 1, or None for no limit"
            )
        if self.seed < 0:
            raise OptionError(f"seed is {self.seed}: give a number >= 0")

    def _check_grid(self) -> None:
        if isinstance(self.grid, str):
            if self.grid != "input":
                raise OptionError(f"grid is {self.grid!r}, but it is (rows, columns), 'input', or None")
        elif self.grid is not None and (len(self.grid) != 2 or min(self.grid) < 1):
            raise OptionError(f"grid is {self.grid}, but it is (rows, columns), both >= 1")
        if SELECTORS[self.strategy].needs_grid and self.grid is None and not self.scores_only:
            raise OptionError(
                f"strategy {self.strategy!r} works on a grid of tokens: give grid=(rows, columns), or use "
                "strategy 'rank'"
            )

    def _check_merge(self) -> None:
        if self.merge < 1:
            raise OptionError(
                f"merge is {self.merge}: give s >= 1, where s x s patches become one token, 1 for no merging"
            )
        if self.merge_order not in MERGE_ORDERS:
            raise OptionError(
                f"merge_order is {self.merge_order!r}, but it is one of {', '.join(MERGE_ORDERS)}"
            )
        if not self.maps_tokens:
            return
        stated = f"merge is {self.merge}" if self.merge > 1 else f"token_order is {self.token_order!r}"
        if self.prefix_tokens or self.dropped_rows is not None:
            name = "prefix_tokens" if self.prefix_tokens else "dropped_rows"
            raise OptionError(
                f"{stated} and {name} is {getattr(self, name)}, but then every row of the features is a "
                f"token: leave {name} at None, and give special_tokens for attention rows before the patches"
            )
        scored = self.scores_only or SELECTORS[self.strategy].needs_scores
        row_major = self.merge > 1 and self.merge_order == "row_major"
        if row_major and scored and not isinstance(self.grid, tuple):
            raise OptionError(
                f"{stated} in order 'row_major' and grid is {self.grid!r}, but which patches make a token "
                "follows from the grid: give grid=(rows, columns) of the merged tokens, or "
                "merge_order='packed' if the patches of a token lie together"
            )

    def _check_mask(self) -> None:
        if self.mask and self.scores_only:
            raise OptionError(
                "mask and scores_only are True, but nothing is selected then: leave mask, and mask the "
                "scores on the host"
            )
        if self.mask and not SELECTORS[self.strategy].takes_mask:
            able = ", ".join(name for name, each in SELECTORS.items() if each.takes_mask)
            raise OptionError(
                f"mask is True, but strategy {self.strategy!r} cannot leave tokens out: use one of {able}"
            )
