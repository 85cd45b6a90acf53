"""Overlays and maps of the report, beside what the runtime itself kept."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from calib.data.sample import Sample
from calib.errors import RunError
from calib.report.heat import KeptMap, draw_map, kept_maps, score_map
from calib.report.look import DARK, LIGHT
from calib.report.pictures import Pictures
from calib.settings import REFERENCE, Setting
from runtime import Generator, Request, load_bundle
from tests.calib_studies import PICKED, picture, record, sample
from tests.toy_bundle import TILES, ToyModel, write_toy_bundle


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A grid of 4 x 4, one picture per image."""
    return write_toy_bundle(tmp_path_factory.mktemp("report") / "toy")


@pytest.fixture(scope="module")
def tiles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An overview and tiles, with padding."""
    return write_toy_bundle(tmp_path_factory.mktemp("report") / "tiles", ToyModel(pinpoints=TILES))


def opened(content: bytes) -> Image.Image:
    return Image.open(io.BytesIO(content))


@pytest.mark.parametrize("selector", ["rank", "row", "cls", "random", "uniform"])
@pytest.mark.parametrize("kind", ["toy", "tiles"])
def test_kept_positions_are_taken_apart_as_the_runtime_kept_them(
    kind: str, selector: str, request: pytest.FixtureRequest
) -> None:
    bundle: Path = request.getfixturevalue(kind)
    generator = Generator(load_bundle(bundle))
    both = sample(0, images=(picture(1, (20, 30)), picture(2, (31, 17))))
    images = tuple(opened(image) for image in both.images if isinstance(image, bytes))
    asked = Request("what?", images, ratio=0.3, selector="rank" if selector == "cls" else selector)
    stream = generator.stream(asked)
    list(stream)
    kept = [index for indices in stream.result.kept_indices for index in indices]
    pictures = Pictures(bundle)
    found = pictures.kept(pictures.plans(both), Setting(selector, 0.3), kept)
    assert len(found) == 2
    for own, encoded in zip(found, stream.encoded, strict=True):
        for indices, expected in zip(own, encoded.kept, strict=True):
            np.testing.assert_array_equal(indices, expected)


def test_a_record_of_another_bundle_is_refused(toy: Path) -> None:
    pictures = Pictures(toy)
    plans = pictures.plans(sample(0))
    with pytest.raises(
        RunError, match=r"has 7 kept tokens, but rank at ratio 0\.5 keeps 8: is this the bundle"
    ):
        pictures.kept(plans, PICKED, range(7))
    with pytest.raises(RunError, match=r"has 1 kept tokens, but rank at ratio 0\.5 keeps 0"):
        pictures.kept((), PICKED, [0])
    assert pictures.kept((), PICKED, ()) == []


def test_a_setting_that_the_pictures_cannot_have_is_refused(toy: Path) -> None:
    pictures = Pictures(toy)
    plans = tuple(
        replace(plan, units=tuple(replace(unit, grid=None) for unit in plan.units))
        for plan in pictures.plans(sample(0))
    )
    with pytest.raises(RunError, match=r"'row'.* cannot be planned for these pictures .*: measure again"):
        pictures.kept(plans, Setting("row", 0.5), range(8))


def test_plans_are_of_the_upright_picture(tiles: Path, tmp_path: Path) -> None:
    flat = Image.fromarray(np.zeros((16, 32, 3), np.uint8))
    turned = tmp_path / "turned.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6
    flat.save(turned, exif=exif)
    lying = tmp_path / "lying.png"
    flat.save(lying)
    (upright, wide) = Pictures(tiles).plans(sample(0, images=(turned, lying)))
    assert upright.mosaic == (2, 1)
    assert wide.mosaic == (1, 2)


def test_an_overlay_dims_what_was_thrown_away(toy: Path) -> None:
    white = io.BytesIO()
    Image.new("RGB", (32, 32), "white").save(white, "PNG")
    shown = sample(0, images=(white.getvalue(),))
    overlay = Pictures(toy).overlay(shown, PICKED, range(8))
    assert not overlay.wide
    sheet = opened(overlay.jpeg)
    assert sheet.format == "JPEG"
    assert sheet.height == 520
    # 4 x 4 patches of 168 pixels in a frame of 16, under them a caption of 56, as `runtime.overlay` draws.
    scale = 520 / (4 * 168 + 56 + 32)
    pixels = np.asarray(sheet.convert("L")).astype(int)
    centres = [round((16 + 168 * place + 84) * scale) for place in range(4)]
    bright = pixels[np.ix_(centres, centres)]
    assert (bright[:2] > 240).all()  # the first eight tokens are the upper half
    assert (bright[2:] < 120).all()


def test_pictures_side_by_side_are_wide(toy: Path) -> None:
    three = sample(0, images=(picture(1), picture(2), picture(3)))
    overlay = Pictures(toy).overlay(three, PICKED, [*range(8), *range(8), *range(8)])
    assert overlay.wide
    width, height = opened(overlay.jpeg).size
    assert width > 2 * height


def test_a_picture_that_is_gone_is_a_sentence(toy: Path, tmp_path: Path) -> None:
    pictures = Pictures(toy)
    for images in ((tmp_path / "gone.png",), (b"no picture",)):
        missing = sample(0, images=images)
        said = r"no picture of photo_0\.png can be shown \(.*\): the figures are not affected"
        with pytest.raises(RunError, match=said):
            pictures.plans(missing)
        with pytest.raises(RunError, match=said):
            pictures.overlay(missing, PICKED, range(8))
        with pytest.raises(RunError, match=said):
            pictures.scores(missing)


def test_a_map_counts_how_often_each_position_was_kept(toy: Path) -> None:
    shown = tuple(sample(number) for number in range(4))
    records = [record(each, PICKED) for each in shown]
    records[0] = replace(records[0], kept=(0, *range(9, 16)))
    records.append(replace(record(shown[0], PICKED), error="it failed"))
    records.append(record(sample(9), PICKED))  # not of the data
    (found,) = kept_maps(shown, records, Pictures(toy))
    assert found.title == "whole picture, grid 4 × 4"
    assert found.images == 4
    expected = np.array([1.0, *[0.75] * 7, 0.0, *[0.25] * 7]).reshape(4, 4)
    np.testing.assert_array_equal(found.values, expected)


def test_there_is_no_map_where_nothing_is_chosen_or_no_picture_is_left(toy: Path, tmp_path: Path) -> None:
    shown = (sample(0, images=(tmp_path / "gone.png",)),)
    assert kept_maps(shown, [record(shown[0], PICKED)], Pictures(toy)) == []
    assert kept_maps((sample(0),), [record(sample(0), REFERENCE)], Pictures(toy)) == []


def kept_of(bundle: Path, shown: Sample, ratio: float) -> tuple[int, ...]:
    """What the runtime keeps of the one picture of a sample."""
    (content,) = shown.images
    assert isinstance(content, bytes)
    asked = Request("what?", (opened(content),), ratio=ratio, selector="rank", max_new_tokens=1)
    return Generator(load_bundle(bundle)).generate(asked).kept_indices[0]


def test_tiles_are_put_together_and_padding_is_no_choice(tiles: Path) -> None:
    wide = sample(0, images=(picture(0, (8, 32)),))  # in 2 tiles of 4 x 4, with padding above and below
    kept = kept_of(tiles, wide, 0.5)
    pictures = Pictures(tiles)
    (plan,) = pictures.plans(wide)
    maps = kept_maps((wide,), [record(wide, PICKED, kept=kept)], pictures)
    assert {found.title for found in maps} == {"whole picture, grid 4 × 4", "tiles put together, grid 4 × 8"}
    by_title = {found.title[:5]: found.values for found in maps}
    assert plan.overview == 0
    valid = [np.zeros(16, bool) for _ in plan.units]
    for mask, unit in zip(valid, plan.units, strict=True):
        mask[unit.valid_indices] = True
    expected = np.concatenate([mask.reshape(4, 4) for mask in valid[1:]], axis=1)
    np.testing.assert_array_equal(np.isfinite(by_title["tiles"]), expected)
    assert not expected.all()
    assert int(np.nansum(by_title["tiles"])) + int(np.nansum(by_title["whole"])) == len(kept)
    assert score_map((wide,), pictures) is None


def test_many_shapes_are_stretched_over_each_other(tiles: Path) -> None:
    sizes = [(32, 32), (16, 32), (32, 16)]
    shown = tuple(sample(number, images=(picture(number, size),)) for number, size in enumerate(sizes))
    records = [record(each, PICKED, kept=kept_of(tiles, each, 0.5)) for each in shown]
    maps = kept_maps(shown, records, Pictures(tiles))
    assert len(maps) == 3
    assert maps[0].title == "pictures of all shapes, stretched"
    assert maps[0].images == 6  # three overviews, three mosaics
    assert maps[0].values.shape == (16, 16)
    # Each of the six keeps one half, of cells that are all stretched to the same area.
    assert maps[0].values.mean() == pytest.approx(0.5, abs=1e-12)  # a mean of 256 numbers
    assert maps[1].images == 3


def test_the_score_map_is_the_mean_of_what_the_graph_scores(toy: Path) -> None:
    shown = tuple(sample(number) for number in range(5))
    generator = Generator(load_bundle(toy))
    pictures = Pictures(toy, scored=2)
    found = score_map(shown, pictures)
    assert found is not None
    assert found.images == 2
    expected = np.zeros((4, 4))
    for each in (shown[0], shown[2]):  # spread through the data
        (content,) = each.images
        assert isinstance(content, bytes)
        stream = generator.stream(Request("what?", (opened(content),), ratio=0.5, max_new_tokens=1))
        list(stream)
        scores = stream.encoded[0].scores
        assert scores is not None
        expected += scores[0].reshape(4, 4).astype(np.float64) / float(scores[0].mean()) / 2
    # Scores are float32; their graph may sum in another order for another K.
    np.testing.assert_allclose(found.values, expected, rtol=1e-5)


def test_a_score_map_needs_pictures(toy: Path, tmp_path: Path) -> None:
    assert score_map((sample(0, images=(tmp_path / "gone.png",)),), Pictures(toy)) is None
    assert score_map((sample(0, images=()),), Pictures(toy)) is None


@pytest.mark.parametrize("shape", [(4, 4), (1, 40), (40, 1), (24, 16)])
def test_maps_of_every_shape_are_drawn(shape: tuple[int, int]) -> None:
    values = np.linspace(0, 1, shape[0] * shape[1]).reshape(shape)
    light, dark = (draw_map(KeptMap("map", values, 3), theme) for theme in (LIGHT, DARK))
    assert opened(light).size == opened(dark).size
    assert light != dark
    assert light == draw_map(KeptMap("map", values, 3), LIGHT)
    sides = opened(light).size
    assert max(sides) < 1600
    assert min(sides) > 30


def test_a_map_shows_low_values_dark_and_what_is_unknown_as_paper() -> None:
    values = np.array([[0.0, 0.5], [1.0, np.nan]])
    image = np.asarray(opened(draw_map(KeptMap("map", values, 3), LIGHT)).convert("L")).astype(int)
    height, left = image.shape[0], 10
    wide = height - 40  # the map is a square of this side
    low, mid, high, none = (
        image[20 + wide * (1 + 2 * row) // 4, left + wide * (1 + 2 * column) // 4]
        for row, column in ((0, 0), (0, 1), (1, 0), (1, 1))
    )
    assert low < mid < high < none == 255
