"""The overlay picture: what is bright, what is dark, its size, and how it is written."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from runtime.errors import RequestError
from runtime.manifest import GRAPHS, FileInfo, Manifest
from runtime.overlay import check_overlay, check_place, draw_overlay, save_png
from tests.toy_bundle import ToyModel, toy_manifest

GAP, PATCH = 16, 168  # 4 x 4 patches of 168 pixels make the smallest picture, 672


def manifest(grid: tuple[int, int] = (4, 4)) -> Manifest:
    files = {f"onnx/{name}.onnx": FileInfo(1, "") for name in GRAPHS}
    return toy_manifest(ToyModel(grid=grid), files)


def red(grid: tuple[int, int] = (4, 4), images: int = 1) -> np.ndarray:
    pixels = np.zeros((images, 3, grid[0] * 4, grid[1] * 4), np.float32)
    pixels[:, 0] = 200 / 128
    return pixels


def centres(image: Image.Image, grid: tuple[int, int], patch: int, left: int = GAP) -> np.ndarray:
    """RGB in the middle of each patch, [R, C, 3]."""
    pixels = np.asarray(image)
    rows, columns = (np.arange(n) * patch + patch // 2 for n in grid)
    return pixels[GAP + rows][:, left + columns]


def test_kept_patches_are_in_colour_and_dropped_ones_dark_grey() -> None:
    kept = np.array([[0, 5, 15]])
    image = draw_overlay(red(), kept, manifest())
    assert image.width == 2 * GAP + 4 * PATCH
    shown = centres(image, (4, 4), PATCH).reshape(-1, 3)
    assert (shown[kept[0]] == [200, 0, 0]).all()
    dropped = np.delete(shown, kept[0], axis=0)
    assert (dropped == dropped[0, 0]).all()  # grey, all alike
    assert 0 < dropped[0, 0] < 60


def test_images_stand_side_by_side_with_their_own_patches() -> None:
    image = draw_overlay(red(images=2), np.array([[0], [15]]), manifest())
    assert image.width == 3 * GAP + 2 * 4 * PATCH
    first = centres(image, (4, 4), PATCH)
    second = centres(image, (4, 4), PATCH, left=2 * GAP + 4 * PATCH)
    assert (first[0, 0] == [200, 0, 0]).all()
    assert (second[3, 3] == [200, 0, 0]).all()
    assert (second[0, 0] != [200, 0, 0]).any()


def test_a_wide_grid_is_at_least_672_pixels_on_its_short_side() -> None:
    image = draw_overlay(red((2, 6)), np.array([[0]]), manifest((2, 6)))
    assert image.height >= 672
    assert image.width == 2 * GAP + 6 * 336


def test_border_lines_run_between_kept_and_dropped_only() -> None:
    pixels = np.asarray(draw_overlay(red(), np.array([[5, 6]]), manifest()))
    row = GAP + PATCH + PATCH // 2
    line = pixels[row, GAP : GAP + 4 * PATCH]
    amber = np.flatnonzero((line == [255, 183, 3]).all(axis=1))
    assert amber.min() == PATCH
    assert amber.max() == 3 * PATCH - 1
    assert not ((amber > PATCH + 20) & (amber < 3 * PATCH - 20)).any()  # none between the two kept patches


def test_caption_is_drawn() -> None:
    with_caption = np.asarray(draw_overlay(red(), np.array([[5, 6]]), manifest()))
    strip = with_caption[GAP + 4 * PATCH : -GAP]
    assert ((strip == [236, 236, 236]).all(axis=2)).sum() > 100  # ink
    assert ((strip == [255, 183, 3]).all(axis=2)).sum() > 50  # the arrow
    other = np.asarray(draw_overlay(red(), np.array([[5]]), manifest()))[GAP + 4 * PATCH : -GAP]
    assert (strip != other).any()  # 16 → 2 is another text than 16 → 1


def test_what_cannot_be_drawn() -> None:
    ragged = manifest()
    ragged = replace(ragged, vision=replace(ragged.vision, grid=None))
    with pytest.raises(
        RequestError, match="this model's 16 tokens per image are not a full grid, so an overlay"
    ):
        draw_overlay(red(), np.array([[0]]), ragged)
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
