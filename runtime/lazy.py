"""Import of packages that only some stages need; a missing one is a sentence, not a traceback."""

from __future__ import annotations

import importlib
import os
from typing import Any

from runtime.errors import BackendError

__all__ = ["require"]

# The Linux builds of ONNX Runtime from 1.29 on report their use over the network, and keep a queue of that in
# the user's cache folder, unless they are told otherwise before they are loaded. A device that answers
# questions about pictures has no business there; whoever wants it sets the variable to 0.
_SILENT = {"onnxruntime": ("ORT_DISABLE_TELEMETRY", "1")}


def require(module: str, package: str, extra: str = "runtime") -> Any:
    """Import `module`, which the distribution `package` brings.

    Raises:
        BackendError: it is not installed (the message names the extra of this project that installs it), or
        it is and cannot be imported.
        KeyboardInterrupt: Ctrl-C came during the import, which extension modules turn into an ImportError.
    """
    if module.partition(".")[0] in _SILENT:
        os.environ.setdefault(*_SILENT[module.partition(".")[0]])
    try:
        return importlib.import_module(module)
    except ImportError as error:
        if _interrupted(error):
            raise KeyboardInterrupt from error
        missing = error.name if isinstance(error, ModuleNotFoundError) else None
        if missing is not None and f"{module}.".startswith(f"{missing}."):
            raise BackendError(
                f"this needs the package {package}, which is not installed: pip install 'fopru-edge[{extra}]'"
            ) from error
        raise BackendError(
            f"the package {package} is installed, but cannot be imported ({error}): "
            f"pip install --force-reinstall 'fopru-edge[{extra}]'"
        ) from error


def _interrupted(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, KeyboardInterrupt):
            return True
        error = error.__cause__ or error.__context__
    return False
