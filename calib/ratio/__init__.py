"""How low can the ratio go? The steps of `python -m calib.ratio`: options, calibrate (which searches, scores
and explains), output."""

from __future__ import annotations

__all__: list[str] = []
