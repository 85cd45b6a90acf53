"""From a request and a bundle to one number, K: how many visual tokens of each image go on."""

from __future__ import annotations

from dataclasses import dataclass

from runtime.counts import kept_count, kept_rows
from runtime.errors import RequestError
from runtime.manifest import Manifest
from runtime.request import Request
from runtime.selectors import GRAPH

__all__ = ["PruningPlan", "plan_pruning"]


@dataclass(frozen=True)
class PruningPlan:
    """K per image; `pruned` is False exactly when every token stays, and then `reason` says why."""

    keep: int
    pruned: bool
    reason: str | None


def plan_pruning(request: Request, manifest: Manifest) -> PruningPlan:
    """Decide K for every image of a request; all images of a bundle have the same N.

    Raises:
        RequestError: `tokens` outside 1..N, less than one row for `row`, or `row` without a grid.
    """
    total = manifest.vision.tokens
    if not request.all_images:
        return PruningPlan(total, False, "the prompt has no image")
    if request.selector == "none":
        return PruningPlan(total, False, 'selector "none" keeps every token')
    ratio, tokens = request.ratio, request.tokens
    if ratio is None and tokens is None:
        ratio, tokens = manifest.pruning.default_ratio, manifest.pruning.default_tokens
    strategy = manifest.pruning.strategy if request.selector == GRAPH else request.selector
    if tokens is not None:
        keep, asked = _by_tokens(tokens, strategy, manifest), f"tokens {tokens}"
    elif ratio is not None:
        keep, asked = _by_ratio(ratio, strategy, manifest), f"ratio {ratio}"
    else:
        return PruningPlan(total, False, "neither the request nor the bundle gives a ratio")
    if keep < total:
        return PruningPlan(keep, True, None)
    return PruningPlan(total, False, f"{asked} keeps every token")


def _by_ratio(ratio: float, strategy: str, manifest: Manifest) -> int:
    if strategy != "row":
        return kept_count(manifest.vision.tokens, ratio)
    rows, columns = _full_grid(manifest)
    return columns * kept_rows(rows, ratio)


def _by_tokens(tokens: int, strategy: str, manifest: Manifest) -> int:
    total = manifest.vision.tokens
    if not 1 <= tokens <= total:
        raise RequestError(f"tokens is {tokens}, but an image has {total}: give 1..{total}")
    if strategy != "row":
        return tokens
    _, columns = _full_grid(manifest)
    if tokens < columns:
        raise RequestError(
            f'tokens is {tokens}, but strategy "row" keeps whole rows of {columns}: give {columns}..{total}'
        )
    return tokens // columns * columns


def _full_grid(manifest: Manifest) -> tuple[int, int]:
    if manifest.vision.grid is None:
        raise RequestError('selector "row" needs a full grid of tokens, which this model lacks: use "rank"')
    return manifest.vision.grid
