"""Precisions of a bundle's graphs: fp32, fp16, bf16, and weights in 8 or 4 bits, each with what it costs.

This module is about names alone, and light. `bundle` converts the graphs of a bundle, `convert` one graph
(`weight_only`, `half`), `loss` says how far the logits are from those of PyTorch in float32.
"""

from __future__ import annotations

from calib.precision.names import (
    BLOCKS,
    CALIBRATED,
    FLOAT32,
    HALVES,
    PARTS,
    PRECISIONS,
    SUFFIXES,
    Precision,
    Precisions,
    data_file_of,
    graph_file_of,
    parse_precision,
    spoken,
)

__all__ = [
    "BLOCKS",
    "CALIBRATED",
    "FLOAT32",
    "HALVES",
    "PARTS",
    "PRECISIONS",
    "SUFFIXES",
    "Precision",
    "Precisions",
    "data_file_of",
    "graph_file_of",
    "parse_precision",
    "spoken",
]
