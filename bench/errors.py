"""Errors of the measurements.

BenchError
"""

from __future__ import annotations

__all__ = ["BenchError"]


class BenchError(Exception):
    """A measurement cannot be made as asked: the message says what to change."""
