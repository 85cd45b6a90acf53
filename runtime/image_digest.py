"""What tells a prepared image apart from others."""

from __future__ import annotations

import hashlib

import numpy as np

from runtime.backend import Array
from runtime.preprocess import PreparedImage

__all__ = ["image_digest"]


def image_digest(image: PreparedImage) -> bytes:
    """SHA-256 of what the encoder and the prompt are made from: pixel values and plan.

    The plan is in it because pixels do not tell it: tiles of one shape may show pictures of two sizes.
    """
    plan = image.plan
    digest = hashlib.sha256(
        repr((plan.units, plan.text, plan.runs, plan.spans, plan.overview, plan.mosaic)).encode()
    )
    arrays: dict[str, Array] = {
        "pixels": image.pixel_values,
        "sequence": plan.sequence,
        "offsets": plan.offsets,
    }
    if plan.lines is not None:
        arrays["lines"] = plan.lines
    arrays |= {f"input {name}": plan.inputs[name] for name in sorted(plan.inputs)}
    for name, array in arrays.items():
        digest.update(repr((name, array.shape, array.dtype.str)).encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.digest()
