"""The golden tensors of a bundle: one request, and what the reference made of it stage by stage."""

from __future__ import annotations

import json
import zipfile
from dataclasses import dataclass

import numpy as np

from runtime.backend import Array
from runtime.bundle import Bundle
from runtime.decode import decode
from runtime.errors import BundleError

__all__ = ["GOLDEN_RECORD", "GOLDEN_TENSORS", "Golden", "load_golden", "load_record"]

GOLDEN_RECORD = "golden/golden.json"
GOLDEN_TENSORS = "golden/golden.npz"


@dataclass(frozen=True)
class Golden:
    """`golden/golden.json`: the request, `images` as paths inside the bundle, and who made the reference."""

    prompt: str
    images: tuple[str, ...]
    num_keep: int
    ratio: float | None
    strategy: str
    new_tokens: int
    reference: str


def load_record(bundle: Bundle) -> Golden:
    """Read the request alone.

    Raises:
        BundleError: the bundle has none, or it is damaged.
    """
    file = bundle.file(GOLDEN_RECORD)
    try:
        record: Golden = decode(Golden, json.loads(file.read_text(encoding="utf-8")), GOLDEN_RECORD)
    except (OSError, ValueError, RecursionError) as error:
        raise _damaged(bundle, error) from error
    return record


def load_golden(bundle: Bundle) -> tuple[Golden, dict[str, Array]]:
    """Read record and tensors.

    Raises:
        BundleError: the bundle has none, or they are damaged.
    """
    record, file = load_record(bundle), bundle.file(GOLDEN_TENSORS)
    try:
        with np.load(file, allow_pickle=False) as arrays:
            tensors: dict[str, Array] = {name: arrays[name] for name in arrays.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise _damaged(bundle, error) from error
    return record, tensors


def _damaged(bundle: Bundle, error: Exception) -> BundleError:
    return BundleError(f"the golden tensors of {bundle.path} cannot be read ({error}): copy the bundle again")
