"""Precisions of a bundle's graphs: fp32, fp16, and weights in 8 or 4 bits, each with what it costs.

    precisions = parse_precision("vision=fp32,decoder=int4")
    with WeightFile(folder / "decoder_model_merged_q4.onnx_data") as file:
        convert_graph(source, folder / "decoder_model_merged_q4.onnx", precisions.decoder, file)

`measure_loss` then says how far the logits are from those of PyTorch in float32.
"""

from __future__ import annotations

from export.precision.convert import Converted, convert_graph, convert_model
from export.precision.loss import LossCase, PrecisionLoss, measure_loss
from export.precision.names import (
    BLOCKS,
    PARTS,
    PRECISIONS,
    SUFFIXES,
    Precision,
    Precisions,
    data_file_of,
    graph_file_of,
    parse_precision,
)
from export.precision.weight_file import WeightFile

__all__ = [
    "BLOCKS",
    "PARTS",
    "PRECISIONS",
    "SUFFIXES",
    "Converted",
    "LossCase",
    "Precision",
    "PrecisionLoss",
    "Precisions",
    "WeightFile",
    "convert_graph",
    "convert_model",
    "data_file_of",
    "graph_file_of",
    "measure_loss",
    "parse_precision",
]
