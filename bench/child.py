"""A process that answers lines of JSON: engines and models run in one of their own, so that thread pools and
memory of one are not another's.

`Child` is the side that asks, `serve` the side that answers.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from bench.environment import ROOT
from bench.errors import BenchError

__all__ = ["Child", "memory_counters", "serve"]

Order = dict[str, Any]


class Child:
    """A process started with `python -m`, ready when entered; a context manager that ends it.

    Raises:
        BenchError: on entry and on every order, what the process says is wrong.
    """

    def __init__(self, command: Sequence[str], log: Path) -> None:
        """Start `python -m COMMAND`; what it prints to standard error goes to `log`."""
        log.parent.mkdir(parents=True, exist_ok=True)
        self._log = log
        with log.open("w") as stream:
            self._process = subprocess.Popen(
                [sys.executable, "-m", *command],
                cwd=ROOT,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stream,
                text=True,
            )

    def __enter__(self) -> Child:
        try:
            self._read()
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def order(self, content: Mapping[str, Any]) -> Order:
        """Send one order and wait for its answer."""
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # it has ended: reading says so
            print(json.dumps(content), file=self._process.stdin, flush=True)
        return self._read()

    def _read(self) -> Order:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise BenchError(f"it ended with status {self._process.wait()}: see {self._log}")
        try:
            found: Order = json.loads(line)
        except json.JSONDecodeError as error:  # it ended in the middle of a line
            raise BenchError(f"it answered {line[:80]!r}, which is no JSON: see {self._log}") from error
        if "error" in found:
            raise BenchError(found["error"])
        return found

    def _end(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        for stream in (self._process.stdin, self._process.stdout):
            with suppress(BrokenPipeError):  # closing sends again what a process that has ended did not take
                stream.close()
        try:
            self._process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def serve(open_engine: Callable[[], Callable[[Order], Order] | None]) -> int:
    """Open something and obey orders until standard input ends; returns the exit status.

    None instead of what obeys: the work is done, and nothing is waited for.
    Whatever is thrown becomes an answer with the key `error`: to the asking side it is a row of a table.
    """
    answers = _own_stdout()
    try:
        obey = open_engine()
    except Exception as error:
        _tell(answers, {"error": _one_line(error)})
        return 1
    _tell(answers, {})
    if obey is None:
        return 0
    for line in sys.stdin:
        try:
            _tell(answers, obey(json.loads(line)))
        except Exception as error:
            _tell(answers, {"error": _one_line(error)})
    return 0


def memory_counters() -> dict[str, int]:
    """Bytes of this process: the most it had resident, and what is anonymous or pages of files now; without
    what the system does not tell (only Linux does, and not in every container)."""
    status = Path("/proc/self/status")
    if not status.is_file():
        return {}
    lines = dict(line.split(":", 1) for line in status.read_text().splitlines() if ":" in line)
    counters = {"peak_rss": "VmHWM", "anonymous": "RssAnon", "file": "RssFile"}
    return {name: int(lines[key].split()[0]) * 1024 for name, key in counters.items() if key in lines}


def _own_stdout() -> TextIO:
    """A stream for answers alone: what libraries print to standard output goes to standard error."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return answers


def _tell(answers: TextIO, content: Order) -> None:
    print(json.dumps(content), file=answers, flush=True)


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}"[:600]
