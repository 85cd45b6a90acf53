"""From a setting to the way it is measured with one bundle."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from calib.settings import METHODS, Setting
from runtime.manifest import PruningInfo
from runtime.selectors import GRAPH

__all__ = ["Scoring", "Way", "scoring_of", "way_of"]


@dataclass(frozen=True)
class Scoring:
    """How tokens are scored: by the attention of an encoder layer (0-based), and how it becomes a number."""

    layer: int
    aggregation: str


@dataclass(frozen=True)
class Way:
    """How a setting is measured.

    Attributes:
        kind: `graph`: the bundle's pruned graph, as a user runs it; `host`: chosen on the host from the whole
            encoding; `unpruned`; `resize`: a smaller picture.
        selector: of the runtime.
        scoring: what scores where that is not the bundle's; None: the bundle's, or nothing does.
    """

    kind: Literal["graph", "host", "unpruned", "resize"]
    selector: str
    scoring: Scoring | None = None


def way_of(setting: Setting, pruning: PruningInfo) -> Way:
    """The way of a setting with a bundle that prunes so."""
    if setting.selector in ("none", "resize"):
        return Way("unpruned" if setting.selector == "none" else "resize", "none")
    if setting.selector not in METHODS:
        return Way("host", setting.selector)
    scoring, own = scoring_of(setting, pruning), Scoring(pruning.layer, pruning.aggregation)
    selector = "rank" if setting.selector == "cls" else setting.selector
    if scoring != own:
        return Way("host", selector, scoring)
    return Way("graph", GRAPH) if selector == pruning.strategy else Way("host", selector)


def scoring_of(setting: Setting, pruning: PruningInfo) -> Scoring:
    """What scores the tokens for a setting of FoPru."""
    default = "cls" if setting.selector == "cls" else pruning.aggregation
    return Scoring(pruning.layer if setting.layer is None else setting.layer, setting.aggregation or default)
