"""Many names in one sentence."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["some_of"]

_SHOWN = 3


def some_of(names: Sequence[str]) -> str:
    """`a, b, c and 2 more`."""
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
