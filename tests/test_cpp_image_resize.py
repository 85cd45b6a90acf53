"""Resizing and frames in runtime/cpp/src/image, against Pillow and numpy."""

from __future__ import annotations

import random
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import PIL
import pytest
from PIL import Image

from runtime.errors import ImageError
from runtime.preprocess import load_image
from tests.image_probe import Pixels, Probe, picture

PILLOW = int(PIL.__version__.split(".")[0])


@pytest.fixture(scope="module")
def probe(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Probe]:
    with Probe(tmp_path_factory.mktemp("image")) as probe:
        yield probe


def resized(image: Pixels, height: int, width: int, resample: int) -> Pixels:
    """By Pillow; before 13 it always went along the columns first, so the order is asked for."""
    source, filter_ = Image.fromarray(image), Image.Resampling(resample)
    rows, columns = image.shape[:2]
    if PILLOW < 13 and resample and height < rows and rows - height > 2 * (columns - width):
        source = source.resize((columns, height), filter_)
    return np.asarray(source.resize((width, height), filter_))


@pytest.mark.parametrize("resample", range(6))
def test_resize(probe: Probe, resample: int) -> None:
    rng = random.Random(resample)

    def side() -> int:
        return rng.choice((1, 2, 3, rng.randrange(1, 30), rng.randrange(1, 300)))

    for seed in range(120):
        image = picture(seed, side(), side())
        if seed % 4 == 0:  # extremes overshoot most
            image = np.where(image > 127, 255, 0).astype(np.uint8)
        height, width = side(), side()
        if seed % 7 == 0:
            height = image.shape[0]
        if seed % 11 == 0:
            width = image.shape[1]
        expected = resized(image, height, width, resample)
        assert np.array_equal(probe.resize(image, height, width, resample), expected), (
            image.shape,
            height,
            width,
        )


@pytest.mark.parametrize("resample", [0, 1, 3])
def test_resize_of_extreme_shapes(probe: Probe, resample: int) -> None:
    for shape, target in (
        ((1, 4000), (336, 336)),
        ((4000, 1), (7, 9)),
        ((900, 1200), (336, 448)),
        ((2, 2), (700, 3)),
    ):
        image = picture(1, *shape)
        assert np.array_equal(probe.resize(image, *target, resample), resized(image, *target, resample))


@pytest.mark.parametrize(
    ("target", "resample", "match"),
    [
        ((0, 3), 3, "an image cannot be resized to 0 x 3 pixels"),
        ((3, -1), 3, "an image cannot be resized to 3 x -1 pixels"),
        ((100_000, 100_000), 3, "their product is at most 89478485"),
        ((3, 3), 6, "there is no resampling filter 6: 0 nearest"),
    ],
)
def test_resize_refuses(probe: Probe, target: tuple[int, int], resample: int, match: str) -> None:
    with pytest.raises(ImageError, match=match):
        probe.resize(picture(0, 4, 5), *target, resample)


@pytest.mark.parametrize("shape", [(1, 2**22 + 1, 3), (2**22 + 1, 1, 3)])
def test_resize_refuses_slivers(probe: Probe, shape: tuple[int, int, int]) -> None:
    """A file of some kilobytes may have 89 million pixels in a row: the weights alone would be gigabytes."""
    sliver = np.zeros(shape, np.uint8)
    with pytest.raises(ImageError, match="cannot be resized: a side has at most 4194304, crop it first"):
        probe.resize(sliver, 2, 2, 1)
    longest = sliver[: 2**22, : 2**22]
    assert np.array_equal(probe.resize(longest, 2, 2, 1), np.zeros((2, 2, 3)))


# --- frames -----------------------------------------------------------------------------------------------

FORMATS = ("rgb", "bgr", "rgba", "bgra", "gray", "nv12")
WIDTHS = {"rgb": 3, "bgr": 3, "rgba": 4, "bgra": 4, "gray": 1, "nv12": 1}
MATRICES = {"601 limited": 0, "601 full": 1, "709 limited": 2, "709 full": 3}


def frame(probe: Probe, data: bytes, *numbers: int) -> Pixels:
    path = probe.folder / "frame"
    path.write_bytes(data)
    return probe.pixels("frame", path, *numbers)


def padded(rows: Pixels, stride: int) -> bytes:
    return np.pad(rows, ((0, 0), (0, stride - rows.shape[1])), constant_values=77).tobytes()


@pytest.mark.parametrize("padding", [0, 5])
@pytest.mark.parametrize("kind", FORMATS[:-1])
def test_packed_frames(probe: Probe, kind: str, padding: int) -> None:
    image = picture(1, 7, 11)
    alpha = picture(2, 7, 11, 1)
    stored = {
        "rgb": image,
        "bgr": image[..., ::-1],
        "rgba": np.concatenate([image, alpha], -1),
        "bgra": np.concatenate([image[..., ::-1], alpha], -1),
        "gray": alpha,
    }[kind]
    stride = 11 * WIDTHS[kind] + padding
    got = frame(probe, padded(stored.reshape(7, -1), stride), FORMATS.index(kind), 7, 11, stride, 0, 0, 0)
    assert np.array_equal(got, image if kind != "gray" else np.repeat(alpha, 3, -1))
    if kind not in ("bgr", "bgra"):
        source = stored[..., 0] if kind == "gray" else np.ascontiguousarray(stored)
        assert np.array_equal(got, np.asarray(load_image(source)))


def exact_rgb(luma: Pixels, chroma: Pixels, matrix: str) -> npt.NDArray[np.float64]:
    """BT.601 or BT.709 in float64, before rounding."""
    red, blue = (0.299, 0.114) if matrix.startswith("601") else (0.2126, 0.0722)
    green = 1 - red - blue
    limited = matrix.endswith("limited")
    y = (luma.astype(np.float64) - 16 * limited) / (219 if limited else 255)
    uv = (chroma.astype(np.float64) - 128) / (224 if limited else 255)
    u, v = (uv[..., i].repeat(2, 0).repeat(2, 1) for i in (0, 1))
    r, b = y + 2 * (1 - red) * v, y + 2 * (1 - blue) * u
    g = (y - red * r - blue * b) / green
    return np.clip(np.stack([r, g, b], -1), 0, 1) * 255


@pytest.mark.parametrize("matrix", MATRICES)
@pytest.mark.parametrize("padding", [0, 6])
def test_nv12_frames(probe: Probe, matrix: str, padding: int) -> None:
    rng = np.random.default_rng(3)
    luma = rng.integers(0, 256, (64, 66), dtype=np.uint8)
    chroma = rng.integers(0, 256, (32, 33, 2), dtype=np.uint8)
    stride, chroma_stride = 66 + padding, 66 + padding * 2
    data = padded(luma, stride) + padded(chroma.reshape(32, 66), chroma_stride)
    got = frame(
        probe, data, FORMATS.index("nv12"), 64, 66, stride, stride * 64, chroma_stride, MATRICES[matrix]
    )
    wrong = np.abs(got - exact_rgb(luma, chroma, matrix))
    # Factors in 16 bits are off by less than 0.01 of a level; the rest is rounding to a level.
    assert wrong.max() < 0.51


@pytest.mark.parametrize(
    ("numbers", "match"),
    [
        ((0, 0, 4, 12, 0, 0, 0), "a frame is 0 x 4 pixels: sides are at least 1"),
        ((0, 4, -1, 12, 0, 0, 0), "a frame is 4 x -1 pixels"),
        ((0, 100_000, 100_000, 300_000, 0, 0, 0), "their product is at most 89478485"),
        ((0, 2, 4, 11, 0, 0, 0), "a frame has 11 bytes from a row to the next, and a row has 12"),
        ((5, 3, 4, 4, 12, 4, 0), "an NV12 frame is 3 x 4 pixels: both sides must be even"),
        ((5, 2, 4, 4, 0, 4, 0), "an NV12 frame has no chroma"),
        ((5, 2, 4, 4, 8, 3, 0), "3 bytes from a row of chroma to the next, and a row has 4"),
        ((5, 2, 4, 4, 8, 4, 4), "of an unknown colour matrix"),
        ((6, 2, 4, 4, 8, 4, 0), "of an unknown format"),
    ],
)
def test_frames_that_are_refused(probe: Probe, numbers: tuple[int, ...], match: str) -> None:
    with pytest.raises(ImageError, match=match):
        frame(probe, bytes(100), *numbers)


def test_a_frame_without_data_is_refused(probe: Probe) -> None:
    with pytest.raises(ImageError, match="a frame has no data"):
        frame(probe, b"", 0, 2, 2, 6, 0, 0, 0)
