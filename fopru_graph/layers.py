"""Layer numbers of attentions: from torch name scopes, else from node names, else from their order."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from fopru_graph.attention import AttentionCore

__all__ = ["Numbering", "number_layers"]

SCOPES = "pkg.torch.onnx.name_scopes"
_LAYER = re.compile(r"(?:layers?|blocks?|resblocks|\bh)[._/]?(\d+)")


@dataclass(frozen=True)
class Numbering:
    """One number per attention, the locator that gave them, and one sentence per locator that could not."""

    layers: tuple[int, ...]
    locator: str
    misses: tuple[str, ...]


def number_layers(cores: Sequence[AttentionCore]) -> Numbering:
    """Number attentions given in topological order; the first locator that gives each its own number wins."""
    misses: list[str] = []
    for locator, read in _LOCATORS:
        layers = [_layer_in(read(core)) for core in cores]
        reason = _why_not(cores, layers)
        if reason is None:
            return Numbering(tuple(layer for layer in layers if layer is not None), locator, tuple(misses))
        misses.append(f"{locator}: {reason}")
    return Numbering(tuple(range(len(cores))), "structure", tuple(misses))


def _scopes(core: AttentionCore) -> str:
    return core.node.metadata_props.get(SCOPES, "")


def _node_name(core: AttentionCore) -> str:
    return core.node.name or ""


_LOCATORS: tuple[tuple[str, Callable[[AttentionCore], str]], ...] = (("scope", _scopes), ("name", _node_name))


def _layer_in(text: str) -> int | None:
    """The layer number in a dotted or slashed address: the last one, as inner scopes repeat it."""
    found = _LAYER.findall(text)
    return int(found[-1]) if found else None


def _why_not(cores: Sequence[AttentionCore], layers: Sequence[int | None]) -> str | None:
    seen: dict[int, AttentionCore] = {}
    for core, layer in zip(cores, layers, strict=True):
        if layer is None:
            return f"'{core.node.name}' carries no layer number"
        if layer in seen:
            return f"'{seen[layer].node.name}' and '{core.node.name}' both carry layer number {layer}"
        seen[layer] = core
    return None
