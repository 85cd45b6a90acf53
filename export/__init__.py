"""Hugging Face checkpoint → bundle. The only package that imports torch and transformers.

    from export import BuildOptions, build
    report = build(BuildOptions(model="demo/checkpoint", ratio=0.3))

or `python -m export.build --ratio 0.3`. `export.parity` compares a bundle with PyTorch; `export.info` counts
what images cost before anything is loaded.
"""

from __future__ import annotations

from export.errors import (
    CheckpointError,
    ExportError,
    OptionError,
    PromptError,
    TraceError,
)
from export.options import BuildOptions

__all__ = [
    "BuildOptions",
    "CheckpointError",
    "ExportError",
    "OptionError",
    "PromptError",
    "TraceError",
]
