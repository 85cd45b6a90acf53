"""Choose ratio, strategy and precision from data. Empty so far: the command line comes with its own change."""

from __future__ import annotations

__all__: list[str] = []
