"""The default ratio of a bundle, written into its `bundle.json` and nowhere else.

Golden tensors, graphs and their hashes stay: they hold for every ratio, and golden tensors carry their own.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

from calib.errors import OptionError, RunError
from runtime.bundle import MANIFEST_FILE
from runtime.manifest import Manifest, PruningInfo
from runtime.output import write_whole

__all__ = ["check_writable", "default_text", "with_default", "write_default"]

_VALUE = r'("{key}"\s*:\s*)(null|-?[0-9][0-9.eE+-]*)'


def default_text(pruning: PruningInfo) -> str:
    """What a request gets that names neither: a ratio, or a number of tokens."""
    return str(pruning.default_tokens) if pruning.default_ratio is None else f"{pruning.default_ratio:g}"


def check_writable(bundle: Path) -> None:
    """Whether `write_default` will be able to: asked before hours of measuring.

    Raises:
        OptionError: the folder or its `bundle.json` may not be written.
        RunError: `bundle.json` is not one that the exporter wrote.
    """
    with_default((bundle / MANIFEST_FILE).read_bytes().decode(), 0.5)
    for path in (bundle, bundle / MANIFEST_FILE):
        if not os.access(path, os.W_OK):
            raise OptionError(
                f"{path} may not be written, so the ratio cannot become the bundle's default: allow writing, "
                "or give --dry-run to choose without writing"
            )


def write_default(bundle: Path, ratio: float) -> bool:
    """Make `ratio` what a request gets that names none; whether that changed anything.

    The file is replaced whole or not at all, and no other byte of it changes.

    Raises:
        RunError: `bundle.json` is not one that the exporter wrote, or cannot be written.
    """
    path = (bundle / MANIFEST_FILE).resolve()  # a link to a manifest stays a link
    try:
        before = path.read_bytes().decode()
        after = with_default(before, ratio)
        if after == before:
            return False
        mode = path.stat().st_mode
        write_whole(path, after.encode())
        path.chmod(mode)
    except (OSError, UnicodeDecodeError) as error:
        raise RunError(
            f"{path} cannot be changed ({error}), and is as it was: allow writing and run again (what was "
            f"measured is kept), or give --ratio {ratio:g} with each request"
        ) from error
    return True


def with_default(text: str, ratio: float) -> str:
    """`bundle.json` with another `default_ratio` and no `default_tokens`, else byte for byte the same.

    Raises:
        RunError: the text does not have each of the two keys where a manifest has them.
    """
    wanted = json.loads(text)
    for key, value in (("default_ratio", ratio), ("default_tokens", None)):
        wanted["pruning"][key] = value
        text = _replaced(text, key, value, wanted)
    Manifest.from_json(text)
    return text


def _replaced(text: str, key: str, value: float | None, wanted: dict[str, Any]) -> str:
    """The one replacement of a value that gives `wanted`: the same words may also stand inside a string."""
    for found in re.finditer(_VALUE.format(key=key), text):
        changed = text[: found.start(2)] + json.dumps(value) + text[found.end() :]
        if _reads_as(changed, wanted):
            return changed
    raise RunError(
        f"bundle.json has no pruning.{key} that could be changed: build the bundle again with "
        "`python -m export.build`"
    )


def _reads_as(text: str, wanted: dict[str, Any]) -> bool:
    try:
        return bool(json.loads(text) == wanted)
    except ValueError:
        return False
