"""How much an image can be at most, and usually is: units, tokens and rows in the prompt, from the layout."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from runtime.errors import ImageError
from runtime.layouts import ImageLayout, ImagePlan
from runtime.layouts.native import NativeLayout
from runtime.manifest import Manifest, PruningInfo
from runtime.plan import Amount, kept_placeholders, newline_policy, stitched_counts, unit_counts

__all__ = ["USUAL_SIZE", "Visual", "kept_rows_of", "usual_amount", "visual_of"]

USUAL_SIZE = (768, 1024)
"""(height, width) of the picture that engines are tuned for."""

_MOST_TILES = 12  # along a side: no published layout cuts finer


@dataclass(frozen=True)
class Visual:
    """Sizes of one image: `usual` is a picture of `USUAL_SIZE`, `most` what the layout allows.

    Attributes:
        units, most_units: pictures that the encoder sees.
        tokens, most_tokens: N of one unit.
        rows, most_rows: rows in the prompt once pruned to the usual and to the greatest ratio.
        columns: tokens of a grid row where whole rows are kept, else 1.
        windows, most_windows: attention windows of a unit; 0: none.
    """

    units: int
    most_units: int
    tokens: int
    most_tokens: int
    rows: int
    most_rows: int
    columns: int
    windows: int = 0
    most_windows: int = 0


def usual_amount(pruning: PruningInfo, ratio: float | None) -> Amount:
    """The amount that engines are tuned for: `ratio`, else the bundle's own default, else everything."""
    if ratio is not None:
        return Amount(ratio=ratio)
    if pruning.default_ratio is None and pruning.default_tokens is not None:
        return Amount(tokens=pruning.default_tokens)
    return Amount(ratio=pruning.default_ratio or 1.0)


def visual_of(manifest: Manifest, usual: Amount, max_ratio: float, max_tokens: int) -> Visual:
    """Sizes of the images of a bundle.

    Args:
        manifest: layout and pruning are read.
        usual: kept of a usual picture.
        max_ratio: greatest ratio that engines take.
        max_tokens: N at most where images keep their own size; without meaning elsewhere.
    """
    layout, pruning = manifest.layout, manifest.pruning
    columns = layout.unit_grid[1] if pruning.strategy == "row" and layout.unit_grid is not None else 1
    most = Amount(ratio=max_ratio)
    if isinstance(layout, NativeLayout):
        return _native(layout, pruning, (usual, most), max_tokens)
    picture = layout.plan(*USUAL_SIZE)
    plans = list(_plans(layout))
    tokens = picture.units[0].tokens
    return Visual(
        units=len(picture.units),
        most_units=max(len(plan.units) for plan in plans),
        tokens=tokens,
        most_tokens=tokens,
        rows=kept_rows_of(picture, usual, layout.prefix_tokens, pruning),
        most_rows=max(kept_rows_of(plan, most, layout.prefix_tokens, pruning) for plan in plans),
        columns=columns,
    )


def kept_rows_of(plan: ImagePlan, amount: Amount, prefix: int, pruning: PruningInfo) -> int:
    """Rows of an image in the prompt: kept tokens, prefix rows and, at most, newlines."""
    limit = amount.tokens
    own = amount if limit is None else Amount(tokens=min(limit, plan.prunable))
    stitched = pruning.row_scope == "stitched"
    counts = stitched_counts(plan, own) if stitched else unit_counts(plan, own, pruning.strategy)
    kept = sum(counts)
    return kept_placeholders(plan, kept, prefix, newline_policy(plan, kept, pruning))


def _plans(layout: ImageLayout) -> Iterator[ImagePlan]:
    """Pictures whose sides are whole tiles: every canvas of a tiling layout is one of them."""
    height, width = layout.pixel_shape[-2:]
    for rows in range(1, _MOST_TILES + 1):
        for columns in range(1, _MOST_TILES + 1):
            try:
                yield layout.plan(rows * int(height), columns * int(width))
            except ImageError:  # more pixels than a layout takes
                continue


def _native(
    layout: NativeLayout, pruning: PruningInfo, amounts: tuple[Amount, Amount], max_tokens: int
) -> Visual:
    """Images in their own size: N is bounded by `max_pixels` and by what the engine is built for."""
    side = layout.patch_size * layout.merge_size
    most = min(_most_tokens(layout, side), max_tokens)
    height, width = USUAL_SIZE
    picture = layout.plan(height, width)
    while picture.units[0].tokens > most:  # a smaller usual picture, of the same shape
        height, width = height * 9 // 10, width * 9 // 10
        picture = layout.plan(height, width)
    usual, greatest = amounts
    tokens = picture.units[0].tokens
    ratio = 1.0 if greatest.ratio is None else greatest.ratio
    window = layout.window
    return Visual(
        units=1,
        most_units=1,
        tokens=tokens,
        most_tokens=most,
        rows=kept_rows_of(picture, usual, layout.prefix_tokens, pruning),
        # Rows are rounded per picture, so that one of any shape keeps at most so many, and a row more.
        most_rows=most if ratio >= 1.0 else min(most, math.ceil(most * ratio) + _row_rounding(pruning, most)),
        columns=1,
        windows=0 if window is None else len(picture.inputs["window_tokens"]),
        most_windows=0 if window is None else _most_windows(most, window),
    )


def _row_rounding(pruning: PruningInfo, tokens: int) -> int:
    """What keeping whole rows may add: a row, which is at most 200 times as long as the picture is high."""
    return 0 if pruning.strategy != "row" else math.isqrt(200 * tokens) + 1


def _most_tokens(layout: NativeLayout, side: int) -> int:
    """N of the largest picture; slivers keep one token across, whatever their length becomes."""
    found = layout.max_pixels // side**2
    for aspect in range(1, 201):
        for pixels in (layout.min_pixels, 4 * layout.max_pixels):
            height = max(1, math.isqrt(pixels // aspect))
            try:
                rows, columns = layout.resized(height, height * aspect)
            except ImageError:
                continue
            found = max(found, rows // side * (columns // side))
    return found


def _most_windows(tokens: int, window: int) -> int:
    """Most windows of any grid of at most `tokens`, one side at most 200 times the other."""
    best = 0
    for rows in range(max(1, math.isqrt(tokens // 200)), math.isqrt(tokens) + 1):
        columns = min(tokens // rows, 200 * (rows + 1))
        best = max(best, -(-rows // window) * -(-columns // window))
    return best
