"""Selectors that run inside the graph: one file each, one registry, in the order of `docs/selectors.md`."""

from __future__ import annotations

from fopru_graph.selectors.base import SelectContext, Selector
from fopru_graph.selectors.cls import Cls
from fopru_graph.selectors.none import NoSelection
from fopru_graph.selectors.random import Random
from fopru_graph.selectors.rank import Rank
from fopru_graph.selectors.row import Row
from fopru_graph.selectors.scope import Scope
from fopru_graph.selectors.uniform import Uniform
from fopru_graph.selectors.uniform_grid import UniformGrid
from fopru_graph.selectors.visionzip import VisionZip
from fopru_graph.selectors.vtc_cls import VtcCls

__all__ = ["SELECTORS", "SelectContext", "Selector"]

_ALL: tuple[Selector, ...] = (
    Rank(),
    Row(),
    Cls(),
    VtcCls(),
    VisionZip(),
    Scope(),
    NoSelection(),
    Random(),
    Uniform(),
    UniformGrid(),
)
SELECTORS: dict[str, Selector] = {selector.name: selector for selector in _ALL}
"""Selectors by name; `none`, `random`, `uniform` and `uniform_grid` are the baselines."""
