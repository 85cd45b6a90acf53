"""Scenes: 1-4 handwritten digits scattered over a crop of a photograph, 112 x 112 px.

Digits come from the UCI "optical recognition of handwritten digits" set (``sklearn.datasets.load_digits``,
1,797 images of 8 x 8), photographs from ``sklearn.datasets.load_sample_images`` (two of 427 x 640). Digits
and photograph regions of the two splits are disjoint. Everything is a pure function of ``(split, layout,
seed)``.
"""

from __future__ import annotations

import colorsys
from dataclasses import dataclass
from functools import cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from sklearn.datasets import load_digits, load_sample_images

__all__ = [
    "BACKGROUND",
    "GRID",
    "IMAGE_SIZE",
    "PATCH_SIZE",
    "Layout",
    "Scene",
    "Split",
    "draw_scene",
    "draw_scenes",
]

Split = Literal["train", "test"]
FloatArray = NDArray[np.float32]

IMAGE_SIZE = 112  # px
PATCH_SIZE = 8  # px
GRID = IMAGE_SIZE // PATCH_SIZE  # patches per side
BACKGROUND = 10  # patch label of a patch without ink; 0-9 are the digits

SPLIT_SEED = 20241
TRAIN_FRACTION = 0.8  # of the digits
TEST_FROM_COLUMN = (
    430  # px: photographs are 640 wide; the test crops lie right of this column, the others left of it
)
MIN_CENTRE_GAP = 16.0  # px between neighbouring x-centres, two patches: "left to right" has one meaning
BOX_MARGIN = 2.0  # px of photograph around every digit
GLYPH_CELLS = 8  # a digit is 8 x 8 cells
CROWD_SIDE = 3  # cells per side of a crowded scene, 37 px each
INK_MIN = 0.12  # mean alpha above which a patch counts as ink


@dataclass(frozen=True)
class Layout:
    """How many digits a scene has and how large they are (px, height of the 8-cell digit box)."""

    min_digits: int = 1
    max_digits: int = 4
    min_size: int = 16
    max_size: int = 28
    clutter: float = 1.0  # contrast of the photograph; 0 leaves its mean colour
    crowded: bool = False  # up to 9 digits in the cells of a 3 x 3 grid; "left to right" then means little

    def __post_init__(self) -> None:
        most = CROWD_SIDE**2 if self.crowded else 4
        if not 1 <= self.min_digits <= self.max_digits <= most:
            raise ValueError(
                f"digits must satisfy 1 <= min <= max <= {most}, got {self.min_digits}..{self.max_digits}"
            )
        if not 8 <= self.min_size <= self.max_size <= 32:
            raise ValueError(
                f"sizes must satisfy 8 <= min <= max <= 32 px, got {self.min_size}..{self.max_size}"
            )


@dataclass(frozen=True)
class Scene:
    """One picture and everything that is known about it."""

    image: NDArray[np.uint8]  # [112, 112, 3] RGB
    digits: tuple[int, ...]  # left to right
    patch_ink: FloatArray  # [196] mean alpha of the digits in each patch, row-major
    patch_label: NDArray[np.int64]  # [196] digit with the most ink in the patch, BACKGROUND below INK_MIN

    @property
    def ink_mask(self) -> NDArray[np.bool_]:
        """[196] patches that hold ink."""
        return self.patch_label != BACKGROUND


def draw_scenes(split: Split, layout: Layout, seed: int, count: int) -> list[Scene]:
    """``count`` scenes; scene ``i`` depends on ``(split, layout, seed, i)`` only."""
    return [draw_scene(split, layout, (seed, index)) for index in range(count)]


def draw_scene(split: Split, layout: Layout, seed: int | tuple[int, ...]) -> Scene:
    """One scene of a split."""
    entropy = (seed,) if isinstance(seed, int) else seed
    rng = np.random.default_rng([int(split == "test"), *entropy])
    canvas = _background(split, rng, layout.clutter)
    images, labels = _digit_pool(split)
    count = int(rng.integers(layout.min_digits, layout.max_digits + 1))
    picks = rng.integers(0, len(labels), count)
    glyphs = [_glyph(images[pick], rng, layout, augment=split == "train") for pick in picks]
    places = _crowded_places if layout.crowded else _places
    alphas = np.zeros((count, IMAGE_SIZE, IMAGE_SIZE), np.float32)
    for alpha, glyph, (top, left) in zip(alphas, glyphs, places(glyphs, rng), strict=True):
        height, width = glyph.shape
        alpha[top : top + height, left : left + width] = glyph
        window = canvas[top : top + height, left : left + width]
        window += (_clear_colour(window.mean(axis=(0, 1)), rng) - window) * glyph[..., None]
    ink = alphas.reshape(count, GRID, PATCH_SIZE, GRID, PATCH_SIZE).mean(axis=(2, 4)).reshape(count, -1)
    digits = labels[picks]
    label = np.where(ink.max(axis=0) >= INK_MIN, digits[ink.argmax(axis=0)], BACKGROUND)
    return Scene(
        image=np.clip(np.rint(canvas * 255.0), 0, 255).astype(np.uint8),
        digits=tuple(int(digit) for digit in digits),
        patch_ink=ink.sum(axis=0, dtype=np.float32),
        patch_label=label.astype(np.int64),
    )


@cache
def _digit_pool(split: Split) -> tuple[FloatArray, NDArray[np.int64]]:
    """Images [n, 12, 12] in 0-1 (8 x 8 and a border of 2) and labels [n] of one split (seeded 80/20)."""
    data = load_digits()
    order = np.random.default_rng(SPLIT_SEED).permutation(len(data.target))
    cut = int(len(order) * TRAIN_FRACTION)
    rows = order[:cut] if split == "train" else order[cut:]
    bordered = np.pad(data.images[rows] / 16.0, ((0, 0), (2, 2), (2, 2)))
    return bordered.astype(np.float32), data.target[rows].astype(np.int64)


@cache
def _photographs(split: Split) -> tuple[Image.Image, ...]:
    """The columns of each photograph that belong to one split."""
    columns = slice(0, TEST_FROM_COLUMN) if split == "train" else slice(TEST_FROM_COLUMN, None)
    return tuple(
        Image.fromarray(np.ascontiguousarray(photo[:, columns])) for photo in load_sample_images().images
    )


def _background(split: Split, rng: np.random.Generator, clutter: float) -> FloatArray:
    """[112, 112, 3] in 0-1: a crop of 112-200 px, resized, mirrored half the time, contrast softened."""
    photos = _photographs(split)
    photo = photos[int(rng.integers(len(photos)))]
    side = float(rng.uniform(IMAGE_SIZE, min(200.0, *photo.size)))
    left, top = rng.uniform(0, photo.size[0] - side), rng.uniform(0, photo.size[1] - side)
    box = (left, top, left + side, top + side)
    crop = photo.resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BILINEAR, box=box)
    canvas: FloatArray = np.asarray(crop, np.float32) / np.float32(255.0)
    if rng.random() < 0.5:
        canvas = canvas[:, ::-1]
    mean = canvas.mean(axis=(0, 1))
    softened: FloatArray = mean + (canvas - mean) * np.float32(clutter * rng.uniform(0.6, 1.0))
    return softened


def _glyph(cells: FloatArray, rng: np.random.Generator, layout: Layout, augment: bool) -> FloatArray:
    """Alpha [h, w] of one digit, cropped to its ink: resampled bilinearly, then sharpened to a clear stroke.

    Training digits are rotated, sheared and stretched a little, because there are only about 1,400 of them.
    """
    size = float(rng.uniform(layout.min_size, layout.max_size))
    angle = shear = stretch_x = stretch_y = 0.0
    low, high = 0.32, 0.72
    if augment:
        angle, shear = rng.uniform(-0.24, 0.24), rng.uniform(-0.2, 0.2)
        stretch_x, stretch_y = rng.uniform(-0.12, 0.12, 2)
        low, high = low + rng.uniform(-0.1, 0.08), high + rng.uniform(-0.1, 0.1)
    side = int(np.ceil(size * 1.3))
    axis = ((np.arange(side, dtype=np.float32) + 0.5) - side / 2) * (GLYPH_CELLS / size)
    x, y = np.meshgrid(axis * (1 + stretch_x), axis * (1 + stretch_y))
    cos, sin = np.cos(angle), np.sin(angle)
    column, row = cos * x - sin * y + shear * y + 3.5, sin * x + cos * y + 3.5
    alpha = np.clip((_bilinear(cells, row, column) - low) / (high - low), 0, 1)
    inked = alpha > 0.1
    rows, columns = np.flatnonzero(inked.any(axis=1)), np.flatnonzero(inked.any(axis=0))
    cropped: FloatArray = alpha[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].astype(np.float32)
    return cropped


def _bilinear(
    cells: FloatArray, row: NDArray[np.floating], column: NDArray[np.floating]
) -> NDArray[np.floating]:
    """Samples ``cells``, which has a border of 2, at fractional positions; outside is 0."""
    row, column = np.clip(row + 2, 0, 10.999), np.clip(column + 2, 0, 10.999)
    top, left = row.astype(np.intp), column.astype(np.intp)
    down, right = row - top, column - left
    above = cells[top, left] * (1 - right) + cells[top, left + 1] * right
    below = cells[top + 1, left] * (1 - right) + cells[top + 1, left + 1] * right
    return above * (1 - down) + below * down


def _places(glyphs: list[FloatArray], rng: np.random.Generator) -> list[tuple[int, int]]:
    """(top, left) of each glyph: x-centres in order and MIN_CENTRE_GAP apart, boxes apart by BOX_MARGIN."""
    widths = np.array([glyph.shape[1] for glyph in glyphs], np.float64)
    low, high = widths[0] / 2 + 1, IMAGE_SIZE - 1 - widths[-1] / 2
    steps = np.arange(len(glyphs)) * MIN_CENTRE_GAP
    # Wide neighbours may still collide with the frame, so the span is that of the widest glyph.
    low, high = max(low, widths.max() / 2 + 1), min(high, IMAGE_SIZE - 1 - widths.max() / 2)
    centres = low + np.sort(rng.uniform(0, high - low - steps[-1], len(glyphs))) + steps
    places: list[tuple[int, int]] = []
    for index, glyph in enumerate(glyphs):
        left = int(centres[index] - widths[index] / 2)
        # At most two earlier boxes can reach this column, so a free row turns up after a few draws.
        while True:
            top = int(rng.integers(1, IMAGE_SIZE - glyph.shape[0]))
            if not any(
                _boxes_touch((top, left), glyph, *other) for other in zip(places, glyphs, strict=False)
            ):
                break
        places.append((top, left))
    return places


def _crowded_places(glyphs: list[FloatArray], rng: np.random.Generator) -> list[tuple[int, int]]:
    """(top, left) of each glyph, somewhere in a cell of its own, from left to right and top to bottom."""
    pitch = IMAGE_SIZE / CROWD_SIDE
    places = []
    for cell, glyph in zip(sorted(rng.permutation(CROWD_SIDE**2)[: len(glyphs)]), glyphs, strict=True):
        column, row = divmod(int(cell), CROWD_SIDE)
        slack = [max(0.0, pitch - length - BOX_MARGIN) for length in glyph.shape]
        corner = [pitch * at + rng.uniform(0, free) for at, free in zip((row, column), slack, strict=True)]
        top, left = (
            int(min(at, IMAGE_SIZE - length)) for at, length in zip(corner, glyph.shape, strict=True)
        )
        places.append((top, left))
    return places


def _boxes_touch(
    place: tuple[int, int], glyph: FloatArray, other_place: tuple[int, int], other: FloatArray
) -> bool:
    apart = [
        place[axis] + glyph.shape[axis] + BOX_MARGIN <= other_place[axis]
        or other_place[axis] + other.shape[axis] + BOX_MARGIN <= place[axis]
        for axis in (0, 1)
    ]
    return not any(apart)


def _clear_colour(under: FloatArray, rng: np.random.Generator) -> FloatArray:
    """An RGB colour in 0-1 that stands out from ``under``: the farthest of five, in luma-like weights."""
    weights = np.array([0.8, 1.2, 0.6])
    colours = [
        colorsys.hsv_to_rgb(
            rng.random(), rng.uniform(0.3, 1.0), 1.0 if rng.random() < 0.6 else rng.uniform(0, 0.3)
        )
        for _ in range(5)
    ]
    best = max(colours, key=lambda colour: float((weights * (np.asarray(colour) - under) ** 2).sum()))
    return np.asarray(best, np.float32)
