"""The kernels for camera frames, run on the CPU by a stand-in for CUDA, against Pillow and numpy."""

from __future__ import annotations

import ctypes
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import PIL
import pytest
from PIL import Image

from tests.kernels_on_cpu import KERNELS, assert_cases, assert_stands_alone, compiled, ptxas

SOURCES = ("frame_pixels.cu", "frame_layout.cpp", "frame_pixels_reference.cpp", "resample_weights.cpp")
EXACT = "-ffp-contract=off"
FORMATS = ("rgb", "bgr", "rgba", "bgra", "gray", "nv12")
BYTES = {"rgb": 3, "bgr": 3, "rgba": 4, "bgra": 4, "gray": 1, "nv12": 1}
MEAN = np.array([0.48145466, 0.4578275, 0.40821073], np.float32)
STD = np.array([0.26862954, 0.26130258, 0.27577711], np.float32)
RESCALE = 1 / 255
PILLOW = int(PIL.__version__.split(".")[0])

Array = npt.NDArray[Any]
Sizes = tuple[tuple[int, int], tuple[int, int], tuple[int, int, int, int]]


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    output, flags = tmp_path_factory.mktemp("kernels") / "frames.so", ("-O1", "-shared", "-fPIC", EXACT)
    loaded = ctypes.CDLL(str(compiled(output, *flags, sources=SOURCES)))
    loaded.fopru_frame_status_string.restype = ctypes.c_char_p
    loaded.fopru_frame_tables_bytes.restype = ctypes.c_size_t
    loaded.fopru_frame_workspace_bytes.restype = ctypes.c_size_t
    return loaded


@pytest.fixture(params=["fopru_frame_pixels", "fopru_frame_pixels_reference"])
def convert(request: pytest.FixtureRequest, library: ctypes.CDLL) -> Callable[..., int]:
    """The kernels, then the reference: they promise the same."""
    return getattr(library, request.param)  # type: ignore[no-any-return]


class Args(ctypes.Structure):
    _fields_ = [
        ("struct_bytes", ctypes.c_uint32),
        *((name, ctypes.c_int32) for name in ("format", "matrix", "filter", "height", "width")),
        *((name, ctypes.c_int32) for name in ("resized_height", "resized_width")),
        *((name, ctypes.c_int32) for name in ("top", "left", "crop_height", "crop_width")),
        *(("data", ctypes.c_void_p), ("stride", ctypes.c_int64)),
        *(("chroma", ctypes.c_void_p), ("chroma_stride", ctypes.c_int64)),
        *(("tables", ctypes.c_void_p), ("tables_bytes", ctypes.c_size_t), ("pixel_values", ctypes.c_void_p)),
        *(("workspace", ctypes.c_void_p), ("workspace_bytes", ctypes.c_size_t)),
    ]


class Call:
    """One call with its memory."""

    def __init__(self, library: ctypes.CDLL, kind: str, sizes: Sizes, resample: int, matrix: int = 0) -> None:
        (height, width), resized, crop = sizes
        rng = np.random.default_rng(height * 1000 + width)
        self.stride = width * BYTES[kind] + 5
        self.chroma_stride = width + 3
        self.data = rng.integers(0, 256, (height, self.stride), dtype=np.uint8)
        self.chroma = rng.integers(0, 256, ((height + 1) // 2, self.chroma_stride), dtype=np.uint8)
        self.out = np.full((3, *crop[2:]), np.nan, np.float32)
        numbers = (FORMATS.index(kind), matrix, resample, height, width, *resized, *crop)
        self.args = Args(ctypes.sizeof(Args), *numbers)
        self.args.data, self.args.stride = self.data.ctypes.data, self.stride
        self.args.chroma, self.args.chroma_stride = self.chroma.ctypes.data, self.chroma_stride
        self.args.pixel_values = self.out.ctypes.data
        self.tables = np.zeros(
            max(1, library.fopru_frame_tables_bytes(ctypes.byref(self.args)) // 4), np.int32
        )
        self.workspace = np.zeros(
            max(1, library.fopru_frame_workspace_bytes(ctypes.byref(self.args))), np.uint8
        )
        self.args.tables, self.args.tables_bytes = self.tables.ctypes.data, self.tables.nbytes
        self.args.workspace, self.args.workspace_bytes = self.workspace.ctypes.data, self.workspace.nbytes

    def fill(self, library: ctypes.CDLL) -> int:
        status: int = library.fopru_frame_tables(
            ctypes.byref(self.args),
            ctypes.c_double(RESCALE),
            MEAN.ctypes.data_as(ctypes.c_void_p),
            STD.ctypes.data_as(ctypes.c_void_p),
            self.tables.ctypes.data_as(ctypes.c_void_p),
            ctypes.c_size_t(self.tables.nbytes),
        )
        return status

    def packed(self, kind: str) -> Array:
        """RGB as the frame stores it."""
        height, width = self.args.height, self.args.width
        pixels = self.data[:, : width * BYTES[kind]].reshape(height, width, -1)
        order = {"rgb": [0, 1, 2], "rgba": [0, 1, 2], "bgr": [2, 1, 0], "bgra": [2, 1, 0], "gray": [0, 0, 0]}
        return np.ascontiguousarray(pixels[..., order[kind]])


def expected(rgb: Array, args: Any) -> Array:
    """Pillow's resize, then the crop, then the normalisation as in `runtime.preprocess`."""
    image, filter_ = Image.fromarray(rgb), Image.Resampling(args.filter)
    height, width = args.resized_height, args.resized_width
    if PILLOW < 13 and height < rgb.shape[0] and rgb.shape[0] - height > 2 * (rgb.shape[1] - width):
        image = image.resize((rgb.shape[1], height), filter_)  # 13 goes along the rows first here
    whole = np.asarray(image.resize((width, height), filter_))
    view = whole[args.top :, args.left :][: args.crop_height, : args.crop_width]
    scaled = (np.arange(256, dtype=np.float64) * RESCALE).astype(np.float32)
    return np.stack([((scaled - MEAN[c]) / STD[c])[view[..., c]] for c in range(3)])


def random_sizes(seed: int, even: bool = False) -> Sizes:
    rng = random.Random(seed)
    step = 2 if even else 1
    height, width = (rng.randrange(1, 60) * step for _ in range(2))
    resized = rng.randrange(1, 50), rng.randrange(1, 50)
    crop = tuple(rng.randrange(1, side + 1) for side in resized)
    corner = tuple(rng.randrange(side - part + 1) for side, part in zip(resized, crop, strict=True))
    return (height, width), resized, (*corner, *crop)  # type: ignore[return-value]


@pytest.mark.parametrize("kind", FORMATS[:-1])
def test_packed_frames_are_pillows_bytes(
    library: ctypes.CDLL, convert: Callable[..., int], kind: str
) -> None:
    for seed in range(30):
        call = Call(library, kind, random_sizes(seed), 1 + seed % 5)
        assert call.fill(library) == 0
        assert convert(ctypes.byref(call.args), None) == 0
        assert np.array_equal(call.out, expected(call.packed(kind), call.args)), seed


@pytest.mark.parametrize("matrix", range(4))
def test_nv12_frames(library: ctypes.CDLL, convert: Callable[..., int], matrix: int) -> None:
    for seed in range(12):
        call = Call(library, "nv12", random_sizes(seed, even=True), 1 + seed % 5, matrix)
        # colours by the same call without a resize, so that this test does not repeat the integers
        height, width = call.args.height, call.args.width
        plain = Call(library, "nv12", ((height, width), (height, width), (0, 0, height, width)), 3, matrix)
        assert plain.fill(library) == 0
        assert convert(ctypes.byref(plain.args), None) == 0
        levels = plain.tables[:768].view(np.float32).reshape(3, 256)
        rgb = np.stack([np.searchsorted(levels[c], plain.out[c]) for c in range(3)], -1).astype(np.uint8)
        wrong = np.abs(rgb - exact_rgb(plain, matrix))
        assert wrong.max() < 0.51  # rounding to a level, and factors of 16 bits
        assert call.fill(library) == 0
        assert convert(ctypes.byref(call.args), None) == 0
        assert np.array_equal(call.out, expected(rgb, call.args))


def exact_rgb(call: Call, matrix: int) -> Array:
    """BT.601 or BT.709 in float64, before rounding."""
    red, blue = (0.299, 0.114) if matrix < 2 else (0.2126, 0.0722)
    height, width = call.args.height, call.args.width
    limited = matrix % 2 == 0
    y = (call.data[:, :width].astype(np.float64) - 16 * limited) / (219 if limited else 255)
    pairs = call.chroma[: height // 2, :width].reshape(height // 2, width // 2, 2)
    uv = (pairs.astype(np.float64) - 128) / (224 if limited else 255)
    u, v = (uv[..., i].repeat(2, 0).repeat(2, 1) for i in (0, 1))
    r, b = y + 2 * (1 - red) * v, y + 2 * (1 - blue) * u
    g = (y - red * r - blue * b) / (1 - red - blue)
    clipped: Array = np.clip(np.stack([r, g, b], -1), 0, 1) * 255
    return clipped


GOOD: Sizes = ((20, 30), (10, 12), (1, 2, 8, 9))


@pytest.mark.parametrize(
    ("change", "status", "match"),
    [
        ({"data": None}, 1, "is null"),
        ({"chroma": None}, 1, "is null"),
        ({"tables": None}, 1, "is null"),
        ({"pixel_values": None}, 1, "is null"),
        ({"workspace": None}, 1, "is null"),
        ({"struct_bytes": 8}, 2, "different headers"),
        ({"format": 6}, 3, "format is none"),
        ({"matrix": 4}, 3, "matrix none"),
        ({"height": 0}, 4, "at least 1"),
        ({"height": 19}, 4, "even"),
        ({"resized_width": -1}, 4, "at least 1"),
        ({"resized_height": 2**30, "resized_width": 2**30}, 4, "2\\^26"),
        ({"top": 3}, 5, "crop must lie within"),
        ({"left": -1}, 5, "crop must lie within"),
        ({"crop_width": 0}, 5, "at least one pixel"),
        ({"crop_height": 2**31 - 1}, 5, "crop must lie within"),
        ({"stride": 29}, 6, "shorter than a row"),
        ({"chroma_stride": 29}, 6, "shorter than a row"),
        ({"filter": 0}, 7, "filter must be"),
        ({"filter": 6}, 7, "filter must be"),
        ({"tables_bytes": 100}, 9, "fewer bytes"),
        ({"workspace_bytes": 10}, 9, "fewer bytes"),
    ],
)
def test_a_wrong_argument_is_refused(
    library: ctypes.CDLL, convert: Callable[..., int], change: dict[str, Any], status: int, match: str
) -> None:
    call = Call(library, "nv12", GOOD, 3)
    for name, value in change.items():
        setattr(call.args, name, value)
    assert convert(ctypes.byref(call.args), None) == status
    assert re.search(match, library.fopru_frame_status_string(status).decode())
    assert np.isnan(call.out).all()


def test_tables_are_refused_with_the_same_words(library: ctypes.CDLL) -> None:
    call = Call(library, "rgb", GOOD, 3)
    assert call.fill(library) == 0
    call.args.filter = 9
    assert call.fill(library) == 7
    call.args.filter, call.tables = 3, call.tables[:10]
    assert call.fill(library) == 9
    call.args.pixel_values += 2
    assert library.fopru_frame_pixels(ctypes.byref(call.args), None) == 8
    assert library.fopru_frame_tables_bytes(None) == library.fopru_frame_workspace_bytes(None) == 0


def test_every_status_has_its_sentence(library: ctypes.CDLL) -> None:
    header = (KERNELS / "frame_pixels.h").read_text().split("enum FopruFrameStatus")[1].split("};")[0]
    values = [int(value) for value in re.findall(r"= (\d+),", header)]
    assert values == list(range(12))
    assert len({library.fopru_frame_status_string(value) for value in values}) == 12
    assert library.fopru_frame_status_string(99) == b"unknown status"


@pytest.mark.parametrize("launches", [0, 1])
def test_a_refused_launch_is_reported(library: ctypes.CDLL, launches: int) -> None:
    call = Call(library, "rgb", GOOD, 3)
    assert call.fill(library) == 0
    library.cuda_on_cpu_refuse_after(launches)
    try:
        assert library.fopru_frame_pixels(ctypes.byref(call.args), None) == 10
    finally:
        library.cuda_on_cpu_refuse_after(-1)
    assert library.fopru_frame_pixels(ctypes.byref(call.args), None) == 0


def test_no_access_outside_a_buffer(tmp_path: Path) -> None:
    assert_cases(tmp_path, "sanitized_frames.cpp", 8, EXACT, sources=SOURCES)


@pytest.mark.parametrize("architecture", ["sm_87", "sm_110"])
def test_the_kernels_compile_without_spills(tmp_path: Path, architecture: str) -> None:
    stacks = re.findall(
        r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads",
        ptxas("frame_pixels.cu", architecture, tmp_path / "cubin"),
    )
    assert stacks == [("0", "0", "0")] * 4  # two passes in either order


def test_the_header_stands_alone_and_needs_no_cuda() -> None:
    assert_stands_alone("frame_pixels.h")
