"""Results on disk, durable record by record: an Arrow IPC stream that grows by one record batch per sample.

A row is a `Record`: its fields are columns, those of its setting (`selector`, `ratio`, `layer`,
`aggregation`, `precision`) among them. Nothing is ever taken out: samples that have left the data keep their
rows, and what failed once and was measured again has several, of which the last counts. `digest` says which
sample a row is about; `sample` is what it was called when it was measured. Any Arrow library reads it:

    import pyarrow as pa
    table = pa.ipc.open_stream(pa.OSFile("results.arrow")).read_all()

    import pyarrow.parquet
    pyarrow.parquet.write_table(table, "results.parquet")

    frame = table.to_pandas()
    key = ["digest", "selector", "ratio", "layer", "aggregation", "precision"]
    frame = frame.drop_duplicates(key, keep="last")       # one row per sample and setting
    good = frame[frame.error.isna()]
    good.groupby(["selector", "ratio"])[["same_first", "same_answer", "ttft"]].mean()

Times are in seconds, `kv_bytes` in bytes, `kept` and `tokens` lists of numbers, `divergence` in nats.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from calib.errors import StoreError
from calib.locked import open_locked
from calib.record import Record
from calib.store_format import read_batches, records_from_batch, records_to_batch, store_schema

__all__ = ["ResultStore", "store_key"]


def store_key(parts: Mapping[str, str]) -> str:
    """SHA-256 of what makes results comparable, by name: `{"bundle": its hash, "seed": "0", ...}`."""
    return hashlib.sha256(json.dumps(dict(parts), sort_keys=True).encode()).hexdigest()


class ResultStore:
    """The records of one experiment in one file, which one process writes at a time.

    Attributes:
        path: the file.
        notes: sentences about what was found when it was opened, as a torn end.
        earlier: how many records it had then; those behind are of this run.
    """

    def __init__(
        self, path: Path, key: str, parts: Mapping[str, str] | None = None, *, fresh: bool = False
    ) -> None:
        """Open the file for reading and appending, or make it.

        An append that was cut short, by `kill -9` or a power failure, is cut off, and `notes` says so.

        Args:
            path: where. Folders above it are made.
            key: what makes results comparable; `store_key` makes one.
            parts: what the key was made from, so that a refusal can say what differs.
            fresh: forget what it holds, unless another process writes to it.

        Raises:
            StoreError: another process writes to it, it holds results of another key or format, it is damaged
                before its end, or it is no store.
            runtime.BackendError: pyarrow is not installed.
        """
        self.path = path
        self.notes: list[str] = []
        self._schema = store_schema(key, parts or {})
        self._records: list[Record] = []
        self._file = open_locked(path)
        try:
            if fresh:
                self._file.truncate(0)
            self._end = self._load()
            self.earlier = len(self._records)
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> ResultStore:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let others write to it."""
        self._file.close()

    def records(self) -> list[Record]:
        """All records, in the order in which they were appended."""
        return list(self._records)

    def append(self, records: Sequence[Record]) -> list[Record]:
        """Write records behind the others; they survive a crash once this returns.

        Returns:
            the records as they will be read again: numbers of NumPy, for one, have become Python's.

        Raises:
            StoreError: it cannot be written, as on a full disk; it is then as it was before.
        """
        if not records:
            return []
        batch = records_to_batch(records, self._schema)
        self._write(batch.serialize())
        written = records_from_batch(batch)
        self._records += written
        return written

    def _load(self) -> int:
        """Read all whole batches; the number of bytes that are good."""
        content = self._file.read()
        header = self._schema.serialize().to_pybytes()
        if not content or (len(content) < len(header) and header.startswith(content)):
            self._end = 0
            self._file.truncate(0)
            self._write(header)
            _flush_folder(self.path.parent)
            return self._end
        self._records, end = read_batches(content, self._schema, self.path)
        if end < len(content):
            self._file.truncate(end)
            self.notes.append(
                f"the last {len(content) - end} bytes of {self.path} were an append that was cut short, and "
                f"were dropped; records kept: {len(self._records)}"
            )
        return end

    def _write(self, message: Any) -> None:
        try:
            self._file.seek(self._end)
            rest = memoryview(message)
            while rest:  # the system may take less than all
                rest = rest[self._file.write(rest) :]
            os.fsync(self._file.fileno())
        except BaseException as error:
            # Half a batch in the middle of the file would cost everything behind it.
            with contextlib.suppress(OSError):
                self._file.truncate(self._end)
            if isinstance(error, OSError):
                raise StoreError(
                    f"{self.path} cannot be written ({error.strerror}): make room and run again, what it has "
                    "is kept"
                ) from error
            raise
        self._end += len(message)


def _flush_folder(folder: Path) -> None:
    """Make the file's name durable, not only its content."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
