"""Ranges of activations: what runs through a graph on the user's data, and how large it gets."""

from __future__ import annotations

from calib.ranges.collect import Keep, Ranges, collect_ranges
from calib.ranges.methods import METHODS, Collector, Method, parse_method
from calib.ranges.observing import ObservingSession

__all__ = [
    "METHODS",
    "Collector",
    "Keep",
    "Method",
    "ObservingSession",
    "Ranges",
    "collect_ranges",
    "parse_method",
]
