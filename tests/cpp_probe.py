"""A probe of runtime/cpp/tests under way: a JSON object in, a JSON object out, line by line.

`tests.cpp_build.ask` is for all questions at once; this is for a program that keeps what it has loaded.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

__all__ = ["LineProbe"]

Own = TypeVar("Own", bound="LineProbe")


class LineProbe:
    """Ends with the `with` block, or by `close`."""

    def __init__(self, program: Path, *arguments: str, env: Mapping[str, str] | None = None) -> None:
        self.process = subprocess.Popen(
            [str(program), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=env,
            text=True,
            encoding="utf-8",
        )

    def ask(self, **command: Any) -> dict[str, Any]:
        """The answer to a command."""
        return self.answer(json.dumps(command))

    def answer(self, line: str) -> dict[str, Any]:
        """The answer to a line, for a probe whose commands are not JSON."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            raise RuntimeError(f"the probe ended with {self.process.wait()} at {line[:500]}")
        value: dict[str, Any] = json.loads(answer)
        return value

    def __enter__(self: Own) -> Own:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """End the program, which must end well."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        code = self.process.wait(timeout=20)
        self.process.stdout.close()
        assert code == 0, code
