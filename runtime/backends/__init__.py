"""One file per inference engine; `runtime.backend` finds them by name."""

from __future__ import annotations

__all__: list[str] = []
