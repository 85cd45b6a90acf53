"""Insert FoPru visual-token pruning into an exported vision encoder.

    from fopru_graph import PruneOptions, prune_file
    report = prune_file("vision_encoder.onnx", "vision_encoder_fopru.onnx", PruneOptions(strategy="rank"))

Knows ONNX only: no model family, no torch, no runtime.
"""

from __future__ import annotations

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
