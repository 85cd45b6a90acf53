"""`python -m export.engine BUNDLE`: `python -m runtime.engine` under the name that goes with `export.build`.

It runs on the device: Python 3.10 and the runtime are enough, nothing of the exporter is imported.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from runtime import engine

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; see `runtime.engine`."""
    return engine.main(argv, prog="python -m export.engine")


if __name__ == "__main__":
    sys.exit(main())
