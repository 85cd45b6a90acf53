"""The overlay picture: what is bright, what is dark, its size, and how it is written."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from runtime.assemble import assemble
from runtime.errors import RequestError
from runtime.layouts.anyres import AnyresLayout
from runtime.layouts.base import ImageLayout, ImagePlan
from runtime.manifest import Manifest
from runtime.overlay import check_overlay, check_place, draw_overlay, save_png
from runtime.preprocess import PreparedImage
from runtime.vision import EncodedImage
from tests.toy_bundle import TILES, ToyModel, toy_files, toy_manifest

GAP, PATCH = 16, 168  # 4 x 4 patches of 168 pixels make the smallest picture, 672


def manifest(grid: tuple[int, int] = (4, 4)) -> Manifest:
    return toy_manifest(ToyModel(grid=grid), toy_files())


def image_of(
    layout: ImageLayout, plan: ImagePlan, kept: list[list[int]]
) -> tuple[PreparedImage, EncodedImage]:
    """An image of red units, of which `kept` tokens stay; what goes into the prompt does not matter here."""
    assert len(kept) == len(plan.units)
    size = layout.pixel_shape[2:]
    view = np.zeros((*size, 3), np.uint8)  # type: ignore[misc]
    view[..., 0] = 200
    views = (view,) * len(plan.units)
    indices = tuple(np.array(own, np.int64) for own in kept)
    nothing = np.zeros((0, 8), np.float32)
    encoded = EncodedImage(plan, nothing, assemble(plan, indices, 0), indices, None)
    return PreparedImage(plan, views, nothing), encoded


def drawn(kept: list[list[int]], grid: tuple[int, int] = (4, 4)) -> Image.Image:
    """The overlay of images that are one red picture each, with their kept tokens."""
    own = manifest(grid)
    images = [image_of(own.layout, own.layout.plan(16, 16), [indices]) for indices in kept]
    return draw_overlay([prepared for prepared, _ in images], [encoded for _, encoded in images], own)


def centres(image: Image.Image, grid: tuple[int, int], patch: int, left: int = GAP) -> np.ndarray:
    """RGB in the middle of each patch, [R, C, 3]."""
    pixels = np.asarray(image)
    rows, columns = (np.arange(n) * patch + patch // 2 for n in grid)
    return pixels[GAP + rows][:, left + columns]


def test_kept_patches_are_in_colour_and_dropped_ones_dark_grey() -> None:
    kept = np.array([[0, 5, 15]])
    image = drawn(kept.tolist())
    assert image.width == 2 * GAP + 4 * PATCH
    shown = centres(image, (4, 4), PATCH).reshape(-1, 3)
    assert (shown[kept[0]] == [200, 0, 0]).all()
    dropped = np.delete(shown, kept[0], axis=0)
    assert (dropped == dropped[0, 0]).all()  # grey, all alike
    assert 0 < dropped[0, 0] < 60


def test_images_stand_side_by_side_with_their_own_patches() -> None:
    image = drawn([[0], [15]])
    assert image.width == 3 * GAP + 2 * 4 * PATCH
    first = centres(image, (4, 4), PATCH)
    second = centres(image, (4, 4), PATCH, left=2 * GAP + 4 * PATCH)
    assert (first[0, 0] == [200, 0, 0]).all()
    assert (second[3, 3] == [200, 0, 0]).all()
    assert (second[0, 0] != [200, 0, 0]).any()


def test_a_wide_grid_is_at_least_672_pixels_on_its_short_side() -> None:
    image = drawn([[0]], (2, 6))
    assert image.height >= 672
    assert image.width == 2 * GAP + 6 * 336


def test_border_lines_run_between_kept_and_dropped_only() -> None:
    pixels = np.asarray(drawn([[5, 6]]))
    row = GAP + PATCH + PATCH // 2
    line = pixels[row, GAP : GAP + 4 * PATCH]
    amber = np.flatnonzero((line == [255, 183, 3]).all(axis=1))
    assert amber.min() == PATCH
    assert amber.max() == 3 * PATCH - 1
    assert not ((amber > PATCH + 20) & (amber < 3 * PATCH - 20)).any()  # none between the two kept patches


def test_caption_is_drawn() -> None:
    with_caption = np.asarray(drawn([[5, 6]]))
    strip = with_caption[GAP + 4 * PATCH : -GAP]
    assert ((strip == [236, 236, 236]).all(axis=2)).sum() > 100  # ink
    assert ((strip == [255, 183, 3]).all(axis=2)).sum() > 50  # the arrow
    other = np.asarray(drawn([[5]]))[GAP + 4 * PATCH : -GAP]
    assert (strip != other).any()  # 16 → 2 is another text than 16 → 1


def amber_edges(pixels: np.ndarray) -> np.ndarray:
    """Columns of a line of pixels that have the outline's colour."""
    return np.flatnonzero((pixels == [255, 183, 3]).all(axis=1))


def test_tiles_are_put_together_beside_the_whole_picture() -> None:
    own = toy_manifest(ToyModel(pinpoints=TILES), toy_files())
    plan = own.layout.plan(32, 32)
    assert plan.mosaic == (2, 2)
    kept = [[0], [15], [12, 13], [], [0]]
    prepared, encoded = image_of(own.layout, plan, kept)
    image = draw_overlay([prepared], [encoded], own)
    tile = 84  # 8 x 8 patches make the smallest picture, 672
    assert image.width == 3 * GAP + 4 * PATCH + 8 * tile
    shown = centres(image, (4, 4), PATCH)
    bright = np.argwhere((shown == [200, 0, 0]).all(axis=2))
    assert bright.tolist() == [[0, 0]]
    stitched = centres(image, (8, 8), tile, left=2 * GAP + 4 * PATCH)
    bright = np.argwhere((stitched == [200, 0, 0]).all(axis=2))
    assert bright.tolist() == [[3, 3], [3, 4], [3, 5], [4, 4]]
    # No outline between kept patches of two tiles side by side.
    left = 2 * GAP + 4 * PATCH
    line = np.asarray(image)[GAP + 3 * tile + tile // 2, left : left + 8 * tile]
    edges = amber_edges(line)
    assert (edges.min(), edges.max()) == (3 * tile, 6 * tile - 1)
    assert not ((edges > 3 * tile + 20) & (edges < 6 * tile - 20)).any()


def test_padding_is_not_counted_as_tokens() -> None:
    layout = AnyresLayout((16, 16), (4, 4), ((16, 32),))
    own = replace(toy_manifest(ToyModel(pinpoints=TILES), toy_files()), layout=layout)
    plan = layout.plan(8, 32)  # half of both tiles
    assert [unit.prunable for unit in plan.units] == [16, 8, 8]
    full = draw_overlay(*zip(image_of(layout, plan, [[0], [4], [4]]), strict=True), own)
    whole = layout.plan(16, 32)
    other = draw_overlay(*zip(image_of(layout, whole, [[0], [4], [4]]), strict=True), own)
    assert full.size == other.size
    left = 2 * GAP + 4 * PATCH
    difference = np.asarray(full) != np.asarray(other)
    assert difference[:, left:].any()  # 16 → 2 and 32 → 2 under the tiles
    assert not difference[:, :left].any()  # 16 → 1 under the overview
    assert not difference[: GAP + 4 * 168].any()


def test_images_of_different_sizes_stand_side_by_side() -> None:
    own = toy_manifest(ToyModel(pinpoints=TILES), toy_files())
    square, lying = own.layout.plan(32, 32), own.layout.plan(16, 32)
    images = [
        image_of(own.layout, square, [[0], [], [], [], [0]]),
        image_of(own.layout, lying, [[1], [2], [3]]),
    ]
    image = draw_overlay([prepared for prepared, _ in images], [encoded for _, encoded in images], own)
    widths = [4 * PATCH, 8 * 84, 4 * PATCH, 8 * 168]
    assert image.width == GAP + sum(width + GAP for width in widths)
    last = centres(image, (4, 8), 168, left=GAP + sum(width + GAP for width in widths[:3]))
    assert np.argwhere((last == [200, 0, 0]).all(axis=2)).tolist() == [[0, 2], [0, 7]]


def test_what_cannot_be_drawn() -> None:
    ragged = manifest()
    ragged = replace(ragged, layout=replace(ragged.layout, grid=None))
    with pytest.raises(
        RequestError, match="this model's 16 tokens per image are not a full grid, so an overlay"
    ):
        draw_overlay(*zip(image_of(ragged.layout, ragged.layout.plan(9, 9), [[0]]), strict=True), ragged)
    with pytest.raises(
        RequestError, match="an overlay shows an image, but the request has none: add --image"
    ):
        check_overlay(manifest(), 0)


def test_png_is_written_whole_and_replaces_the_old_one(tmp_path: Path) -> None:
    file = tmp_path / "overlay.png"
    file.write_bytes(b"old")
    save_png(Image.new("RGB", (3, 2)), file)
    with Image.open(file) as image:
        assert image.size == (3, 2)
    assert [path.name for path in tmp_path.iterdir()] == ["overlay.png"]
    assert file.stat().st_mode & 0o400


def test_place_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(
        RequestError, match=r"cannot write the overlay .*nowhere/overlay.png \(.*\): give a path"
    ):
        save_png(Image.new("RGB", (3, 2)), tmp_path / "nowhere" / "overlay.png")


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("", "the path of the overlay is empty: give a path that can be written"),
        (".", r"cannot write the overlay \. \(it is a directory\): give a path"),
        ("nowhere/x.png", r"cannot write the overlay nowhere/x.png \(there is no directory nowhere\)"),
        (
            "x" * 300 + "/y.png",
            r"cannot write the overlay x+/y.png \(.*(too long|no directory).*\): give a path",
        ),
    ],
)
def test_place_is_checked_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RequestError, match=message):
        check_place(path)
    check_place("new.png")
    assert list(tmp_path.iterdir()) == []


def test_place_without_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)  # for root too
    with pytest.raises(RequestError, match=r"\(the directory .* is not writable\): give a path"):
        check_place(str(tmp_path / "x.png"))


def test_old_picture_survives_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    file = tmp_path / "overlay.png"
    file.write_bytes(b"old")
    image = Image.new("RGB", (3, 2))
    monkeypatch.setattr(image, "save", full)
    with pytest.raises(RequestError, match="No space left on device"):
        save_png(image, file)
    assert file.read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["overlay.png"]
