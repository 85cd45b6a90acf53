"""src/base of the C++ runtime against Python's own json, hashlib, pathlib and numpy."""

from __future__ import annotations

import hashlib
import io
import json
import math
import random
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.cpp_build import ask, cpp_tool

DATA = Path(__file__).parent / "data"


@pytest.fixture(scope="module")
def probe() -> Path:
    return cpp_tool("probe_base")


def _values(probe: Path, requests: list[dict[str, Any]]) -> list[Any]:
    return [reply["value"] for reply in ask(probe, requests)]


def _json(op: str, text: str | bytes) -> dict[str, Any]:
    return {"op": op, "hex": (text if isinstance(text, bytes) else text.encode()).hex()}


def _random_float(rng: random.Random) -> float:
    choice = rng.random()
    if choice < 0.3:
        return float(struct.unpack("<d", rng.randbytes(8))[0])
    if choice < 0.6:
        return round(rng.uniform(-1000, 1000), rng.randrange(6))
    return float(f"{rng.randrange(1, 10**6)}e{rng.randrange(-20, 25)}")


def _random_text(rng: random.Random) -> str:
    alphabet = "abc'\"\\/\b\f\n\r\t\0\x1f\x7f\x85\xa0\xad é€中文\u200b\u2028\ufeff\U0001f600\U000e0001"
    return "".join(rng.choice(alphabet) for _ in range(rng.randrange(8)))


def _random_value(rng: random.Random, depth: int) -> Any:
    kinds = 8 if depth > 0 else 6
    match rng.randrange(kinds):
        case 0:
            return None
        case 1:
            return rng.random() < 0.5
        case 2:
            return rng.choice([0, -1, 2**63 - 1, -(2**63), rng.randrange(-(10**6), 10**6)])
        case 3:
            value = _random_float(rng)
            return value if math.isfinite(value) else 0.0
        case 4 | 5:
            return _random_text(rng)
        case 6:
            return [_random_value(rng, depth - 1) for _ in range(rng.randrange(4))]
        case _:
            return {_random_text(rng): _random_value(rng, depth - 1) for _ in range(rng.randrange(4))}


def test_json_is_written_as_python_writes_it(probe: Path) -> None:
    rng = random.Random(1)
    values = [_random_value(rng, 4) for _ in range(400)]
    over_lines = _values(probe, [_json("json", json.dumps(value)) for value in values])
    in_line = _values(probe, [_json("line", json.dumps(value, ensure_ascii=False)) for value in values])
    for value, lines, line in zip(values, over_lines, in_line, strict=True):
        assert lines == json.dumps(value, indent=2, ensure_ascii=False)
        assert line == json.dumps(value, ensure_ascii=False)


def test_values_in_messages_are_those_of_python(probe: Path) -> None:
    rng = random.Random(2)
    values = [_random_value(rng, 3) for _ in range(400)]
    for value, shown in zip(values, _values(probe, [{"op": "repr", "of": v} for v in values]), strict=True):
        assert shown == repr(value)


def test_floats_are_written_as_repr_writes_them(probe: Path) -> None:
    rng = random.Random(3)
    edges = [0.0, -0.0, 1e16, 1e15, 9999999999999998.0, 1e-4, 1e-5, 5e-324, 1.7976931348623157e308, 0.1, 1e22]
    floats = edges + [value for value in (_random_float(rng) for _ in range(3000)) if math.isfinite(value)]
    shown = _values(probe, [{"op": "repr", "of": floats}])[0]
    assert shown == repr(floats)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (b"", "parse error"),
        (b"{", "parse error"),
        (b"[1,]", "parse error"),
        (b"{'a': 1}", "parse error"),
        (b"[1] 2", "parse error"),
        (b"{}\0", "zero byte at 2"),
        (b"\xef\xbb\xbf{}", "byte order mark"),
        (b'"\xff"', "parse error"),
        (b'"\xed\xa0\x80"', "parse error"),
        (b'"\\ud800"', "parse error"),
        (b'"\t"', "parse error"),
        (b"NaN", "parse error"),
        (b"[Infinity]", "parse error"),
        (b"1e999", "number overflow"),
        (b"01", "parse error"),
        (b"// c\n1", "parse error"),
        (b"9223372036854775808", "more than 64 bits"),
        (b"-9223372036854775809", "more than 64 bits"),
        (b"1" + b"0" * 400, "number overflow"),
        (b'{"a": 1, "b": 2, "a": 3}', "the key 'a' twice"),
        (b"[" * 65 + b"]" * 65, "deeper than 64"),
        (b'{"a":' * 100_000, "deeper than 64"),
    ],
)
def test_json_that_is_refused(probe: Path, text: bytes, says: str) -> None:
    (reply,) = ask(probe, [_json("json", text)])
    assert says in reply["error"]
    assert reply["error"].startswith("bundle.json is not JSON (")
    assert reply["error"].endswith("): rebuild the bundle with `python -m export.build`")


def test_json_as_deep_as_allowed_is_read(probe: Path) -> None:
    assert _values(probe, [_json("line", "[" * 64 + "]" * 64)]) == ["[" * 64 + "]" * 64]


def test_utf8_is_what_python_decodes(probe: Path) -> None:
    rng = random.Random(4)
    samples = []
    for _ in range(2000):
        text = bytearray(_random_text(rng).encode())
        if text and rng.random() < 0.7:
            text[rng.randrange(len(text))] = rng.randrange(256)
        samples.append(bytes(text) + rng.choice([b"", b"", bytes([rng.randrange(128, 256)])]))
    edges = [
        b"\xc0\x80",
        b"\xe0\x9f\x80",
        b"\xf0\x8f\x80\x80",
        b"\xf4\x90\x80\x80",
        b"\xed\xbf\xbf",
        b"\xf4\x8f\xbf\xbf",
    ]
    for sample, good in zip(
        samples + edges, _values(probe, [_json("utf8", sample) for sample in samples + edges]), strict=True
    ):
        assert good == _is_utf8(sample), sample


def _is_utf8(sample: bytes) -> bool:
    try:
        sample.decode()
    except UnicodeDecodeError:
        return False
    return True


def test_sha256_in_pieces_of_every_length(probe: Path) -> None:
    rng = random.Random(5)
    samples = [rng.randbytes(length) for length in [*range(200), 1000, 4095, 4096, 4097, 20_000]]
    pieces = [rng.choice([1, 3, 63, 64, 65, 127, 10_000]) for _ in samples]
    requests = [
        {"op": "sha256", "hex": sample.hex(), "piece": piece}
        for sample, piece in zip(samples, pieces, strict=True)
    ]
    for sample, digest in zip(samples, _values(probe, requests), strict=True):
        assert digest == hashlib.sha256(sample).hexdigest()


def test_sha256_of_files(probe: Path, tmp_path: Path) -> None:
    file = tmp_path / "big"
    content = random.Random(6).randbytes(3_000_001)
    file.write_bytes(content)
    empty = tmp_path / "empty"
    empty.touch()
    paths = [str(file), str(empty), str(tmp_path / "absent"), str(tmp_path)]
    big, none, absent, folder = ask(probe, [{"op": "sha256_file", "path": path} for path in paths])
    assert big["value"] == hashlib.sha256(content).hexdigest()
    assert none["value"] == hashlib.sha256(b"").hexdigest()
    assert absent["error"] == f"[Errno 2] No such file or directory: {str(tmp_path / 'absent')!r}"
    assert folder["error"] == f"[Errno 21] Is a directory: {str(tmp_path)!r}"


def test_paths_are_those_of_pathlib(probe: Path) -> None:
    rng = random.Random(7)
    parts = ["/", ".", "..", "a", "b c", "//", "/./"]
    paths = ["".join(rng.choice(parts) for _ in range(rng.randrange(7))) for _ in range(500)]
    names = [rng.choice(["x", "onnx/x.onnx", "/abs", "."]) for _ in paths]
    plain = _values(probe, [{"op": "path", "path": path} for path in paths])
    joined = _values(
        probe, [{"op": "join", "path": path, "name": name} for path, name in zip(paths, names, strict=True)]
    )
    for path, name, own, whole in zip(paths, names, plain, joined, strict=True):
        assert own == str(Path(path)), path
        assert whole == str(Path(path) / name), (path, name)


def test_16_bit_floats(probe: Path) -> None:
    every = np.arange(2**16, dtype=np.uint16)
    wide = np.array(_values(probe, [{"op": "halves", "bits": every.tolist()}])[0], np.uint32).reshape(-1, 2)
    half = np.ascontiguousarray(wide[:, 0]).view(np.float32)
    with np.errstate(invalid="ignore"):
        np.testing.assert_array_equal(half, every.view(np.float16).astype(np.float32))
    np.testing.assert_array_equal(wide[:, 1], every.astype(np.uint32) << 16)


def test_rounding_to_16_bits(probe: Path) -> None:
    rng = np.random.default_rng(8)
    bits = rng.integers(0, 2**32, 20_000, dtype=np.uint32)
    # Ties: halfway between two halves, and between two bfloat16, normal and subnormal.
    near = rng.integers(0x3280, 0x4790, 5000, dtype=np.uint32) << 16
    near |= rng.integers(0, 8, 5000, dtype=np.uint32) << 12
    ties = (rng.integers(0, 2**16, 2000, dtype=np.uint32) << 16) | 0x8000
    edges = np.array([0x477FEFFF, 0x477FF000, 0x33000000, 0x33000001], np.uint32)
    bits = np.concatenate([bits, near, ties, edges])
    bits = bits[~np.isnan(bits.view(np.float32))]
    got = np.array(_values(probe, [{"op": "narrowed", "bits": bits.tolist()}])[0], np.uint16).reshape(-1, 2)
    with np.errstate(over="ignore"):
        wanted = bits.view(np.float32).astype(np.float16).view(np.uint16)
    np.testing.assert_array_equal(got[:, 0], wanted)
    # bfloat16 by its definition: the upper half, rounded to even.
    rounded = (bits.astype(np.uint64) + 0x7FFF + ((bits >> 16) & 1)) >> 16
    np.testing.assert_array_equal(got[:, 1], rounded)


def _same_arrays(record: dict[str, Any], arrays: dict[str, np.ndarray[Any, Any]]) -> None:
    assert set(record) == set(arrays)
    for name, array in arrays.items():
        plain = np.ascontiguousarray(array)
        assert record[name]["dtype"] == plain.dtype.name
        assert tuple(record[name]["shape"]) == array.shape
        assert record[name]["sha256"] == hashlib.sha256(plain.tobytes()).hexdigest()
        values = plain.astype(np.float64).reshape(-1)
        shown = np.array([np.nan if value is None else value for value in record[name]["values"]])
        np.testing.assert_array_equal(shown, np.where(np.isfinite(values), values, np.nan))


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz_of_every_dtype(probe: Path, tmp_path: Path, save: Any) -> None:
    rng = np.random.default_rng(9)
    names = ["bool", "float16", "float32", "float64"]
    names += [f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)]
    arrays = {name: (rng.random((2, 3, 4)) * 9).astype(name) for name in names}
    arrays |= {"scalar": np.array(3.5), "empty": np.zeros((0, 4), np.float32), "ü": np.arange(3)}
    arrays["fortran"] = np.asfortranarray(rng.random((3, 4, 5)))
    save(tmp_path / "all.npz", **arrays)
    (record,) = _values(probe, [{"op": "npz", "path": str(tmp_path / "all.npz")}])
    _same_arrays(record, arrays)


@pytest.mark.parametrize("bundle", sorted(path.name for path in DATA.iterdir()))
def test_npz_of_the_frozen_bundles(probe: Path, bundle: str) -> None:
    file = DATA / bundle / "golden" / "golden.npz"
    (record,) = _values(probe, [{"op": "npz", "path": str(file)}])
    with np.load(file) as arrays:
        _same_arrays(record, dict(arrays))


def test_damaged_npz_are_refused_or_read_as_numpy_reads_them(probe: Path, tmp_path: Path) -> None:
    rng = random.Random(10)
    np.savez(tmp_path / "a.npz", x=np.arange(6.0).reshape(2, 3), y=np.arange(4))
    np.savez_compressed(tmp_path / "b.npz", x=np.arange(6.0).reshape(2, 3), y=np.arange(400))
    originals = [(tmp_path / name).read_bytes() for name in ("a.npz", "b.npz")]
    samples: list[bytes] = []
    for _ in range(1500):
        changed = bytearray(rng.choice(originals))
        for _ in range(rng.randrange(1, 4)):
            changed[rng.randrange(len(changed))] = rng.choice([0, 255, rng.randrange(256)])
        samples.append(bytes(changed[: rng.randrange(len(changed))] if rng.random() < 0.2 else changed))
    replies = ask(probe, [{"op": "npz_bytes", "hex": sample.hex()} for sample in samples])
    refused = sum("error" in reply for reply in replies)
    assert refused > len(samples) / 2  # flags, dates and attributes may be anything
    for sample, reply in zip(samples, replies, strict=True):
        if "value" in reply:
            _same_arrays_if_numpy_reads(sample, reply["value"])


def _same_arrays_if_numpy_reads(sample: bytes, record: dict[str, Any]) -> None:
    """What both read is the same; NumPy refuses some that are read here, such as a newer zip version."""
    try:
        with np.load(io.BytesIO(sample), allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files}
    except Exception:
        return
    _same_arrays(record, arrays)


def test_arrays_of_an_npz_may_not_share_their_bytes(probe: Path) -> None:
    """A small file would become as many arrays as its directory has lines."""
    file = io.BytesIO()
    np.savez_compressed(file, a=np.zeros(100_000, np.uint8))
    whole = file.getvalue()
    begin, end = whole.index(b"PK\1\2"), whole.index(b"PK\5\6")
    entry = whole[begin:end]
    entries = b"".join(entry.replace(b"a.npy", b"%c.npy" % letter) for letter in b"abcd")
    count = (4).to_bytes(2, "little")
    last = whole[end : end + 8] + count * 2 + len(entries).to_bytes(4, "little") + whole[end + 16 :]
    one, four = ask(
        probe,
        [{"op": "npz_bytes", "hex": sample.hex()} for sample in (whole, whole[:begin] + entries + last)],
    )
    assert one["value"]["a"]["shape"] == [100_000]
    assert four["error"] == "its arrays overlap"


def _zip_with(name: str, content: bytes, size: int) -> bytes:
    """A compressed entry that claims `size` bytes, in both headers."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, content)
    data = bytearray(file.getvalue())
    central = data.index(b"PK\1\2")
    data[22:26] = data[central + 24 : central + 28] = struct.pack("<I", size)
    return bytes(data)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "File is not a zip file"),
        (b"PK\5\6", "File is not a zip file"),
        (_zip_with("x.npy", b"\0" * 1000, 2**32 - 2), "claims too many bytes"),
        (_zip_with("x.npy", b"\0" * 1000, 999), "damaged"),
        (_zip_with("x.npy", b"\0" * 1000, 1001), "damaged"),
        (_zip_with("x.txt", b"text", 4), "no array"),
        (_zip_with("x.npy", b"text", 4), "not in NumPy's format"),
        (_zip_with("x.npy", b"\x93NUMPY\1\0\xff\xff....", 14), "cut off"),
        (_zip_with("x.npy", b"\x93NUMPY\2\0\xff\xff\xff\xff", 12), "cut off"),
    ],
)
def test_hostile_zips(probe: Path, content: bytes, says: str) -> None:
    (reply,) = ask(probe, [{"op": "npz_bytes", "hex": content.hex()}])
    assert says in reply["error"]


@pytest.mark.parametrize(
    ("header", "says"),
    [
        ("{'descr': '|O', 'fortran_order': False, 'shape': (1,)}", "the dtype '|O'"),
        ("{'descr': '>f4', 'fortran_order': False, 'shape': (1,)}", "the dtype '>f4'"),
        (
            "{'descr': '<f4', 'fortran_order': False, 'shape': (4611686018427387904, 4)}",
            "a dim that is no number",
        ),
        (
            "{'descr': '<f4', 'fortran_order': False, 'shape': (461168601842738790, 400)}",
            "smaller than its shape",
        ),
        ("{'descr': '<f4', 'fortran_order': False, 'shape': (-1,)}", "a dim that is no number"),
        ("{'descr': '<f4', 'fortran_order': False, 'shape': (2,)}", "smaller than its shape"),
        ("{'descr': '<f4', 'fortran_order': True, 'shape': (0, 99999999999)} ", None),
        ("{'descr': '<f4', 'shape': (" + "1, " * 33 + ")}", "too many axes"),
        ("{'descr': '<f4', 'fortran_order': False}", "no descr or no shape"),
        ("{'descr': '<f4', 'other': False}", "unknown key 'other'"),
        ("{'descr': '<f4", "without an end"),
        ("[1]", "no { where"),
    ],
)
def test_hostile_headers(probe: Path, header: str, says: str | None) -> None:
    array = b"\x93NUMPY\1\0" + struct.pack("<H", len(header)) + header.encode() + b"\0\0\0\0"
    content = _zip_with("x.npy", array, len(array))
    (reply,) = ask(probe, [{"op": "npz_bytes", "hex": content.hex()}])
    if says is None:
        assert reply["value"]["x"]["shape"] == [0, 99999999999]
    else:
        assert says in reply["error"]
