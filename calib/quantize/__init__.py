"""Precision from data, step by step: ranges, what stays float, conversion, what it costs, the bundle.

`python -m calib.quantize` is the command.
"""

from __future__ import annotations

__all__: list[str] = []
