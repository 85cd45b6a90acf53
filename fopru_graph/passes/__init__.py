"""The rewrite, one pass per file, in order: prepare → locate → score → select → gather → clean.

What one pass finds is the argument of the next; no pass keeps state of a graph.
"""

from __future__ import annotations

from fopru_graph.passes.base import GraphPass, Rewritten
from fopru_graph.passes.clean import CleanPass
from fopru_graph.passes.gather import UNGATHERED, Gathered, GatherPass
from fopru_graph.passes.locate import Located, LocatePass
from fopru_graph.passes.prepare import Prepared, PreparePass
from fopru_graph.passes.score import Scored, ScorePass
from fopru_graph.passes.select import Selected, SelectPass

__all__ = [
    "UNGATHERED",
    "CleanPass",
    "GatherPass",
    "Gathered",
    "GraphPass",
    "LocatePass",
    "Located",
    "PreparePass",
    "Prepared",
    "Rewritten",
    "ScorePass",
    "Scored",
    "SelectPass",
    "Selected",
]
