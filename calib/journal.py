"""JSON lines that outlive a killed run: a first line with a key, then one line per result."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from calib.errors import StoreError

__all__ = ["Journal"]


class Journal:
    """Context manager around one file; lines are durable when `append` returns.

    A torn last line is dropped. A file of another key is replaced.

    Attributes:
        lines: what was there on opening.
    """

    def __init__(self, file: Path, key: str) -> None:
        """Raises StoreError: a line other than the last is damaged."""
        self._file, self._key = file, key
        self.lines: list[dict[str, Any]] = []
        self._kept = 0  # bytes of whole lines

    def __enter__(self) -> Journal:
        self._file.parent.mkdir(parents=True, exist_ok=True)
        self._read()
        self._stream = self._file.open("ab")
        self._stream.truncate(self._kept)
        if not self._kept:
            self.append({"key": self._key})
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stream.close()

    def append(self, line: Mapping[str, Any]) -> None:
        """Add one line."""
        self._stream.write(json.dumps(line).encode() + b"\n")
        self._stream.flush()
        os.fsync(self._stream.fileno())

    def _read(self) -> None:
        content = self._file.read_bytes() if self._file.exists() else b""
        whole = content[: content.rfind(b"\n") + 1]
        found = []
        for number, text in enumerate(whole.splitlines(), 1):
            try:
                line = json.loads(text)
            except ValueError:
                line = None
            if not isinstance(line, dict):
                raise StoreError(
                    f"line {number} of {self._file} is damaged: remove the file, or run with --fresh"
                )
            found.append(line)
        if found and found[0] == {"key": self._key}:
            self.lines, self._kept = found[1:], len(whole)
