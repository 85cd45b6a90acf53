"""Ratio and precision together: the steps of `python -m calib.joint`."""

from __future__ import annotations

__all__: list[str] = []
