"""Preprocessing against the processors of transformers, bit for bit, on photographs in awkward forms."""

from __future__ import annotations

import os
import threading
import warnings
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps, features
from sklearn.datasets import load_sample_images
from transformers.image_utils import load_image as theirs_load_image
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from runtime.errors import ImageError
from runtime.layouts.single import SingleLayout
from runtime.manifest import Preprocess
from runtime.preprocess import PreparedImage, load_image, prepare

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
HALF = (0.5, 0.5, 0.5)


@dataclass(frozen=True)
class Config:
    """The layout and scale of a bundle; the number of tokens does not matter here."""

    resize: dict[str, int]
    crop: dict[str, int] | None = None
    pad_to_square: tuple[int, int, int] | None = None
    mean: tuple[float, float, float] = HALF
    std: tuple[float, float, float] = HALF

    def prepare(self, image: object) -> PreparedImage:
        layout = SingleLayout(None, 1, self.resize, self.crop, self.pad_to_square)
        return prepare(load_image(image), layout, Preprocess(3, 1 / 255, self.mean, self.std))  # type: ignore[arg-type]

    def pixels(self, image: object) -> np.ndarray:
        """float32 [1, 3, H, W]."""
        return self.prepare(image).pixel_values


def clip(size: int = 112, edge: int | None = None) -> tuple[object, Config]:
    edge = size if edge is None else edge
    crop = {"height": size, "width": size}
    theirs = CLIPImageProcessorPil(size={"shortest_edge": edge}, crop_size=crop)
    return theirs, Config({"shortest_edge": edge}, crop, None, CLIP_MEAN, CLIP_STD)


def siglip() -> tuple[object, Config]:
    size = {"height": 96, "width": 112}
    return SiglipImageProcessorPil(size=size), Config(dict(size))


def llava() -> tuple[object, Config]:
    crop = {"height": 112, "width": 112}
    theirs = LlavaImageProcessorPil(size={"shortest_edge": 112}, crop_size=crop, do_pad=True)
    fill = (int(CLIP_MEAN[0] * 255), int(CLIP_MEAN[1] * 255), int(CLIP_MEAN[2] * 255))
    return theirs, Config({"shortest_edge": 112}, crop, fill, CLIP_MEAN, CLIP_STD)


PROCESSORS = {
    "clip": clip(),
    "clip, crop larger than resize": clip(size=120, edge=75),
    "clip, crop smaller than resize": clip(size=75, edge=120),
    "siglip": siglip(),
    "llava, padded to square": llava(),
}


@pytest.fixture(scope="module")
def photo() -> Image.Image:
    return Image.fromarray(load_sample_images().images[0])  # 640 x 427


@cache
def forms_of_photo() -> dict[str, Image.Image]:
    return forms(Image.fromarray(load_sample_images().images[0]))


def forms(photo: Image.Image) -> dict[str, Image.Image]:
    """The photograph in every form of the list that users hit."""
    alpha = Image.linear_gradient("L").resize(photo.size)
    rgba = photo.copy()
    rgba.putalpha(alpha)
    palette = photo.quantize(64)
    clear = photo.quantize(64)
    clear.info["transparency"] = 3
    return {
        "rgb": photo,
        "odd size": photo.resize((317, 211)),
        "tall and odd": photo.crop((100, 0, 241, 427)),
        "rgba": rgba,
        "grayscale": photo.convert("L"),
        "grayscale with alpha": rgba.convert("LA"),
        "palette": palette,
        "palette with transparency": clear,
        "bilevel": photo.convert("1"),
        "cmyk": photo.convert("CMYK"),
        "ycbcr": photo.convert("YCbCr"),
        "16 bit gray": Image.fromarray((np.asarray(photo.convert("L")).astype(np.uint16) << 8) + 77),
        "one pixel": photo.crop((50, 50, 51, 51)),
        "one row": photo.crop((0, 50, 40, 51)),
        "extreme aspect ratio": photo.resize((3, 400)),
        "smaller than the crop": photo.resize((31, 17)),
    }


FORMS = tuple(forms(Image.new("RGB", (320, 240))))


@pytest.mark.parametrize("processor", PROCESSORS)
@pytest.mark.parametrize("form", FORMS)
def test_equal_to_transformers(processor: str, form: str) -> None:
    theirs, config = PROCESSORS[processor]
    image = forms_of_photo()[form]
    expected = theirs(images=theirs_load_image(image.copy()), return_tensors="np")["pixel_values"]
    measured = config.pixels(image)
    assert measured.dtype == np.float32
    # Bit-equal: the same Pillow resize on integers, then the same float operations on 256 levels.
    np.testing.assert_array_equal(measured, expected)


def test_equal_to_transformers_on_20_megapixels(photo: Image.Image) -> None:
    theirs, config = PROCESSORS["clip"]
    large = photo.resize((5472, 3648), resample=Image.Resampling.NEAREST)
    expected = theirs(images=large, return_tensors="np")["pixel_values"]
    np.testing.assert_array_equal(config.pixels(large), expected)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation_is_applied(tmp_path: Path, photo: Image.Image, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = tmp_path / "photo.jpg"
    photo.save(file, exif=exif)
    theirs, config = PROCESSORS["siglip"]
    with Image.open(file) as opened:
        upright = ImageOps.exif_transpose(opened)
        expected = theirs(images=upright, return_tensors="np")["pixel_values"]
    measured = config.pixels(file)
    np.testing.assert_array_equal(measured, expected)
    plain = config.pixels(Image.open(file).convert("RGB"))  # convert keeps the EXIF tag
    np.testing.assert_array_equal(plain, expected)
    if orientation != 1:
        raw = theirs(images=Image.fromarray(np.asarray(Image.open(file))), return_tensors="np")[
            "pixel_values"
        ]
        assert np.abs(raw - expected).max() > 0.1  # without the rotation it is another picture


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "gif", "bmp", "tiff"])
def test_reads_files_and_strings(tmp_path: Path, photo: Image.Image, suffix: str) -> None:
    file = tmp_path / f"photo.{suffix}"
    photo.save(file)
    image = load_image(str(file))
    assert (image.mode, image.size) == ("RGB", photo.size)
    np.testing.assert_array_equal(np.asarray(image), np.asarray(load_image(file)))


def test_arrays_are_images(photo: Image.Image) -> None:
    pixels = np.asarray(photo)
    np.testing.assert_array_equal(np.asarray(load_image(pixels)), pixels)
    grey = np.asarray(photo.convert("L"))
    for form in (grey, grey[..., None]):
        np.testing.assert_array_equal(np.asarray(load_image(form)), np.repeat(grey[..., None], 3, axis=2))


def test_alpha_is_dropped_without_a_warning(tmp_path: Path) -> None:
    hidden = np.zeros((2, 2, 4), np.uint8)
    hidden[0, 0] = (10, 20, 30, 128)
    assert np.asarray(load_image(hidden)).tolist() == hidden[..., :3].tolist()
    palette = Image.fromarray(hidden[..., :3]).quantize(4)
    palette.save(tmp_path / "clear.png", transparency=bytes([0, 128, 255]))  # the form Pillow warns about
    assert load_image(tmp_path / "clear.png").getpixel((0, 0)) == palette.convert("RGB").getpixel((0, 0))


def test_views_are_the_picture_that_is_normalised(photo: Image.Image) -> None:
    config = Config({"height": 80, "width": 120}, None, None, CLIP_MEAN, CLIP_STD)
    prepared = config.prepare(photo)
    expected = np.asarray(photo.resize((120, 80), resample=Image.Resampling.BICUBIC))
    (view,) = prepared.views
    np.testing.assert_array_equal(view, expected)
    mean, std = (np.array(values).reshape(3, 1, 1) for values in (CLIP_MEAN, CLIP_STD))
    again = (prepared.pixel_values[0] * std + mean) * 255
    np.testing.assert_array_equal(np.rint(again).transpose(1, 2, 0), expected)
    assert [unit.tokens for unit in prepared.plan.units] == [1]


@dataclass(frozen=True)
class Halves(SingleLayout):
    """Left and right half, each a row of pixels for the encoder."""

    def views(self, image: Image.Image, resample: int) -> list[np.ndarray]:
        del resample
        return np.split(np.asarray(image), 2, axis=1)

    def pack(self, views: np.ndarray) -> np.ndarray:
        return views.reshape(len(views), -1)


def test_views_are_normalised_one_by_one_and_packed_by_the_layout() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (5, 8, 3), dtype=np.uint8)
    layout = Halves(None, 1, {"height": 5, "width": 4}, None, None)
    prepared = prepare(
        Image.fromarray(picture), layout, Preprocess(3, 1 / 256, (0.5, 0.25, 0.0), (1.0, 2.0, 0.5))
    )
    assert [view.shape for view in prepared.views] == [(5, 4, 3)] * 2
    scaled = (picture / 256 - [0.5, 0.25, 0.0]) / [1.0, 2.0, 0.5]
    halves = [half.transpose(2, 0, 1).reshape(-1) for half in np.split(scaled, 2, axis=1)]
    assert prepared.pixel_values.dtype == np.float32
    np.testing.assert_array_equal(prepared.pixel_values, np.stack(halves).astype(np.float32))  # powers of two


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"there is no image file at .*nothing.png: check the path"):
        load_image(tmp_path / "nothing.png")


def test_not_an_image(tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("hello")
    with pytest.raises(ImageError, match=r"text.png is not an image that Pillow can read: convert it"):
        load_image(tmp_path / "text.png")


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_truncated_file(tmp_path: Path, photo: Image.Image, suffix: str) -> None:
    file = tmp_path / f"cut.{suffix}"
    photo.save(file)
    file.write_bytes(file.read_bytes()[:9000])
    with pytest.raises(ImageError, match=rf"cut.{suffix} cannot be read as an image .*the file is damaged"):
        load_image(file)


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow reads no AVIF")
def test_damaged_avif(tmp_path: Path, photo: Image.Image) -> None:
    file = tmp_path / "bad.avif"
    photo.save(file)
    content = bytearray(file.read_bytes())
    start = content.index(b"mdat") + 4
    content[start : start + 64] = bytes(64)
    file.write_bytes(content)
    with pytest.raises(RuntimeError), Image.open(file) as opened:
        opened.load()
    with pytest.raises(ImageError, match=r"bad.avif cannot be read as an image .*the file is damaged"):
        load_image(file)


def test_name_that_no_file_can_have() -> None:
    for name in ("x" * 300, "a\0b"):
        with pytest.raises(ImageError, match=r"the image file .* cannot be opened \(.*\): check the path"):
            load_image(name)


def test_a_directory_is_no_image(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="is a directory, expected an image file: check the path"):
        load_image(tmp_path)


def test_image_from_a_pipe(tmp_path: Path, photo: Image.Image) -> None:
    photo.save(tmp_path / "photo.png")
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    data = (tmp_path / "photo.png").read_bytes()
    writer = threading.Thread(target=pipe.write_bytes, args=(data,))
    writer.start()
    image = load_image(pipe)
    writer.join(20)
    np.testing.assert_array_equal(np.asarray(image), np.asarray(photo))


def test_a_file_is_decoded_without_a_copy(
    tmp_path: Path, photo: Image.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    photo.save(tmp_path / "turned.jpg", exif=exif)
    for name in ("copy", "convert", "draft"):  # draft decodes smaller, but to other pixels
        monkeypatch.setattr(Image.Image, name, None)
    assert load_image(tmp_path / "turned.jpg").size == photo.size[::-1]


@pytest.mark.parametrize("orientation", [1, 6])
def test_an_image_of_the_caller_is_never_changed(photo: Image.Image, orientation: int) -> None:
    mine = photo.copy()
    mine.getexif()[0x0112] = orientation
    before = mine.tobytes()
    loaded = load_image(mine)
    loaded.paste((0, 0, 0), (0, 0, *loaded.size))
    assert (mine.tobytes(), mine.size, mine.getexif()[0x0112]) == (before, photo.size, orientation)


@pytest.mark.parametrize("suffix", ["png", "webp", "tiff", "gif"])
def test_first_frame_of_several_outlives_its_file(tmp_path: Path, photo: Image.Image, suffix: str) -> None:
    file = tmp_path / f"moving.{suffix}"
    options = {"lossless": True} if suffix == "webp" else {}
    small = photo.resize((40, 30))
    small.save(file, save_all=True, append_images=[small.rotate(90), small.rotate(180)], **options)
    with Image.open(file) as opened:
        expected = np.asarray(opened.convert("RGB"))
    image = load_image(file)
    file.unlink()
    np.testing.assert_array_equal(np.asarray(image.resize(image.size)), expected)


def test_image_large_enough_for_a_warning(
    tmp_path: Path, photo: Image.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    photo.save(tmp_path / "large.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", photo.width * photo.height - 1)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")  # as for a user, not as in this suite
        with pytest.raises(
            ImageError, match=r"large.png is too large to open safely \(.*pixels.*\): make it"
        ):
            load_image(tmp_path / "large.png")
    assert caught == []


def test_decompression_bomb(tmp_path: Path, photo: Image.Image, monkeypatch: pytest.MonkeyPatch) -> None:
    photo.save(tmp_path / "bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(ImageError, match=r"bomb.png is too large to open safely"):
        load_image(tmp_path / "bomb.png")


def test_not_an_image_object() -> None:
    with pytest.raises(
        ImageError, match="an image is of type int, expected a path, a PIL image or a uint8 array"
    ):
        load_image(7)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("array", "shown"),
    [
        (np.zeros((4, 4, 3), np.float32), r"float32 \[4, 4, 3\]"),
        (np.zeros((3, 4, 5), np.uint8), r"uint8 \[3, 4, 5\]"),
        (np.zeros((4,), np.uint8), r"uint8 \[4\]"),
        (np.zeros((0, 4, 3), np.uint8), r"uint8 \[0, 4, 3\]"),
    ],
)
def test_unusable_array(array: np.ndarray, shown: str) -> None:
    with pytest.raises(ImageError, match=f"an image array is {shown}, expected uint8"):
        load_image(array)


def test_a_sliver_that_would_not_fit_in_memory() -> None:
    with pytest.raises(
        ImageError, match="1 x 9000 pixels would be resized to 112 x 1008000: that does not fit"
    ):
        PROCESSORS["clip"][1].prepare(Image.new("RGB", (1, 9000)))
