"""From a request and its images' plans to how many tokens of each unit go on, before any graph runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from runtime.counts import kept_count, kept_rows
from runtime.errors import RequestError
from runtime.layouts import ImagePlan, Unit
from runtime.layouts.stitch import stitched_grid
from runtime.manifest import Manifest, PruningInfo
from runtime.request import Request
from runtime.selectors import GRAPH

__all__ = [
    "Amount",
    "PruningPlan",
    "kept_placeholders",
    "plan_pruning",
    "stitched_counts",
    "stitched_rows",
    "unit_counts",
]


@dataclass(frozen=True)
class Amount:
    """How much of an image is kept: a `ratio`, or so many `tokens`, or (neither) everything."""

    ratio: float | None = None
    tokens: int | None = None

    @property
    def everything(self) -> bool:
        """Whether nothing limits the tokens."""
        return self.ratio is None and self.tokens is None

    def __str__(self) -> str:
        return f"tokens {self.tokens}" if self.tokens is not None else f"ratio {self.ratio}"


@dataclass(frozen=True)
class PruningPlan:
    """`counts`: kept tokens per image and unit; `pruned` is False exactly when every token stays, `reason`
    says why.

    Where rows of the stitched picture are compared, the counts of its tiles depend on the picture; then
    `counts` has their sum alone behind the overview's.
    """

    amount: Amount
    counts: tuple[tuple[int, ...], ...]
    pruned: bool
    reason: str | None


def plan_pruning(request: Request, manifest: Manifest, plans: Sequence[ImagePlan]) -> PruningPlan:
    """Decide the counts of every image of a request.

    Raises:
        RequestError: `tokens` outside 1..N, less than one row for `row`, or `row` without a grid.
    """
    everything = tuple(tuple(unit.prunable for unit in plan.units) for plan in plans)
    if not plans:
        return PruningPlan(Amount(), (), False, "the prompt has no image")
    if request.selector == "none":
        return PruningPlan(Amount(), everything, False, 'selector "none" keeps every token')
    amount = Amount(request.ratio, request.tokens)
    if amount.everything:
        amount = Amount(manifest.pruning.default_ratio, manifest.pruning.default_tokens)
    if amount.everything:
        return PruningPlan(amount, everything, False, "neither the request nor the bundle gives a ratio")
    stitched = stitched_rows(request.selector, manifest.pruning)
    strategy = manifest.pruning.strategy if request.selector == GRAPH else request.selector
    # What a request asks for is refused where an image has less; a default is all that a small image has.
    default = request.ratio is None and request.tokens is None
    own = [_within(amount, plan) if default else amount for plan in plans]
    counts = tuple(
        stitched_counts(plan, each) if stitched else unit_counts(plan, each, strategy)
        for plan, each in zip(plans, own, strict=True)
    )
    if sum(map(sum, counts)) < sum(map(sum, everything)):
        return PruningPlan(amount, counts, True, None)
    return PruningPlan(Amount(), counts, False, f"{amount} keeps every token")


def _within(amount: Amount, plan: ImagePlan) -> Amount:
    return amount if amount.tokens is None else Amount(tokens=min(amount.tokens, plan.prunable))


def stitched_rows(selector: str, pruning: PruningInfo) -> bool:
    """Whether rows of the stitched picture are compared, for a request with this selector."""
    return pruning.row_scope == "stitched" and selector in (GRAPH, "row")


def newline_policy(plan: ImagePlan, kept: int, pruning: PruningInfo) -> str:
    """Policy for one image: what is not pruned keeps its newlines."""
    return pruning.newline if kept < plan.prunable else "keep_all"


def unit_counts(plan: ImagePlan, amount: Amount, strategy: str) -> tuple[int, ...]:
    """Kept tokens of each unit: the rule for all strategies, in one place.

    A ratio holds for each unit. A budget is shared out evenly, and the overview gets what is left; `row`
    keeps whole rows. A unit that is all padding keeps none.

    Raises:
        RequestError: a budget outside what the image has, or too small for its units; `row` without a grid.
    """
    if amount.everything:
        return tuple(unit.prunable for unit in plan.units)
    return _unit_counts_by(plan, amount, strategy)


def kept_placeholders(plan: ImagePlan, kept: int, prefix: int, newline: str) -> int:
    """Placeholders of an image of which `kept` tokens go on; the most, with policy `keep_nonempty`."""
    newlines = 0 if newline == "drop" else int((plan.sequence < 0).sum())
    return prefix * len(plan.units) + kept + newlines


def _unit_counts_by(plan: ImagePlan, amount: Amount, strategy: str) -> tuple[int, ...]:
    if amount.tokens is not None:
        shares = _shares(plan, amount.tokens)
        if strategy != "row":
            return shares
        return tuple(
            _whole_rows(unit, share, amount.tokens) for unit, share in zip(plan.units, shares, strict=True)
        )
    ratio = 1.0 if amount.ratio is None else amount.ratio
    return tuple(_by_ratio(unit, ratio, strategy) for unit in plan.units)


def stitched_counts(plan: ImagePlan, amount: Amount) -> tuple[int, ...]:
    """Kept tokens where stitched rows are compared: (the overview's, all tiles' together), as the
    tiles' own counts depend on the picture; without tiles, the counts of the units.

    Raises:
        RequestError: as `unit_counts`.
    """
    if plan.mosaic is None or plan.overview is None:
        return _unit_counts_by(plan, amount, "row")
    overview, (rows, columns) = plan.units[plan.overview], stitched_grid(plan)
    tiles = Unit(rows * columns, (rows, columns))
    if amount.tokens is None:
        ratio = 1.0 if amount.ratio is None else amount.ratio
        return _by_ratio(overview, ratio, "row"), _by_ratio(tiles, ratio, "row")
    share = _shares(plan, amount.tokens)[plan.overview]
    return _whole_rows(overview, share, amount.tokens), _whole_rows(
        tiles, amount.tokens - share, amount.tokens
    )


def _by_ratio(unit: Unit, ratio: float, strategy: str) -> int:
    if unit.prunable == 0:
        return 0
    if strategy != "row":
        return kept_count(unit.prunable, ratio)
    rows, columns = _full_grid(unit)
    return columns * kept_rows(rows, ratio)


def _shares(plan: ImagePlan, tokens: int) -> tuple[int, ...]:
    filled = [index for index, unit in enumerate(plan.units) if unit.prunable]
    total = plan.prunable
    if not 1 <= tokens <= total:
        raise RequestError(f"tokens is {tokens}, but an image has {total}: give 1..{total}")
    if tokens < len(filled):
        raise RequestError(
            f"tokens is {tokens}, but the image is seen in {len(filled)} parts, each of which keeps at "
            f"least one: give {len(filled)}..{total}"
        )
    shares = [0] * len(plan.units)
    for index in filled:
        shares[index] = min(tokens // len(filled), plan.units[index].prunable)
    main = filled[0] if plan.overview is None else plan.overview
    for index in (main, *filled):  # what is left, to the overview, and what that cannot hold to the others
        shares[index] += min(plan.units[index].prunable - shares[index], tokens - sum(shares))
    return tuple(shares)


def _whole_rows(unit: Unit, share: int, tokens: int) -> int:
    if unit.prunable == 0:
        return 0
    _, columns = _full_grid(unit)
    if share < columns:
        part = "" if share == tokens else f", and a part of the image gets {share} of them"
        raise RequestError(
            f'tokens is {tokens}{part}, but strategy "row" keeps whole rows of {columns}: give '
            + (f"{columns}..{unit.prunable}" if not part else "more")
        )
    return min(share, unit.prunable) // columns * columns


def _full_grid(unit: Unit) -> tuple[int, int]:
    grid = unit.valid_grid
    if grid is None:
        raise RequestError('selector "row" needs a full grid of tokens, which this model lacks: use "rank"')
    return grid
