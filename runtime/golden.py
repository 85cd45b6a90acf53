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

__all__ = ["GOLDEN_RECORD", "GOLDEN_TENSORS", "Golden", "load_golden"]

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


def load_golden(bundle: Bundle) -> tuple[Golden, dict[str, Array]]:
    """Read record and tensors.

    Raises:
        BundleError: the bundle has none, or they are damaged.
    """
    record_file, tensor_file = bundle.file(GOLDEN_RECORD), bundle.file(GOLDEN_TENSORS)
    try:
        record: Golden = decode(Golden, json.loads(record_file.read_text(encoding="utf-8")), GOLDEN_RECORD)
        with np.load(tensor_file, allow_pickle=False) as arrays:
            tensors: dict[str, Array] = {name: arrays[name] for name in arrays.files}
    except (OSError, ValueError, RecursionError, EOFError, zipfile.BadZipFile) as error:
        raise BundleError(
            f"the golden tensors of {bundle.path} cannot be read ({error}): copy the bundle again"
        ) from error
    return record, tensors
