"""What a command does when nobody takes its output: the reader left, or the disk is full."""

from __future__ import annotations

import contextlib
import os
import sys

__all__ = ["output_failed"]


def output_failed(error: OSError) -> int:
    """Say so on stderr and return the exit code: 141 where the reader left (in silence), else 2.

    Python flushes stdout once more at exit, which would fail again and print a traceback, so it goes nowhere
    from here on.
    """
    with contextlib.suppress(OSError, ValueError):  # a stdout without a file behind it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    if isinstance(error, BrokenPipeError):
        return 141
    print(f"error: the output cannot be written ({error}): free some space, or redirect it", file=sys.stderr)
    return 2
