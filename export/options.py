"""What a user may choose about a build, checked before anything heavy is imported."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from export.errors import OptionError
from runtime.counts import kept_count, kept_rows

if TYPE_CHECKING:
    from export.families import VisionLayout

__all__ = [
    "AGGREGATIONS",
    "DEFAULT_MODEL",
    "DEFAULT_RATIO",
    "OPSETS",
    "STRATEGIES",
    "BuildOptions",
    "kept_tokens",
]

DEFAULT_MODEL = "demo/checkpoint"
DEFAULT_RATIO = 0.3
# As in fopru_graph, which cannot be asked before the packages it needs are known to be there.
STRATEGIES = ("rank", "row")
AGGREGATIONS = ("col_mean", "col_mean_patch", "cls")
OPSETS = (20, 23)


@dataclass(frozen=True)
class BuildOptions:
    """One build.

    Attributes:
        model: checkpoint directory or hub id.
        output: bundle directory; None: `bundles/<model name>`.
        ratio: fraction of the visual tokens that is KEPT by default, in (0, 1]; None with `tokens` None: 0.3.
        tokens: visual tokens kept per image by default, instead of `ratio`.
        strategy: `rank` (highest scores) or `row` (whole grid rows).
        aggregation: how attention becomes a score (FoPru spec, section 3).
        layer: 0-based encoder layer that scores; None: the one whose output feeds the projector.
        opset: 20 (portable) or 23 (attention as one op).
        images: pictures of the golden tensors; empty: the packaged sample.
        prompt: question of the golden tensors; None: the packaged one.
    """

    model: str
    output: Path | None = None
    ratio: float | None = None
    tokens: int | None = None
    strategy: str = "rank"
    aggregation: str = "col_mean"
    layer: int | None = None
    opset: int = 20
    images: tuple[Path, ...] = ()
    prompt: str | None = None

    def __post_init__(self) -> None:
        if self.ratio is not None and self.tokens is not None:
            raise OptionError(f"got both ratio {self.ratio} and tokens {self.tokens}: give one of the two")
        if self.ratio is not None and not 0.0 < self.ratio <= 1.0:  # also true for NaN
            raise OptionError(
                f"ratio is {self.ratio}, but it is the fraction of tokens kept: give a number in (0, 1], "
                "e.g. 0.3"
            )
        if self.tokens is not None and self.tokens < 1:
            raise OptionError(f"tokens is {self.tokens}, but at least 1 token per image must be kept")
        for name, value, allowed in (
            ("strategy", self.strategy, STRATEGIES),
            ("aggregation", self.aggregation, AGGREGATIONS),
            ("opset", self.opset, OPSETS),
        ):
            if value not in allowed:
                raise OptionError(f"{name} is {value!r}, expected one of {', '.join(map(str, allowed))}")
        if self.layer is not None and self.layer < 0:
            raise OptionError(f"layer is {self.layer}, but layers are counted from 0: give 0 or more")
        for image in self.images:
            if not image.is_file():
                raise OptionError(f"image {image} is not a file: give a picture file, or leave --image out")

    @property
    def keep_ratio(self) -> float | None:
        """The ratio in force, None when `tokens` rules."""
        return DEFAULT_RATIO if self.ratio is None and self.tokens is None else self.ratio

    def check(self, layout: VisionLayout) -> None:
        """Compare with a model, still before its weights are loaded.

        Raises:
            OptionError: tokens, layer, strategy or aggregation that this model cannot have.
        """
        kept_tokens(layout, self.strategy, self.keep_ratio, self.tokens)
        if self.layer is not None and self.layer >= layout.layers:
            raise OptionError(
                f"layer is {self.layer}, but only layers 0..{layout.layers - 1} reach the features of this "
                "model: give one of these, or leave --layer out"
            )
        if self.aggregation == "cls" and layout.special_tokens == 0:
            raise OptionError(
                "aggregation is 'cls', but this tower has no CLS token: use col_mean or col_mean_patch"
            )


def kept_tokens(layout: VisionLayout, strategy: str, ratio: float | None, tokens: int | None) -> int:
    """K, the visual tokens kept of one image.

    Raises:
        OptionError: more tokens than the image has, or `row` with no grid or less than a row.
    """
    if tokens is not None and tokens > layout.tokens:
        raise OptionError(f"tokens is {tokens}, but an image has {layout.tokens}: give 1..{layout.tokens}")
    if strategy == "rank":
        return tokens if tokens is not None else kept_count(layout.tokens, ratio or DEFAULT_RATIO)
    if layout.grid is None:
        raise OptionError(
            f"strategy is 'row', but the {layout.tokens} tokens of this model make no full grid (its tower "
            "has no CLS and select strategy 'default' drops the first patch): use rank"
        )
    rows, columns = layout.grid
    if tokens is None:
        return columns * kept_rows(rows, ratio or DEFAULT_RATIO)
    if tokens < columns:
        raise OptionError(
            f"tokens is {tokens}, but strategy 'row' keeps whole rows of {columns}: give "
            f"{columns}..{layout.tokens}"
        )
    return tokens // columns * columns
