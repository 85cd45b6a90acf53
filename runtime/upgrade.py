"""Manifests of older formats, rewritten as the current one before they are decoded.

What cannot be moved, because a key is missing or is no object, is left as it is: the decoder then names it.
"""

from __future__ import annotations

from typing import Any

__all__ = ["upgraded"]

_GEOMETRY = ("resize", "crop", "pad_to_square")


def upgraded(data: dict[str, Any], version: int) -> dict[str, Any]:
    """The object of a `bundle.json` of format `version` in the form of the newest; `data` stays as it is.

    Format 3 only adds keys (decoder.caches, decoder.cache_dtype), whose defaults are what format 2 means.
    """
    newest = _from_1(data) if version == 1 else data
    return {**newest, "format_version": 3} if version < 3 else newest


def _from_1(data: dict[str, Any]) -> dict[str, Any]:
    """Format 2 joins `vision` and the geometry of `preprocess` as `layout`."""
    vision, preprocess = data.get("vision"), data.get("preprocess")
    if not (isinstance(vision, dict) and isinstance(preprocess, dict)):
        return data
    layout = {"kind": "single"} | {name: value for name, value in vision.items() if name != "image_size"}
    layout |= {name: preprocess[name] for name in _GEOMETRY if name in preprocess}
    rest = {name: value for name, value in data.items() if name != "vision"}
    scale = {name: value for name, value in preprocess.items() if name not in _GEOMETRY}
    return rest | {"preprocess": scale, "layout": layout}
