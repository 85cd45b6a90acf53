"""Import of packages that only some stages need; a missing one is a sentence, not a traceback."""

from __future__ import annotations

import importlib
from typing import Any

from runtime.errors import BackendError

__all__ = ["require"]


def require(module: str, package: str, extra: str = "runtime") -> Any:
    """Import `module`, which the distribution `package` brings.

    Raises:
        BackendError: it is not installed; the message names the extra of this project that installs it.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise BackendError(
            f"this needs the package {package}, which cannot be imported ({error}): "
            f"pip install 'fopru-edge[{extra}]'"
        ) from error
