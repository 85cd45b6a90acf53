"""Side-by-side measurements on random-weight checkpoints of published configurations (`python -m bench`)."""

from __future__ import annotations

__all__: list[str] = []
