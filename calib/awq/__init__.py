"""Scales of channels for weights in 4 bits: large activations get finer weights, and a norm's gain, or the
product in front, is divided by what a weight is multiplied by (AWQ, arXiv 2306.00978)."""

from __future__ import annotations

from calib.awq.scales import AwqScales, FoldScale
from calib.awq.search import DecoderSource, scale_decoder

__all__ = ["AwqScales", "DecoderSource", "FoldScale", "scale_decoder"]
