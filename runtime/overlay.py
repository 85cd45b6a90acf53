"""A picture of what pruning kept: the model's view of each image, dropped patches dark and grey."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from runtime.errors import RequestError
from runtime.layouts import Unit
from runtime.lazy import require
from runtime.manifest import Manifest

if TYPE_CHECKING:
    from PIL import Image

    from runtime.preprocess import PreparedImage
    from runtime.vision import EncodedImage

__all__ = ["check_overlay", "check_place", "draw_overlay", "save_png"]

_SIDE = 672  # pixels; the shorter side of the picture is at least this
_GAP, _CAPTION, _FONT = 16, 56, 26
_PAPER, _INK, _OUTLINE = (24, 26, 31), (236, 236, 236), (255, 183, 3)
_DIMMED, _GRID = 0.4, 0.85  # brightness of dropped patches, and of the lines between patches


def check_overlay(manifest: Manifest, images: int) -> None:
    """Say before any work whether an overlay can be drawn.

    Raises:
        RequestError: the model has no full grid of tokens, or there is no image.
    """
    if not manifest.layout.has_grid:
        raise RequestError(
            f"this model's {manifest.layout.unit_tokens} tokens per image are not a full grid, "
            "so an overlay cannot be drawn: leave --overlay out"
        )
    if images == 0:
        raise RequestError(
            "an overlay shows an image, but the request has none: add --image or leave --overlay out"
        )


def check_place(path: str) -> None:
    """Say before any work whether the picture can be written there.

    Raises:
        RequestError: no name, a directory, or a directory that is absent or cannot be written.
    """
    if not path:
        raise RequestError("the path of the overlay is empty: give a path that can be written")
    target = Path(path)
    try:
        reason = ""
        if target.is_dir():
            reason = "it is a directory"
        elif not target.parent.is_dir():
            reason = f"there is no directory {target.parent}"
        elif not os.access(target.parent, os.W_OK | os.X_OK):
            reason = f"the directory {target.parent} is not writable"
    except (OSError, ValueError) as error:
        reason = str(error)
    if reason:
        raise RequestError(f"cannot write the overlay {path} ({reason}): give a path that can be written")


def draw_overlay(
    prepared: Sequence[PreparedImage], encoded: Sequence[EncodedImage], manifest: Manifest
) -> Image.Image:
    """Draw every image side by side; of an image in tiles, the whole picture and the tiles put together.

    Args:
        prepared: what the encoder looked at.
        encoded: what was kept of it.
        manifest: of the bundle that kept it.

    Raises:
        RequestError: see `check_overlay`.
    """
    check_overlay(manifest, len(prepared))
    shown = [part for image, kept in zip(prepared, encoded, strict=True) for part in _pictures(image, kept)]
    panels = [_panel(picture) for picture in shown]
    pil = require("PIL.Image", "pillow")
    width = _GAP + sum(panel.size[0] + _GAP for panel in panels)
    sheet = pil.new("RGB", (width, max(panel.size[1] for panel in panels) + 2 * _GAP), _PAPER)
    left = _GAP
    for panel in panels:
        sheet.paste(panel, (left, _GAP))
        left += panel.size[0] + _GAP
    image: Image.Image = sheet
    return image


def save_png(image: Image.Image, path: str | Path) -> None:
    """Write a PNG beside its place and move it there, so that a reader never sees half a picture.

    Raises:
        RequestError: the place cannot be written.
    """
    target = Path(path)
    name = ""
    try:
        with tempfile.NamedTemporaryFile(
            dir=target.parent, prefix=f".{target.name}.", delete=False
        ) as stream:
            name = stream.name
            image.save(stream, format="PNG")
        # A temporary file is private; the picture gets the permissions of any new file.
        mask = os.umask(0)
        os.umask(mask)
        Path(name).chmod(0o666 & ~mask)
        Path(name).replace(target)
    except OSError as error:
        if name:
            Path(name).unlink(missing_ok=True)
        raise RequestError(
            f"cannot write the overlay {target} ({error}): give a path that can be written"
        ) from error


@dataclass(frozen=True)
class _Picture:
    """One panel: uint8 [H, W, 3], bool [R, C] of the tokens kept, and how many there were."""

    view: npt.NDArray[np.uint8]
    keep: npt.NDArray[np.bool_]
    tokens: int


def _pictures(image: PreparedImage, encoded: EncodedImage) -> list[_Picture]:
    """One picture per unit, but the tiles of an image as one."""
    plan = image.plan
    single = [
        _Picture(view, _kept_mask(unit, kept), unit.prunable)
        for unit, view, kept in zip(plan.units, image.views, encoded.kept, strict=True)
    ]
    if plan.mosaic is None or plan.overview is None:
        return single
    tiles = [picture for index, picture in enumerate(single) if index != plan.overview]
    stitched = _Picture(
        _stitch([tile.view for tile in tiles], plan.mosaic),
        _stitch([tile.keep for tile in tiles], plan.mosaic),
        sum(tile.tokens for tile in tiles),
    )
    return [single[plan.overview], stitched]


def _kept_mask(unit: Unit, kept: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    mask: npt.NDArray[np.bool_] = np.isin(np.arange(unit.tokens), kept).reshape(unit.grid or (1, -1))
    return mask


def _stitch(parts: Sequence[npt.NDArray[Any]], mosaic: tuple[int, int]) -> npt.NDArray[Any]:
    rows, columns = mosaic
    bands = [np.concatenate(parts[row * columns : (row + 1) * columns], axis=1) for row in range(rows)]
    return np.concatenate(bands)


def _panel(picture: _Picture) -> Any:
    """One picture with its caption."""
    view, keep = picture.view, picture.keep
    rows, columns = keep.shape
    pil = require("PIL.Image", "pillow")
    draw_module = require("PIL.ImageDraw", "pillow")
    # Whole patches on whole pixels: the scale is chosen per patch, not per picture.
    patch = max(-(-_SIDE // rows), -(-_SIDE // columns), 4)
    width, height = columns * patch, rows * patch
    # Where patches do not divide the picture, the encoder never looks at the rest of it.
    view = view[: view.shape[0] // rows * rows, : view.shape[1] // columns * columns]
    colour = np.asarray(pil.fromarray(view).resize((width, height), resample=pil.Resampling.LANCZOS))
    grey = (colour @ np.array([0.299, 0.587, 0.114])) * _DIMMED
    pixels = np.where(keep.repeat(patch, 0).repeat(patch, 1)[..., None], colour, grey[..., None]).astype(
        np.uint8
    )
    lines = np.ones((height, width))
    lines[patch::patch] = lines[:, patch::patch] = _GRID
    pixels = (pixels * lines[..., None]).astype(np.uint8)
    panel = pil.new("RGB", (width, height + _CAPTION), _PAPER)
    panel.paste(pil.fromarray(pixels), (0, 0))
    draw = draw_module.Draw(panel)
    _draw_outline(draw, keep, patch)
    caption = (str(picture.tokens), f"{int(keep.sum())} tokens")
    _draw_caption(draw, (width // 2, height + _CAPTION // 2 + 2), caption)
    return panel


def _draw_caption(draw: Any, centre: tuple[int, int], texts: tuple[str, str]) -> None:
    """`before → after`, the arrow drawn by hand: Pillow's own font has none."""
    font = require("PIL.ImageFont", "pillow").load_default(size=_FONT)
    before, after = (font.getlength(text) for text in texts)
    arrow, space, head = 30, 12, 6
    left, middle = centre[0] - (before + after + arrow + 2 * space) / 2, centre[1]
    draw.text((left, middle), texts[0], fill=_INK, font=font, anchor="lm")
    tail = left + before + space
    tip = tail + arrow
    draw.line((tail, middle, tip, middle), fill=_OUTLINE, width=3)
    draw.line((tip - head, middle - head, tip, middle, tip - head, middle + head), fill=_OUTLINE, width=3)
    draw.text((tip + space, middle), texts[1], fill=_INK, font=font, anchor="lm")


def _draw_outline(draw: Any, keep: npt.NDArray[np.bool_], patch: int) -> None:
    """Lines between kept and dropped patches, and around kept ones at the border of the picture."""
    thick = max(2, patch // 16)
    framed = np.pad(keep, 1)
    for row, column in np.argwhere(keep):
        top, left = int(row) * patch, int(column) * patch
        bottom, right = top + patch - 1, left + patch - 1
        edges = {
            (-1, 0): (left, top, right, top + thick - 1),
            (1, 0): (left, bottom - thick + 1, right, bottom),
            (0, -1): (left, top, left + thick - 1, bottom),
            (0, 1): (right - thick + 1, top, right, bottom),
        }
        for (down, across), box in edges.items():
            if not framed[row + 1 + down, column + 1 + across]:
                draw.rectangle(box, fill=_OUTLINE)
