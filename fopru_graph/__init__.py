"""Insert FoPru visual-token pruning into an exported vision encoder.

    from fopru_graph import PruneOptions, prune_file
    report = prune_file("vision_encoder.onnx", "vision_encoder_fopru.onnx", PruneOptions(strategy="rank"))

Knows ONNX only: no model family, no torch, no runtime.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fopru_graph.api import load_graph, prune, prune_file
    from fopru_graph.errors import (
        GraphError,
        GraphFileError,
        LocateError,
        OptionError,
        RewriteError,
        UnsupportedGraphError,
    )
    from fopru_graph.options import AGGREGATIONS, STRATEGIES, PruneOptions
    from fopru_graph.report import PassCount, PruneReport

__all__ = [
    "AGGREGATIONS",
    "STRATEGIES",
    "GraphError",
    "GraphFileError",
    "LocateError",
    "OptionError",
    "PassCount",
    "PruneOptions",
    "PruneReport",
    "RewriteError",
    "UnsupportedGraphError",
    "load_graph",
    "prune",
    "prune_file",
]

_HOMES = {
    "api": ("load_graph", "prune", "prune_file"),
    "errors": (
        "GraphError",
        "GraphFileError",
        "LocateError",
        "OptionError",
        "RewriteError",
        "UnsupportedGraphError",
    ),
    "options": ("AGGREGATIONS", "STRATEGIES", "PruneOptions"),
    "report": ("PassCount", "PruneReport"),
}


def __getattr__(name: str) -> Any:
    """Import at first use: `python -m fopru_graph` must start where a package is missing, to say which."""
    for home, members in _HOMES.items():
        if name in members:
            value = getattr(importlib.import_module(f"fopru_graph.{home}"), name)
            globals()[name] = value
            return value
    raise AttributeError(f"module 'fopru_graph' has no attribute {name!r}")
