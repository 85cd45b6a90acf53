"""Choose ratio, strategy and precision from data; empty so far."""

from __future__ import annotations

__all__: list[str] = []
