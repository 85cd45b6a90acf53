"""Time and peak memory of a child process."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.environment import ROOT

__all__ = ["ChildUsage", "run_measured"]

POLL_SECONDS = 0.01


@dataclass(frozen=True)
class ChildUsage:
    """What one child process used.

    `peak_rss_bytes` counts every resident page, those of memory-mapped weight files included, which the
    system can drop and read again; `peak_anonymous_bytes` counts only what it cannot (None where the system
    does not tell: not Linux).
    """

    returncode: int
    seconds: float
    peak_rss_bytes: int
    peak_anonymous_bytes: int | None
    stdout: str


def run_measured(command: Sequence[str]) -> ChildUsage:
    """Run `command` from the repository root to its end; its stderr is ours, so that progress is seen."""
    with tempfile.TemporaryFile("w+") as stdout:
        start = time.perf_counter()
        child = subprocess.Popen(command, cwd=ROOT, stdout=stdout)
        watch = _Watch(child.pid)
        watch.start()
        _, status, usage = os.wait4(child.pid, 0)
        seconds = time.perf_counter() - start
        watch.stop()
        child.returncode = os.waitstatus_to_exitcode(status)
        stdout.seek(0)
        # Linux starts a child's ru_maxrss at the parent's size at the fork, so its own VmHWM is the better
        # figure.
        unit = 1 if sys.platform == "darwin" else 1024
        peak = watch.peak_rss if watch.peak_rss else usage.ru_maxrss * unit
        return ChildUsage(child.returncode, seconds, peak, watch.peak_anonymous or None, stdout.read())


class _Watch(threading.Thread):
    """Reads the memory counters of one process until told to stop; peaks stay 0 where there is no /proc."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self._status = Path(f"/proc/{pid}/status")
        self._done = threading.Event()
        self.peak_rss = 0
        self.peak_anonymous = 0

    def run(self) -> None:
        while not self._done.wait(POLL_SECONDS):
            try:
                text = self._status.read_text()
            except OSError:  # the process ended between two looks, or this is not Linux
                return
            counters = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
            self.peak_rss = max(self.peak_rss, _bytes(counters.get("VmHWM")))
            self.peak_anonymous = max(self.peak_anonymous, _bytes(counters.get("RssAnon")))

    def stop(self) -> None:
        self._done.set()
        self.join()


def _bytes(counter: str | None) -> int:
    """`"  1234 kB"` in bytes; a process that has just ended has no counter."""
    return 0 if counter is None else int(counter.split()[0]) * 1024
