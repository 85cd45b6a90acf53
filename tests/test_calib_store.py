"""The store: what is appended is there again, whatever the end; what is not ours is refused."""

from __future__ import annotations

import errno
import os
import re
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from calib import store as store_module
from calib import store_format
from calib.errors import StoreError
from calib.record import Record
from calib.settings import REFERENCE, Setting
from calib.store import ResultStore, store_key

pa = pytest.importorskip("pyarrow")

ROOT = Path(__file__).resolve().parent.parent
ONE = Record(
    "photo.jpg#2",
    Setting("cls", 0.126, layer=3, aggregation="cls", precision="int8"),
    before=576,
    after=73,
    kept=(0, 5, 575),
    tokens=(1, 32000),
    text="a “cat” ×\n",
    same_first=True,
    same_answer=False,
    divergence=1 / 3,
    correct=False,
    vision=0.1,
    prefill=0.2,
    ttft=0.30000000000000004,
    kv_bytes=2**40,
    digest="d1",
)
TWO = Record("rows.jsonl:17", REFERENCE, correct=None)
THREE = Record("rows.jsonl:18", REFERENCE, error="there is no image file: check the path")
WAY_OUT = re.escape("choose another --work folder, or start again with --fresh")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "work" / "results.arrow"


def filled(path: Path, *appends: list[Record]) -> list[int]:
    """A store with these appends; the size of the file after each."""
    sizes = []
    with ResultStore(path, "key") as store:
        for records in appends:
            store.append(records)
            sizes.append(path.stat().st_size)
    return sizes


def opened(path: Path) -> tuple[list[Record], list[str]]:
    with ResultStore(path, "key") as store:
        return store.records(), store.notes


def test_records_come_back_exactly_in_order(path: Path) -> None:
    filled(path, [ONE, TWO], [THREE])
    assert opened(path) == ([ONE, TWO, THREE], [])


def test_an_append_says_what_will_be_read(path: Path) -> None:
    found: Any = Record("a", Setting("rank", 0.5), tokens=tuple(np.array([7, 8])), ttft=np.float64(0.5))
    with ResultStore(path, "key") as store:
        assert store.append([]) == []
        written = store.append([found])
        assert [type(token) for token in written[0].tokens] == [int, int]
        assert written == store.records() == [Record("a", Setting("rank", 0.5), tokens=(7, 8), ttft=0.5)]


@given(
    st.builds(
        Record,
        st.text(),
        st.builds(
            Setting, st.sampled_from(["rank", "row"]), st.floats(1e-300, 1.0), st.none() | st.integers(0, 99)
        ),
        kept=st.lists(st.integers(0, 2**31 - 1)).map(tuple),
        text=st.text(),
        divergence=st.floats(allow_nan=False),
        correct=st.none() | st.booleans(),
        error=st.none() | st.text(),
    )
)
def test_any_record_survives_the_columns(record: Record) -> None:
    batch = store_format.records_to_batch([record], store_format.store_schema("key", {}))
    assert store_format.records_from_batch(batch) == [record]


def test_every_field_has_a_column() -> None:
    record = {field.name for field in fields(Record)} - {"setting"}
    setting = {field.name for field in fields(Setting)}
    names = store_format.store_schema("key", {}).names
    assert len(names) == len(set(names))
    assert set(names) == record | setting


def test_any_arrow_library_reads_it(path: Path) -> None:
    filled(path, [ONE], [TWO])
    table = pa.ipc.open_stream(pa.OSFile(str(path))).read_all()
    assert table.column("sample").to_pylist() == ["photo.jpg#2", "rows.jsonl:17"]
    assert table.column("ratio").to_pylist() == [0.126, 1.0]
    assert table.schema.metadata[b"fopru.calib.key"] == b"key"


def test_the_documented_way_to_read_it_works(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pandas")
    failed, again = replace(TWO, error="no memory", digest="d2"), replace(TWO, ttft=0.25, digest="d2")
    filled(path, [ONE, failed], [again])
    monkeypatch.chdir(path.parent)
    lines = (store_module.__doc__ or "").splitlines()
    found: dict[str, Any] = {}
    exec("\n".join(line.strip() for line in lines if line.startswith("    ")), found)
    assert found["good"][["digest", "ttft"]].values.tolist() == [["d1", ONE.ttft], ["d2", 0.25]]
    assert found["good"]["kept"].map(list).tolist() == [[0, 5, 575], []]
    assert found["pyarrow"].parquet.read_table("results.parquet").equals(found["table"])


def test_it_knows_what_is_of_an_earlier_run(path: Path) -> None:
    filled(path, [ONE, TWO])
    with ResultStore(path, "key") as store:
        store.append([THREE])
        assert store.records()[store.earlier :] == [THREE]


def test_a_torn_append_is_dropped_wherever_it_was_torn(path: Path) -> None:
    first, second = filled(path, [ONE, TWO], [THREE])
    whole = path.read_bytes()
    for size in {*range(first, first + 20), *range(first, second, 5), second - 1}:
        path.write_bytes(whole[:size])
        records, notes = opened(path)
        assert records == [ONE, TWO], size
        assert path.stat().st_size == first, size
        if size == first:
            assert notes == []
        else:
            assert notes == [
                f"the last {size - first} bytes of {path} were an append that was cut short, and were "
                "dropped; records kept: 2"
            ]


def test_work_goes_on_behind_a_torn_append(path: Path) -> None:
    first, second = filled(path, [ONE], [TWO])
    os.truncate(path, second - 5)
    filled(path, [THREE])
    assert opened(path) == ([ONE, THREE], [])
    assert first < path.stat().st_size


@pytest.mark.parametrize("zeros", [1, 7, 8, 9, 500])
def test_room_that_was_never_written_is_dropped(path: Path, zeros: int) -> None:
    (size,) = filled(path, [ONE])
    with path.open("ab") as file:
        file.write(bytes(zeros))
    records, notes = opened(path)
    assert records == [ONE]
    assert len(notes) == 1
    assert path.stat().st_size == size


def test_a_last_append_with_a_body_of_zeros_is_dropped(path: Path) -> None:
    first, second = filled(path, [ONE], [TWO])
    whole = bytearray(path.read_bytes())
    half = (first + second) // 2
    whole[half:] = bytes(len(whole) - half)
    path.write_bytes(whole)
    records, notes = opened(path)
    assert records == [ONE]
    assert len(notes) == 1


def test_a_torn_beginning_is_begun_again(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", bool)  # not a hundred times to the disk
    filled(path)
    whole = path.read_bytes()
    for size in (*range(0, len(whole), 17), len(whole) - 1):
        path.write_bytes(whole[:size])
        assert opened(path) == ([], []), size
        assert path.read_bytes() == whole, size


@pytest.mark.parametrize("place", ["marker", "content"])
def test_damage_before_the_end_is_refused_and_stays(path: Path, place: str) -> None:
    first, second, _ = filled(path, [ONE], [TWO], [THREE])
    whole = bytearray(path.read_bytes())
    if place == "marker":
        whole[first] ^= 0xFF
    else:
        where = whole.index(b"none", first, second)  # a selector
        whole[where : where + 4] = b"nine"
    path.write_bytes(whole)
    with pytest.raises(StoreError, match=rf"results.arrow is damaged at byte {first} \(.*\): {WAY_OUT}$"):
        ResultStore(path, "key")
    assert path.read_bytes() == whole


def test_another_key_is_refused(path: Path) -> None:
    filled(path, [ONE])
    with pytest.raises(
        StoreError, match=rf"results.arrow has results of another run, which cannot be compared: {WAY_OUT}$"
    ):
        ResultStore(path, "another")
    assert opened(path) == ([ONE], [])


def test_a_refusal_says_what_differs(path: Path) -> None:
    parts = {"bundle": "aa", "seed": "0", "data": "dd"}
    ResultStore(path, store_key(parts), parts).close()
    ResultStore(path, store_key(parts), dict(reversed(parts.items()))).close()
    other = {"bundle": "aa", "seed": "1", "backend": "b"}
    with pytest.raises(
        StoreError,
        match=r"results of another run \(backend none there, b here, data dd there, none here, seed 0 there, "
        r"1 here\), which cannot be compared",
    ):
        ResultStore(path, store_key(other), other)


def test_a_refusal_shows_no_hashes(path: Path) -> None:
    parts, other = {"bundle": "a" * 64, "backend": "b 1 "}, {"bundle": "0" * 64, "backend": "b 2"}
    ResultStore(path, store_key(parts), parts).close()
    with pytest.raises(StoreError, match=r"of another run \(backend b 1 there, b 2 here, another bundle\), "):
        ResultStore(path, store_key(other), other)


def test_unreadable_parts_do_not_hide_the_refusal(path: Path) -> None:
    schema = store_format.store_schema("one", {})
    path.parent.mkdir()
    for text in (b"no json", b"[]"):
        path.write_bytes(
            schema.with_metadata(schema.metadata | {b"fopru.calib.parts": text}).serialize().to_pybytes()
        )
        with pytest.raises(StoreError, match="results of another run, which"):
            ResultStore(path, "two")


def test_another_version_and_other_columns_are_refused(path: Path) -> None:
    schema = store_format.store_schema("key", {})
    path.parent.mkdir()
    for version in ("1", "3"):  # the one before this, and one to come
        other = schema.with_metadata(schema.metadata | {b"fopru.calib.version": version.encode()})
        path.write_bytes(other.serialize().to_pybytes())
        with pytest.raises(StoreError, match=rf"has format version {version}, expected 2: {WAY_OUT}$"):
            ResultStore(path, "key")
    path.write_bytes(schema.remove(0).serialize().to_pybytes())
    with pytest.raises(StoreError, match=rf"has other columns than this version writes: {WAY_OUT}$"):
        ResultStore(path, "key")


def test_other_files_are_refused_and_stay(path: Path) -> None:
    path.parent.mkdir()
    for content in (b"hello", b"x" * 5000, bytes(100)):
        path.write_bytes(content)
        with pytest.raises(
            StoreError, match=r"is not a file of results \(.*\): choose another --work folder$"
        ):
            ResultStore(path, "key")
        assert path.read_bytes() == content
    path.write_bytes(pa.schema([("a", pa.int8())]).serialize().to_pybytes())
    with pytest.raises(
        StoreError, match="is an Arrow file, but not one of results: choose another --work folder"
    ):
        ResultStore(path, "key")


def test_a_path_that_cannot_be_opened(tmp_path: Path) -> None:
    with pytest.raises(
        StoreError, match=r"cannot be opened \(Is a directory\): choose another --work folder$"
    ):
        ResultStore(tmp_path, "key")
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match=r"cannot be opened \(.*\): choose another --work folder$"):
        ResultStore(tmp_path / "file" / "results.arrow", "key")


def test_one_writer_at_a_time(path: Path) -> None:
    with ResultStore(path, "key"):
        with pytest.raises(
            StoreError, match=r"another run writes to .*: wait for it, or choose another --work"
        ):
            ResultStore(path, "key")
        program = (
            "import sys, pathlib, calib.store; calib.store.ResultStore(pathlib.Path(sys.argv[1]), 'key')"
        )
        command = [sys.executable, "-c", program, str(path)]
        other = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        assert "StoreError: another run writes to" in other.stderr
    ResultStore(path, "key").close()


def test_fresh_forgets_and_takes_nothing_from_a_run_that_writes(path: Path) -> None:
    with ResultStore(path, "key") as store:
        store.append([TWO])
        with pytest.raises(StoreError, match="another run writes to"):
            ResultStore(path, "other", fresh=True)
    with ResultStore(path, "key") as store:
        assert store.records() == [TWO]
    with ResultStore(path, "other", fresh=True) as store:  # also what could not be compared
        assert (store.records(), store.earlier, store.notes) == ([], 0, [])
    path.write_bytes(b"no store at all")
    with ResultStore(path, "key", fresh=True) as store:
        assert store.records() == []


def test_a_full_disk_leaves_the_store_as_it_was(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (size,) = filled(path, [ONE])

    def no_room(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with ResultStore(path, "key") as store:
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", no_room)
            with pytest.raises(
                StoreError,
                match=r"results.arrow cannot be written \(No space left on device\): make room and run "
                "again, what it has is kept$",
            ):
                store.append([TWO])
        assert path.stat().st_size == size
        store.append([THREE])  # there is room again
    assert opened(path) == ([ONE, THREE], [])


def test_ctrl_c_in_an_append_leaves_the_store_as_it_was(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(descriptor: int) -> None:
        raise KeyboardInterrupt

    with ResultStore(path, "key") as store:
        store.append([ONE])
        monkeypatch.setattr(os, "fsync", interrupt)
        with pytest.raises(KeyboardInterrupt):
            store.append([TWO])
    assert opened(path) == ([ONE], [])


def test_a_short_write_is_continued(path: Path) -> None:
    class Short:
        def __init__(self, file: Any) -> None:
            self.file = file

        def write(self, data: memoryview) -> int:
            return int(self.file.write(data[:100]))

        def __getattr__(self, name: str) -> Any:
            return getattr(self.file, name)

    with ResultStore(path, "key") as store:
        store._file = Short(store._file)  # type: ignore[assignment]
        store.append([ONE, TWO])
    assert opened(path) == ([ONE, TWO], [])


def test_without_pyarrow_a_sentence_says_so(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from runtime.errors import BackendError

    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(BackendError, match=r"pip install 'fopru-edge\[calib\]'"):
        ResultStore(path, "key")
    assert not path.exists()
