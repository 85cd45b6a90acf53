"""One sample under many settings: `runner.SampleRunner` is what a worker owns."""

from __future__ import annotations

__all__: list[str] = []
