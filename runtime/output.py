"""How commands end, and how files are written: whole or not at all."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable
from pathlib import Path

from runtime.errors import FopruError

__all__ = ["exit_code_of", "output_failed", "write_whole"]


def exit_code_of(run: Callable[[], int], *, interrupted: str = "") -> int:
    """Run a command: a deliberate error is one line on stderr and exit code 2, Ctrl-C is 130.

    `interrupted` is written to stderr on Ctrl-C, such as the newline that ends a half-written line.
    """
    try:
        return run()
    except FopruError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        sys.stderr.write(interrupted)
        return 130
    except OSError as error:
        return output_failed(error)


def write_whole(path: Path, content: bytes) -> None:
    """Write a file beside its place and move it there, so that what dies on the way leaves no half of it, not
    after a power failure either."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


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
