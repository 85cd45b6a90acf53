"""Image layouts by their name in `bundle.json`. A new one is a file here and a line in `LAYOUTS`."""

from __future__ import annotations

from runtime.layouts.anyres import AnyresLayout
from runtime.layouts.aspect import AspectLayout
from runtime.layouts.base import IMAGE_SLOT, NEWLINE, ImageLayout, ImagePlan, Unit
from runtime.layouts.native import NativeLayout
from runtime.layouts.single import SingleLayout
from runtime.layouts.split import SplitLayout

__all__ = ["IMAGE_SLOT", "LAYOUTS", "NEWLINE", "ImageLayout", "ImagePlan", "Unit"]

LAYOUTS: dict[str, type[ImageLayout]] = {
    layout.kind: layout for layout in (SingleLayout, AnyresLayout, SplitLayout, NativeLayout, AspectLayout)
}
