"""Products of an encoder by layer and kind, under names that a user can type: `layers.3.mlp`, `patches`.

Where exporters left addresses (torch's name scopes, else the names of weights, else those of nodes), they say
which layer a product is of. Where they did not, the attentions of the graph do, by position.
"""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from fopru_graph.attention import AttentionCore, find_cores, reads, upstream_nodes
from fopru_graph.layers import SCOPES

__all__ = ["PATCHES", "PROJECTOR", "Place", "places_of"]

PATCHES, PROJECTOR = "patches", "projector"

_LAYER = re.compile(r"(?:layers?|blocks?|resblocks|\bh)[._/]?(\d+)")
_ATTENTION = re.compile(r"attn|attention|qkv|\b(?:q|k|v|o|out|query|key|value)_proj\b|to_[qkv]\b|\bproj$")
_MLP = re.compile(r"mlp|ffn|feed_?forward|\bfc_?\d|intermediate|\bdense_\w*to|gate_proj|up_proj|down_proj")
_PROJECTOR = re.compile(r"projector|merger|connector|mm_proj|modality_projection|\bmlp1\b")
_PATCHES = re.compile(r"patch_?embed|embeddings|\bconv1\b|\bconv_proj\b")


@dataclass(frozen=True)
class Place:
    """Where a product is: `layer` as in `layers.3`, empty outside of layers, and `kind`: `attention`, `mlp`,
    `patches`, `projector`, or empty where nothing says it."""

    layer: str
    kind: str

    @property
    def name(self) -> str:
        """As a user types it."""
        return ".".join(word for word in (self.layer, self.kind) if word)


def places_of(model: ir.Model, products: Sequence[ir.Node]) -> tuple[Place, ...]:
    """One place per product; `products` are nodes of `model.graph` in order, their weight is input 1."""
    for read in (_scope, _weight_name, _node_name):
        addresses = [read(node) for node in products]
        layers = [_layer_in(address) for address in addresses]
        if any(layers):
            return _by_address(products, addresses, layers)
    return _by_position(model, products)


def _scope(node: ir.Node) -> str:
    """The deepest dotted scope, as `vision_tower.layers.3.mlp.fc1`: outer ones repeat its beginning."""
    try:
        scopes = ast.literal_eval(node.metadata_props.get(SCOPES, "[]"))
    except (ValueError, SyntaxError):
        return ""
    dotted = [str(scope) for scope in scopes if "." in str(scope)] if isinstance(scopes, list) else []
    return max(dotted, key=len, default="")


def _weight_name(node: ir.Node) -> str:
    return str(node.inputs[1].name) if node.inputs[1] is not None else ""


def _node_name(node: ir.Node) -> str:
    return node.name or ""


def _layer_in(address: str) -> str:
    """`layers.3`; `layers.0.3` where a tower has stages of blocks."""
    numbers = _LAYER.findall(address)
    return f"layers.{'.'.join(numbers)}" if numbers else ""


def _by_address(
    products: Sequence[ir.Node], addresses: Sequence[str], layers: Sequence[str]
) -> tuple[Place, ...]:
    first = next(number for number, layer in enumerate(layers) if layer)
    found = []
    for number, (node, address, layer) in enumerate(zip(products, addresses, layers, strict=True)):
        if layer and not _PROJECTOR.search(address):
            found.append(Place(layer, _kind_in(address)))
        elif _PROJECTOR.search(address):
            found.append(Place("", PROJECTOR))
        elif number < first or node.op_type == "Conv" or _PATCHES.search(address):
            found.append(Place("", PATCHES))
        else:
            found.append(Place("", PROJECTOR))
    return tuple(found)


def _kind_in(address: str) -> str:
    inner = _LAYER.split(address)[-1]  # `mlp_blocks.3.attn` is an attention
    if _ATTENTION.search(inner):
        return "attention"
    return "mlp" if _MLP.search(inner) else ""


def _by_position(model: ir.Model, products: Sequence[ir.Node]) -> tuple[Place, ...]:
    """What an attention reads directly and the next product behind it are its own; what follows, up to the
    next attention, is the MLP of its layer. Behind the last one stand as many products of an MLP as in the
    layers before, and then the projector."""
    cores = find_cores(model.graph).cores
    if not cores:
        return tuple(Place("", f"product.{number}") for number in range(len(products)))
    own = _products_of_attentions(cores, products)
    before = [upstream_nodes(core.anchor) | {core.node} for core in cores]
    rest: dict[ir.Node, int] = {}  # the attention in front
    for node in products:
        if node not in own:
            rest[node] = next((i for i, above in enumerate(before) if node in above), len(cores)) - 1
    counts = Counter(Counter(rest.values())[layer] for layer in range(len(cores) - 1))
    usual = counts.most_common(1)[0][0] if counts else len(rest)
    last = [node for node in products if rest.get(node) == len(cores) - 1]
    projector = set(last[usual:])
    return tuple(_place_by_position(node, own, rest, projector) for node in products)


def _place_by_position(
    node: ir.Node, own: Mapping[ir.Node, int], rest: Mapping[ir.Node, int], projector: set[ir.Node]
) -> Place:
    if node in own:
        return Place(f"layers.{own[node]}", "attention")
    if node in projector:
        return Place("", PROJECTOR)
    return Place("", PATCHES) if rest[node] < 0 else Place(f"layers.{rest[node]}", "mlp")


def _products_of_attentions(
    cores: Iterable[AttentionCore], products: Sequence[ir.Node]
) -> dict[ir.Node, int]:
    known, own = set(products), dict[ir.Node, int]()
    for number, core in enumerate(cores):
        above = _nearest([core.node, core.product], known, up=True)
        for node in above | _nearest([core.product], known, up=False):
            own.setdefault(node, number)
    return own


def _nearest(nodes: Iterable[ir.Node], products: set[ir.Node], *, up: bool) -> set[ir.Node]:
    """The first products on each way from some nodes, upwards or downwards."""
    found, seen, pending = set[ir.Node](), set[ir.Node](nodes), list(nodes)
    while pending:
        for node in _neighbours(pending.pop(), up=up):
            if node in seen:
                continue
            seen.add(node)
            if node in products:
                found.add(node)
            else:
                pending.append(node)
    return found


def _neighbours(node: ir.Node, *, up: bool) -> list[ir.Node]:
    if up:
        return [made for value in reads(node) if (made := value.producer()) is not None]
    return [use.node for value in node.outputs for use in value.uses()]
