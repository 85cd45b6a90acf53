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
    ratio: float | None
    tokens: int | None
    strategy: str
    new_tokens: int
    reference: str

    def __post_init__(self) -> None:
        if not self.images:
            raise BundleError(
                f"{GOLDEN_RECORD}: images is empty, expected at least one: "
                "rebuild the bundle with `python -m export.build`"
            )


def load_record(bundle: Bundle) -> Golden:
    """Read the request alone.

    Raises:
        BundleError: the bundle has none, or it is damaged.
    """
    file = bundle.file(GOLDEN_RECORD)
    try:
        record: Golden = decode(
            Golden, _record_of_2(json.loads(file.read_text(encoding="utf-8"))), GOLDEN_RECORD
        )
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
    return record, _tensors_of_2(tensors) if "kept_counts" not in tensors else tensors


def _record_of_2(data: object) -> object:
    """Bundle format 1 named K instead of a budget."""
    if not isinstance(data, dict) or "num_keep" not in data:
        return data
    rest = {name: value for name, value in data.items() if name != "num_keep"}
    return rest | {"tokens": data["num_keep"] if data.get("ratio") is None else None}


def _tensors_of_2(tensors: dict[str, Array]) -> dict[str, Array]:
    """Bundle format 1 had one axis more, for images of one size, and positions 0, 1, 2, …"""
    kept, ids = tensors.get("kept_indices"), tensors.get("input_ids")
    if kept is None or ids is None or kept.ndim != 2:
        return tensors
    flat: dict[str, Array] = {
        name: tensors[name].reshape(-1) for name in ("kept_indices", "token_scores") if name in tensors
    }
    rows = ("pixel_values", "image_features", "pruned_features")
    flat |= {name: tensors[name].reshape(-1, tensors[name].shape[-1]) for name in rows if name in tensors}
    flat["kept_counts"] = np.full(len(kept), kept.shape[1], np.int64)
    flat["position_ids"] = np.arange(ids.shape[1], dtype=np.int64)[None]
    return tensors | flat


def _damaged(bundle: Bundle, error: Exception) -> BundleError:
    return BundleError(f"the golden tensors of {bundle.path} cannot be read ({error}): copy the bundle again")
