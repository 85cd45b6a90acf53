"""Decoding in runtime/cpp/src/image against `load_image`: the same bytes, and the same files refused."""

from __future__ import annotations

import json
import random
import struct
import subprocess
import warnings
import zlib
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from runtime.errors import ImageError
from runtime.preprocess import load_image
from tests.cpp_build import cpp_tool
from tests.image_probe import Pixels, Probe, picture

ORIENTATION = 0x0112


@pytest.fixture(scope="module")
def probe(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Probe]:
    with Probe(tmp_path_factory.mktemp("image")) as probe:
        yield probe


@pytest.fixture(scope="module")
def jpeg(probe: Probe) -> None:
    if probe.ask_for("decoder")["decoder"] != "libjpeg":
        pytest.skip("this build has no libjpeg, and other decoders have other pixels")


def by_python(data: bytes, folder: Path) -> Pixels:
    path = folder / "image"
    path.write_bytes(data)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's remarks about damaged Exif records
        return np.asarray(load_image(path))


def same(probe: Probe, data: bytes, about: object = "") -> None:
    expected = by_python(data, probe.folder)
    assert np.array_equal(probe.decode(data), expected), about


def refused(probe: Probe, data: bytes, match: str = "image") -> None:
    with pytest.raises(ImageError, match=match):
        by_python(data, probe.folder)
    with pytest.raises(ImageError, match=match):
        probe.decode(data)


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    out = BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


# --- PNG --------------------------------------------------------------------------------------------------


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


PASSES = [
    (0, 0, 8, 8),
    (0, 4, 8, 8),
    (4, 0, 8, 4),
    (0, 2, 4, 4),
    (2, 0, 4, 2),
    (0, 1, 2, 2),
    (1, 0, 2, 1),
]
SAMPLES = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}


def filtered(rows: list[bytes], step: int, rng: random.Random) -> bytes:
    """Rows with random filters, as an encoder would write them."""
    out, above = bytearray(), bytes(len(rows[0]) if rows else 0)
    for row in rows:
        kind = rng.randrange(5)
        out.append(kind)
        for i, value in enumerate(row):
            left = row[i - step] if i >= step else 0
            corner = above[i - step] if i >= step else 0
            guess = (0, left, above[i], (left + above[i]) // 2, paeth(left, above[i], corner))[kind]
            out.append((value - guess) & 255)
        above = row
    return bytes(out)


def paeth(left: int, above: int, corner: int) -> int:
    distances = abs(above - corner), abs(left - corner), abs(left + above - 2 * corner)
    return (left, above, corner)[distances.index(min(distances))]


def png(
    seed: int,
    size: tuple[int, int],
    kind: tuple[int, int, int],
    before: bytes = b"",
    after: bytes = b"",
    cut: int = 0,
) -> bytes:
    """Random samples of (depth, colour type, interlaced); `cut` bytes are missing from the packed data."""
    (height, width), (depth, colour, interlaced) = size, kind
    rng = random.Random(seed)
    bits = depth * SAMPLES[colour]
    few = rng.random() < 0.5  # few levels, so that a declared colour is met
    raw = b""
    for y0, x0, dy, dx in PASSES if interlaced else [(0, 0, 1, 1)]:
        columns, lines = -(-(width - x0) // dx), -(-(height - y0) // dy)
        if columns > 0 and lines > 0:
            length = (columns * bits + 7) // 8
            rows = [
                bytes(rng.choice((0, 1, 128, 255)) for _ in range(length)) if few else rng.randbytes(length)
                for _ in range(lines)
            ]
            raw += filtered(rows, (bits + 7) // 8, rng)
    packed = zlib.compress(raw, rng.randrange(10))
    packed = packed[: len(packed) - cut]
    places = sorted(rng.randrange(len(packed) + 1) for _ in range(rng.randrange(3)))
    parts = [packed[a:b] for a, b in zip([0, *places], [*places, len(packed)], strict=True)]
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlaced)
    return b"".join(
        [
            b"\x89PNG\r\n\x1a\n",
            chunk(b"IHDR", header),
            before,
            *(chunk(b"IDAT", part) for part in parts),
            after,
            chunk(b"IEND", b""),
        ]
    )


KINDS = [(depth, 0) for depth in (1, 2, 4, 8, 16)] + [(depth, 3) for depth in (1, 2, 4, 8)]
KINDS += [(depth, colour) for colour in (2, 4, 6) for depth in (8, 16)]
PALETTE = chunk(b"PLTE", bytes(random.Random(1).choice((0, 40, 255)) for _ in range(3 * 200)))


@pytest.mark.parametrize("interlaced", [0, 1])
@pytest.mark.parametrize(("depth", "colour"), KINDS)
def test_png_of_each_kind(probe: Probe, depth: int, colour: int, interlaced: int) -> None:
    rng = random.Random(depth * 10 + colour)
    for seed in range(12):
        size = (rng.randrange(1, 20), rng.randrange(1, 40))
        before = PALETTE if colour == 3 else b""
        same(probe, png(seed, size, (depth, colour, interlaced), before), (seed, size))


@pytest.mark.parametrize(("depth", "colour"), [kind for kind in KINDS if kind[1] in (0, 2, 3)])
def test_png_with_a_declared_transparent_colour(probe: Probe, depth: int, colour: int) -> None:
    rng = random.Random(depth * 10 + colour)
    for seed in range(16):
        values = [rng.choice((0, 1, 2, 128, 255, 256, 0x0101, 0x8001, 65535)) for _ in range(3)]
        body = struct.pack(">3H", *values)[: 6 if colour == 2 else 2]
        if colour == 3:
            body = rng.choice(
                (
                    b"\x00",
                    b"\xff\x00\xff",
                    b"\xff" * 200 + b"\x00",
                    b"\xff\x00\n",
                    b"\x00\x00",
                    b"\x80\x00",
                    b"",
                )
            )
        before, trns = PALETTE if colour == 3 else b"", chunk(b"tRNS", body)
        late = rng.random() < 0.3  # Pillow reads it behind the pixels too
        data = png(
            seed,
            (9, 14),
            (depth, colour, seed % 2),
            before + (b"" if late else trns),
            trns if late else b"",
        )
        same(probe, data, (seed, values, body))


def test_png_that_ends_too_early(probe: Probe) -> None:
    for cut in range(60):
        data = png(3, (20, 30), (8, 2, 0), cut=cut)
        if cut < 12:
            assert agree(probe, data), cut  # the checksum may go, and the last bits
        else:
            refused(probe, data, "truncated")
    whole = png(4, (16, 16), (8, 6, 1))
    for length in range(0, len(whole), 7):
        assert agree(probe, whole[:length]), length
    refused(probe, whole[: len(whole) // 2])


@pytest.mark.parametrize("interlaced", [0, 1])
def test_png_whose_first_row_cannot_be_there(interlaced: int, tmp_path: Path) -> None:
    """A row of 715 MB, and the one above it, are not allocated for a hundred bytes of file."""
    header = struct.pack(">IIBBBBB", 89_478_485, 1, 16, 6, 0, 0, interlaced)
    data = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    file = tmp_path / "wide.png"
    file.write_bytes(b"\x89PNG\r\n\x1a\n" + data)
    done = subprocess.run(
        ["sh", "-c", 'ulimit -v 150000; exec "$0"', cpp_tool("probe_image")],
        input=f"decode\t{file}\t{tmp_path / 'out'}\n".encode(),
        capture_output=True,
        check=True,
    )
    assert "image file is truncated" in json.loads(done.stdout)["error"]


def test_png_with_rows_missing_is_black_there_as_in_pillow(probe: Probe) -> None:
    rows = b"".join(b"\0" + bytes([200] * 30) for _ in range(4))
    header = struct.pack(">IIBBBBB", 10, 9, 8, 2, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows))
    same(probe, data + chunk(b"IEND", b""))


def test_png_with_damage(probe: Probe) -> None:
    whole = png(5, (12, 12), (8, 2, 0), before=chunk(b"gAMA", struct.pack(">I", 45455)))
    rng = random.Random(0)
    agreed = 0
    for _ in range(150):
        data = bytearray(whole)
        for _ in range(rng.randrange(1, 4)):
            data[rng.randrange(8, len(data))] = rng.randrange(256)
        agreed += agree(probe, bytes(data))
    assert agreed == 150


def agree(probe: Probe, data: bytes) -> bool:
    """Both refuse, or both give the same pixels. No crash on either side."""
    try:
        expected = by_python(data, probe.folder)
    except ImageError:
        with pytest.raises(ImageError):
            probe.decode(data)
        return True
    return bool(np.array_equal(probe.decode(data), expected))


# --- JPEG -------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("jpeg")
@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("subsampling", [0, 1, 2])
def test_jpeg(probe: Probe, subsampling: int, progressive: bool) -> None:
    rng = random.Random(subsampling)
    for seed in range(14):
        size = (rng.randrange(1, 90), rng.randrange(1, 90))
        options: dict[str, Any] = {"quality": rng.choice((1, 20, 50, 75, 90, 95, 100))}
        if rng.random() < 0.5:
            options["restart_marker_blocks"] = rng.randrange(1, 9)
        image = Image.fromarray(picture(seed, *size))
        data = encoded(image, "JPEG", subsampling=subsampling, progressive=progressive, **options)
        same(probe, data, (seed, size, options))


@pytest.mark.usefixtures("jpeg")
@pytest.mark.parametrize("mode", ["L", "CMYK", "RGB"])
def test_jpeg_of_other_colours(probe: Probe, mode: str) -> None:
    for seed in range(8):
        channels = {"L": 1, "CMYK": 4, "RGB": 3}[mode]
        pixels = picture(seed, 30 + seed, 41)
        image = Image.fromarray(pixels[..., 0]) if mode == "L" else Image.fromarray(pixels)
        if channels == 4:
            image = Image.merge(
                "CMYK", [Image.fromarray(plane) for plane in np.moveaxis(picture(seed, 33, 40, 4), 2, 0)]
            )
        options: dict[str, Any] = {"keep_rgb": True} if mode == "RGB" else {}
        same(probe, encoded(image, "JPEG", quality=80, progressive=seed % 2 == 1, **options))


@pytest.mark.usefixtures("jpeg")
def test_jpeg_ycck(probe: Probe) -> None:
    """An Adobe marker that says 2 in a file of four components: YCCK."""
    planes = [Image.fromarray(plane) for plane in np.moveaxis(picture(3, 24, 31, 4), 2, 0)]
    data = encoded(Image.merge("CMYK", planes), "JPEG", quality=90)
    at = data.index(b"Adobe")
    assert data[at + 11] in (0, 2)
    for transform in (0, 2):
        same(probe, data[: at + 11] + bytes([transform]) + data[at + 12 :], transform)


@pytest.mark.usefixtures("jpeg")
def test_jpeg_that_ends_too_early(probe: Probe) -> None:
    for progressive in (False, True):
        whole = encoded(Image.fromarray(picture(1, 64, 64)), "JPEG", progressive=progressive)
        for length in range(2, len(whole), max(1, len(whole) // 40)):
            assert agree(probe, whole[:length]), length
        refused(probe, whole[: len(whole) // 2], r"truncated \(\d+ bytes not processed\)")


@pytest.mark.usefixtures("jpeg")
def test_jpeg_with_damage(probe: Probe) -> None:
    rng = random.Random(7)
    agreed = 0
    for i in range(120):
        image = Image.fromarray(picture(2, 40, 48))
        data = bytearray(encoded(image, "JPEG", progressive=i % 2 == 1, subsampling=i % 3))
        start = 0 if i % 4 else 600  # headers too, mostly the coded part
        for _ in range(rng.randrange(1, 4)):
            data[rng.randrange(start, len(data))] = rng.randrange(256)
        agreed += agree(probe, bytes(data))
    # libjpeg-turbo 3 (in Pillow's wheel) and 2 (Debian) may conceal damage differently.
    assert agreed >= 115


# --- rotation ---------------------------------------------------------------------------------------------


def exif(orientation: int, order: str = ">", prefix: bytes = b"Exif\0\0", kind: int = 3) -> bytes:
    head = (b"MM\0*" if order == ">" else b"II*\0") + struct.pack(order + "I", 8)
    value = struct.pack(order + "HH", orientation, 0) if kind == 3 else struct.pack(order + "I", orientation)
    other = struct.pack(order + "HHI", 0x010F, 2, 4) + b"abc\0"
    field = struct.pack(order + "HHI", ORIENTATION, kind, 1) + value
    return prefix + head + struct.pack(order + "H", 2) + other + field + struct.pack(order + "I", 0)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("orientation", [*range(10), 65535])
def test_rotation(probe: Probe, orientation: int, order: str) -> None:
    image = Image.fromarray(picture(orientation, 7, 12))
    for kind in (3, 4):
        record = exif(orientation, order, kind=kind)
        same(probe, encoded(image, "PNG", exif=record), "PNG")
        if probe.ask_for("decoder")["decoder"] == "libjpeg":
            same(probe, encoded(image, "JPEG", exif=record, subsampling=0), "JPEG")


def test_rotation_that_is_damaged(probe: Probe) -> None:
    whole = exif(6, prefix=b"")
    rng = random.Random(3)
    before = [chunk(b"eXIf", whole[:length]) for length in range(8, len(whole))]
    for _ in range(150):
        data = bytearray(whole)
        data[rng.randrange(8, len(data))] = rng.randrange(256)
        before.append(chunk(b"eXIf", bytes(data)))
    for record in before:
        assert agree(probe, png(0, (3, 5), (8, 2, 0), record)), record
    refused(probe, png(0, (3, 5), (8, 2, 0), chunk(b"eXIf", b"XX*\0\0\0\0\x08")), "damaged")


@pytest.mark.parametrize(
    "record", [b'<x tiff:Orientation="6"/>', b"<tiff:Orientation>3</tiff:Orientation>", b"tiff:Orientation"]
)
def test_rotation_of_xmp(probe: Probe, record: bytes) -> None:
    head = b"XML:com.adobe.xmp\0"
    for body in (head + b"\0\0\0\0" + record, head + b"\1\0\0\0" + zlib.compress(record)):
        same(probe, png(0, (3, 5), (8, 2, 0), chunk(b"iTXt", body)))
        same(probe, png(0, (3, 5), (8, 2, 0), chunk(b"eXIf", exif(8, prefix=b"")) + chunk(b"iTXt", body)))
    text = b"Raw profile type exif\0\nexif\n 34\n" + exif(7).hex().encode() + b"\n"
    same(probe, png(0, (3, 5), (8, 2, 0), chunk(b"tEXt", text)))
    if probe.ask_for("decoder")["decoder"] == "libjpeg":
        image = Image.fromarray(picture(1, 8, 16))
        same(probe, encoded(image, "JPEG", xmp=record))


# --- BMP and GIF ------------------------------------------------------------------------------------------


def bmp(seed: int, size: tuple[int, int], bits: int, **options: Any) -> bytes:
    rng = random.Random(seed)
    height, width = size
    colours = options.get("colours", 0)
    compression = options.get("compression", 0)
    masks = b"".join(struct.pack("<I", mask) for mask in options.get("masks", ()))
    entries = colours or (1 << bits if bits <= 8 else 0)
    palette = options.get("palette") or bytes(rng.randrange(256) for _ in range(entries * 4))
    stride = (width * bits + 31) // 32 * 4
    pixels = options.get("pixels")
    pixels = rng.randbytes(stride * height) if pixels is None else pixels
    signed = -height if options.get("from_top") else height
    header = struct.pack("<IiiHHIIiiII", 40, width, signed, 1, bits, compression, 0, 0, 0, colours, 0)
    offset = 14 + len(header) + len(masks) + len(palette)
    return b"BM" + struct.pack("<IHHI", 0, 0, 0, offset) + header + masks + palette + pixels


@pytest.mark.parametrize("bits", [1, 4, 8, 16, 24, 32])
def test_bmp(probe: Probe, bits: int) -> None:
    for seed in range(12):
        size = (1 + seed, 1 + seed * 3)
        same(probe, bmp(seed, size, bits, from_top=seed % 2 == 1), (seed, size))


@pytest.mark.parametrize(
    ("bits", "masks"),
    [
        (16, (0xF800, 0x7E0, 0x1F)),
        (16, (0x7C00, 0x3E0, 0x1F)),
        (24, (0xFF0000, 0xFF00, 0xFF)),
        (32, (0xFF0000, 0xFF00, 0xFF)),
        (32, (0xFF000000, 0xFF0000, 0xFF00)),
        (32, (0xFF000000, 0xFF00, 0xFF)),
        (32, (0, 0, 0)),
    ],
)
def test_bmp_bit_fields(probe: Probe, bits: int, masks: tuple[int, ...]) -> None:
    same(probe, bmp(1, (5, 7), bits, compression=3, masks=masks))


def test_bmp_runs(probe: Probe) -> None:
    rng = random.Random(5)
    for seed in range(60):
        bits = rng.choice((4, 8))
        codes = b"".join(
            rng.choice(
                (
                    bytes([rng.randrange(1, 9), rng.randrange(256)]),
                    b"\0\0",
                    bytes([0, 2, rng.randrange(3), rng.randrange(2)]),
                    bytes([0, 4, *rng.randbytes(4 if bits == 8 else 2)]),
                    bytes([0, 3, *rng.randbytes(4 if bits == 8 else 2)]),
                )
            )
            for _ in range(60)
        )
        data = bmp(seed, (6, 9), bits, compression=1 if bits == 8 else 2, pixels=codes + b"\0\1")
        assert agree(probe, data), seed


def test_bmp_of_gray_palettes_and_damage(probe: Probe) -> None:
    ramp = b"".join(bytes([i, i, i, 0]) for i in range(256))
    same(probe, bmp(1, (5, 7), 8, palette=ramp))
    same(probe, bmp(1, (5, 9), 1, palette=b"\0\0\0\0\xff\xff\xff\0"))
    same(probe, bmp(1, (5, 9), 1, palette=b"\xff\xff\xff\0\0\0\0\0"))
    whole = bmp(2, (8, 9), 8, palette=ramp)
    rng = random.Random(1)
    for _ in range(150):
        data = bytearray(whole)
        data[rng.randrange(2, 70)] = rng.choice((0, 1, 2, 4, 16, 24, 40, 255, rng.randrange(256)))
        assert agree(probe, bytes(data)), list(data[:70])
    for length in range(0, len(whole), 37):
        assert agree(probe, whole[:length]), length


def test_gif(probe: Probe) -> None:
    for seed in range(30):
        rng = random.Random(seed)
        size = (rng.randrange(1, 60), rng.randrange(1, 60))
        levels = rng.choice((2, 4, 17, 256))
        indices = picture(seed, *size, 1)[..., 0] % np.uint16(levels)
        indices = indices.astype(np.uint8)
        image = Image.fromarray(indices)
        if seed % 3:
            image = image.convert("P")
            image.putpalette(bytes(rng.choice((0, 90, 255)) for _ in range(levels * 3)))
        options: dict[str, Any] = {"interlace": seed % 2}
        if rng.random() < 0.5:
            options["transparency"] = rng.randrange(levels)
        second = [Image.fromarray(255 - indices)] if rng.random() < 0.3 else []
        same(probe, encoded(image, "GIF", append_images=second, save_all=bool(second), **options), seed)


def test_gif_with_damage(probe: Probe) -> None:
    image = Image.fromarray(picture(1, 30, 31)).quantize(64)
    rng = random.Random(1)
    for interlace in (0, 1):
        whole = encoded(image, "GIF", interlace=interlace, transparency=3)
        for _ in range(150):
            data = bytearray(whole)
            for _ in range(rng.randrange(1, 3)):
                data[rng.randrange(6, len(data))] = rng.randrange(256)
            if struct.unpack_from("<HH", data, 6) < (2000, 2000):
                assert agree(probe, bytes(data))
        for length in range(0, len(whole), 61):
            assert agree(probe, whole[:length]), length


# --- what is refused --------------------------------------------------------------------------------------


def test_too_large_is_refused_before_decoding(probe: Probe) -> None:
    for width, height in ((100_000, 1000), (100_000, 100_000), (2**31 - 1, 2**31 - 1)):
        header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
        data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"x") + chunk(b"IEND", b"")
        messages = []
        for read in (lambda data: by_python(data, probe.folder), probe.decode):
            with pytest.raises(ImageError) as raised:
                read(data)
            messages.append(str(raised.value))
        assert messages[0] == messages[1]
        assert "could be decompression bomb" in messages[1]


def test_paths(probe: Probe, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("not an image")
    (tmp_path / "empty").write_bytes(b"")
    for path, match in (
        (tmp_path, "is a directory, expected an image file: check the path"),
        (tmp_path / "none", "there is no image file at .*none: check the path"),
        (tmp_path / "text" / "below", "there is no image file at .*below: check the path"),
        (tmp_path / "text", "is not an image that .* can read: convert it to PNG or JPEG"),
        (tmp_path / "empty", "is not an image that .* can read: convert it to PNG or JPEG"),
    ):
        for read in (load_image, lambda path: probe.pixels("decode", path)):
            with pytest.raises(ImageError, match=match):
                read(path)
