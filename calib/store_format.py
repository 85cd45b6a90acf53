"""How records lie in the Arrow stream of a store: one row each, a setting's fields among the record's own."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from calib.errors import CalibError, StoreError
from calib.record import Record
from calib.settings import Setting
from runtime.lazy import require

__all__ = ["FORMAT_VERSION", "read_batches", "records_from_batch", "records_to_batch", "store_schema"]

FORMAT_VERSION = "2"
VERSION, KEY, PARTS = b"fopru.calib.version", b"fopru.calib.key", b"fopru.calib.parts"
MARKER = b"\xff\xff\xff\xff"

# column -> Arrow type; a `?` may be null
SETTING_COLUMNS = {
    "selector": "string",
    "ratio": "double",
    "layer": "int32?",
    "aggregation": "string?",
    "precision": "string",
}
RECORD_COLUMNS = {
    "sample": "string",
    "before": "int32",
    "after": "int32",
    "kept": "list<int32>",
    "tokens": "list<int32>",
    "text": "string",
    "same_first": "bool",
    "same_answer": "bool",
    "divergence": "double",
    "correct": "bool?",
    "vision": "double",
    "prefill": "double",
    "ttft": "double",
    "kv_bytes": "int64",
    "error": "string?",
    "digest": "string",
}
WAY_OUT = "choose another --work folder, or start again with --fresh"


def store_schema(key: str, parts: Mapping[str, str]) -> Any:
    """The `pyarrow.Schema` of a store with this key."""
    pa = require("pyarrow", "pyarrow", "calib")
    columns = SETTING_COLUMNS | RECORD_COLUMNS
    metadata = {
        VERSION: FORMAT_VERSION,
        KEY: key,
        PARTS: json.dumps(dict(parts), sort_keys=True),
    }
    return pa.schema([_column(pa, name, kind) for name, kind in columns.items()], metadata=metadata)


def records_to_batch(records: Sequence[Record], schema: Any) -> Any:
    """A `pyarrow.RecordBatch` with a row per record."""
    pa = require("pyarrow", "pyarrow", "calib")
    rows = [
        {name: getattr(record.setting, name) for name in SETTING_COLUMNS}
        | {name: getattr(record, name) for name in RECORD_COLUMNS}
        for record in records
    ]
    return pa.RecordBatch.from_pylist(rows, schema=schema)


def records_from_batch(batch: Any) -> list[Record]:
    """The opposite of `records_to_batch`.

    Raises:
        CalibError, pyarrow.ArrowInvalid: the batch does not hold records.
    """
    batch.validate(full=True)
    lists = {name for name, kind in RECORD_COLUMNS.items() if kind.startswith("list")}
    found = []
    for row in batch.to_pylist():
        setting = Setting(**{name: row[name] for name in SETTING_COLUMNS})
        values: dict[str, Any] = {
            name: tuple(row[name]) if name in lists else row[name] for name in RECORD_COLUMNS
        }
        found.append(Record(setting=setting, **values))
    return found


def read_batches(content: bytes, schema: Any, path: Path) -> tuple[list[Record], int]:
    """The records of all whole batches, and how many bytes of `content` those are.

    Only a torn end may be missing: what an append leaves that was cut short, or a file system that did not
    get to writing what it had made room for.

    Raises:
        StoreError: no store, another key or format, or damage that is no torn end.
    """
    pa = require("pyarrow", "pyarrow", "calib")
    stream = pa.BufferReader(content)
    _check_schema(_read_schema(pa, stream, path), schema, path)
    records: list[Record] = []
    end = stream.tell()
    while end < len(content):
        try:
            batch = pa.ipc.read_record_batch(pa.ipc.read_message(stream), schema)
            records += records_from_batch(batch)
        except (pa.ArrowException, CalibError, OSError, EOFError, ValueError, TypeError) as error:
            if _is_torn(content[end:], error, stream.tell() == len(content)):
                break
            raise StoreError(f"{path} is damaged at byte {end} ({error}): {WAY_OUT}") from error
        end = stream.tell()
    return records, end


def _is_torn(tail: bytes, error: Exception, last: bool) -> bool:
    """Whether a batch that cannot be read is one that was not written to its end.

    A message is the marker FFFFFFFF, the size of its head as int32, the head, and the body; Arrow reports a
    body that is too short, alone of all damage, as OSError.
    """
    if not MARKER.startswith(tail[:4]):
        return not any(tail)
    head = int.from_bytes(tail[4:8], "little")
    return len(tail) < 8 + head or isinstance(error, OSError) or last


def _read_schema(pa: Any, stream: Any, path: Path) -> Any:
    try:
        return pa.ipc.read_schema(stream)
    except (pa.ArrowException, OSError, EOFError) as error:
        raise StoreError(
            f"{path} is not a file of results ({error}): choose another --work folder"
        ) from error


def _check_schema(found: Any, expected: Any, path: Path) -> None:
    metadata = found.metadata or {}
    if KEY not in metadata:
        raise StoreError(f"{path} is an Arrow file, but not one of results: choose another --work folder")
    version = metadata.get(VERSION, b"none").decode("utf-8", "replace")
    if version != FORMAT_VERSION:
        raise StoreError(f"{path} has format version {version}, expected {FORMAT_VERSION}: {WAY_OUT}")
    if metadata[KEY] != expected.metadata[KEY]:
        differs = _differences(metadata.get(PARTS), expected.metadata[PARTS])
        raise StoreError(f"{path} has results of another run{differs}, which cannot be compared: {WAY_OUT}")
    if not found.equals(expected):
        raise StoreError(f"{path} has other columns than this version writes: {WAY_OUT}")


def _differences(found: bytes | None, expected: bytes) -> str:
    try:
        theirs, ours = json.loads(found or b"{}"), json.loads(expected)
        names = sorted(name for name in theirs.keys() | ours.keys() if theirs.get(name) != ours.get(name))
    except (ValueError, AttributeError):
        return ""
    shown = ", ".join(_difference(name, theirs.get(name, "none"), ours.get(name, "none")) for name in names)
    return f" ({shown})" if shown else ""


def _difference(name: str, theirs: str, ours: str) -> str:
    if re.fullmatch("[0-9a-f]{64}", theirs) and re.fullmatch("[0-9a-f]{64}", ours):
        return f"another {name}"
    return f"{name} {theirs.strip()} there, {ours.strip()} here"


def _column(pa: Any, name: str, kind: str) -> Any:
    types = {
        "string": pa.string(),
        "double": pa.float64(),
        "bool": pa.bool_(),
        "int32": pa.int32(),
        "int64": pa.int64(),
        "list<int32>": pa.list_(pa.int32()),
    }
    return pa.field(name, types[kind.removesuffix("?")], nullable=kind.endswith("?"))
