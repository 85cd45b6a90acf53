"""Selectors that run inside the graph: one file each, one registry."""

from __future__ import annotations

from fopru_graph.selectors.base import SelectContext, Selector
from fopru_graph.selectors.rank import Rank
from fopru_graph.selectors.row import Row

__all__ = ["SELECTORS", "SelectContext", "Selector"]

_ALL: tuple[Selector, ...] = (Rank(), Row())
SELECTORS: dict[str, Selector] = {selector.name: selector for selector in _ALL}
"""Selectors by name; `none`, `random` and `uniform` are the baselines."""
