"""The baseline that needs no FoPru: just make the picture smaller.

Where the number of tokens follows the picture (`native`, `anyres`), the picture is made smaller until its
plan has few enough. Models that enlarge or cut every picture alike (`split`, `aspect`) get what their users
lower instead: the longest edge, the most tiles. Nothing is pruned, so that these are the tokens that the
model was trained on.

A tower of one fixed size (`single`) has as many tokens for a small picture as for a large one. There the
baseline is a stand-in, not something a user would run: the picture, made smaller, lies in the top left corner
of an empty canvas, and only the tokens of that corner go on. It answers "what if the model had seen a smaller
picture", with a vision tower that was trained on large ones, and costs its full time.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from calib.errors import RunError
from runtime.counts import kept_count
from runtime.layouts import ImageLayout, ImagePlan
from runtime.layouts.aspect import AspectLayout
from runtime.layouts.native import NativeLayout
from runtime.layouts.single import SingleLayout
from runtime.layouts.split import SplitLayout
from runtime.lazy import require
from runtime.manifest import Preprocess
from runtime.preprocess import PreparedImage, prepare

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["Smaller", "corner", "in_corner", "prepare_smaller", "smaller", "stand_in_note"]


@dataclass(frozen=True)
class Smaller:
    """What to send instead of a picture: one of (height, width), cut by a layout."""

    size: tuple[int, int]
    layout: ImageLayout


def smaller(size: tuple[int, int], layout: ImageLayout, ratio: float) -> Smaller:
    """The largest form of a picture of (height, width) with at most that fraction of its visual tokens.

    Raises:
        RunError: even the smallest has more.
        ImageError: a size that the model cannot take.
    """
    total = _tokens(layout.plan(*size), layout)
    limit = kept_count(total, ratio)
    best, least = None, total
    for form in _forms(size, layout, limit):
        tokens = _tokens(form.layout.plan(*form.size), form.layout)
        least = min(least, tokens)
        if tokens <= limit:
            best = form
            break
    if best is None:
        raise RunError(
            f"a picture of {size[1]} x {size[0]} pixels has {total} visual tokens and at least {least} "
            f"however small it is made, but ratio {ratio:g} is {limit}: compare resizing at higher ratios"
        )
    return best


def prepare_smaller(picture: Image.Image, form: Smaller, config: Preprocess) -> PreparedImage:
    """The smaller form of a picture, ready for the encoder."""
    height, width = form.size
    if (picture.height, picture.width) != form.size:
        picture = picture.resize((width, height), resample=config.resample)
    return prepare(picture, form.layout, config)


def corner(grid: tuple[int, int], keep: int) -> tuple[int, int]:
    """(r, c): the corner of a grid (R, C) with the most tokens up to `keep` that has about its shape, so
    that both sides are sqrt(ratio) of the grid's but for one token; the nearest shape, then the wider, of
    several."""
    rows, columns = grid
    down, across = (keep * rows / columns) ** 0.5, (keep * columns / rows) ** 0.5
    tried = {min(max(1, int(down) + more), rows, keep) for more in (0, 1)}
    found = [(r, min(columns, keep // r, int(across) + 1)) for r in tried]
    return max(found, key=lambda rc: (rc[0] * rc[1], -abs(rc[0] / rows - rc[1] / columns), rc[1]))


def in_corner(
    picture: Image.Image, layout: SingleLayout, config: Preprocess, ratio: float
) -> tuple[PreparedImage, npt.NDArray[np.int64]]:
    """The stand-in for a tower of one fixed size, see above.

    What the encoder would see is made smaller, and lies on the model's mean colour.

    Returns:
        What the encoder gets, and the tokens of the corner, int64 [r * c] ascending.

    Raises:
        RunError: the tokens make no grid.
    """
    if layout.grid is None:
        raise RunError(
            f"the {layout.tokens} tokens of this model make no grid, so that no part of them is a smaller "
            "picture: leave resize out"
        )
    rows, columns = layout.grid
    r, c = corner(layout.grid, kept_count(layout.tokens, ratio))
    pil = require("PIL.Image", "pillow")
    height, width = layout.image_size
    view = pil.fromarray(layout.views(picture, config.resample)[0])
    size = round(width * c / columns), round(height * r / rows)
    colour = tuple(min(255, max(0, round(mean / config.rescale_factor))) for mean in config.mean)
    canvas = pil.new("RGB", (width, height), colour)
    canvas.paste(view if size == view.size else view.resize(size, resample=config.resample), (0, 0))
    # It is what the encoder sees already: neither resized nor cut again.
    plain = replace(layout, resize={"height": height, "width": width}, crop=None, pad_to_square=None)
    kept = np.arange(layout.tokens, dtype=np.int64).reshape(rows, columns)[:r, :c].reshape(-1)
    return prepare(canvas, plain, config), kept


def stand_in_note(layout: ImageLayout) -> str | None:
    """What a reader must know before believing the baseline; None where it is what a user would do."""
    if not isinstance(layout, SingleLayout):
        return None
    return (
        "resize is a stand-in: this vision encoder takes pictures of one size only, so the smaller picture "
        "lies in the corner of an empty one, and only that corner's tokens are kept; it saves no encoder "
        "time, and nobody would serve this model so"
    )


def _tokens(plan: ImagePlan, layout: ImageLayout) -> int:
    return plan.placeholders - layout.prefix_tokens * len(plan.units)


def _forms(size: tuple[int, int], layout: ImageLayout, limit: int) -> Iterator[Smaller]:
    """Smaller forms, the largest first."""
    yield Smaller(size, layout)
    if isinstance(layout, SplitLayout):
        for edge in range(max(layout.resize.values()) // layout.tile - 1, 0, -1):
            yield Smaller(size, replace(layout, resize=_edge(layout, edge * layout.tile)))
        yield Smaller(size, replace(layout, splitting=False))
    elif isinstance(layout, AspectLayout):
        fewest, most = layout.tiles
        for tiles in range(most - 1, 0, -1):
            yield Smaller(size, replace(layout, tiles=(min(fewest, tiles), tiles)))
    else:
        yield Smaller(_largest(size, layout, limit), layout)


def _edge(layout: SplitLayout, edge: int) -> dict[str, int]:
    """The resize with its longer edge as given, whole tiles."""
    if "longest_edge" in layout.resize:
        return {"longest_edge": edge}
    longest = max(layout.resize.values())
    return {
        name: max(layout.tile, round(value * edge / longest / layout.tile) * layout.tile)
        for name, value in layout.resize.items()
    }


def _largest(size: tuple[int, int], layout: ImageLayout, limit: int) -> tuple[int, int]:
    """(height, width), aspect ratio kept, with at most `limit` tokens; the smallest where none is found."""
    longest = max(size)
    low, high = -(-longest // min(size)), longest  # the shorter edge has one pixel
    if isinstance(layout, NativeLayout):  # very small pictures are made larger, and may get more tokens
        side = layout.patch_size * layout.merge_size
        forms = (_scaled(size, edge) for edge in range(longest, low - 1, -1))
        fitting = (form for form in forms if math.prod(layout.resized(*form)) // side**2 <= limit)
        return next(fitting, _scaled(size, low))
    # By bisection: the tokens of tiles grow with a picture, and planning them takes long.
    while high - low > 1:
        middle = (low + high) // 2
        if _tokens(layout.plan(*_scaled(size, middle)), layout) <= limit:
            low = middle
        else:
            high = middle
    return _scaled(size, low)


def _scaled(size: tuple[int, int], longest: int) -> tuple[int, int]:
    height, width = (max(1, round(edge * longest / max(size))) for edge in size)
    return height, width
