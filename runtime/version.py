"""The version of the project, read by the build system and written into every bundle."""

from __future__ import annotations

__all__ = ["__version__"]

__version__ = "0.1.0"
