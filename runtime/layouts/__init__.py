"""Image layouts by the name that `bundle.json` gives them. A new one is a file here and a line in `LAYOUTS`."""

from __future__ import annotations

from runtime.layouts.base import NEWLINE, ImageLayout, ImagePlan, Unit

__all__ = ["LAYOUTS", "NEWLINE", "ImageLayout", "ImagePlan", "Unit", "layout_class"]
