"""Pass 1, locate: the attention that scores the tokens, and how its rows map to the rows of the features."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir
from onnx_ir.passes.common import ShapeInferencePass

from fopru_graph.attention import AttentionCore, CoreSearch, find_cores, upstream_nodes, value_product
from fopru_graph.errors import LocateError, UnsupportedGraphError
from fopru_graph.hoisting import Stop, trace_rows
from fopru_graph.layers import Numbering, number_layers
from fopru_graph.options import KEPT_INDICES, NUM_KEEP, TOKEN_SCORES, PruneOptions
from fopru_graph.passes.base import GraphPass, Rewritten
from fopru_graph.shapes import attribute_int, dims
from fopru_graph.weights import without_external_weights

__all__ = ["LocatePass", "Located"]

_MIN_OPSET = 13  # Softmax over one axis, axes of Unsqueeze as an input


@dataclass(frozen=True)
class Located:
    """What was found.

    Attributes:
        features: the output to prune, [images, p + N, D].
        core: the scoring attention; `layer` its number, `locator` who knew it, `misses` why earlier locators
            did not.
        cores: all attentions upstream of the features.
        queries: Q, rows and columns of the attention; `heads`: H.
        tokens: N.
        dropped: o, leading attention rows that never reach the features.
        special: leading attention rows that are not patches.
    """

    features: ir.Value
    core: AttentionCore
    layer: int
    locator: str
    misses: tuple[str, ...]
    cores: tuple[AttentionCore, ...]
    queries: int
    heads: int
    tokens: int
    dropped: int
    special: int


class LocatePass(GraphPass[Located]):
    """Finds the scoring attention. Changes no node; fills in shapes that the exporter left open.

    Rules:
        1. The features are the named output, of rank 3, with a fixed number of rows.
        2. Candidates are the attentions upstream of them; one fused by a vendor is refused, as its scores are
           out of reach.
        3. `tap` names the probabilities; else layers are numbered by torch scopes, node names or order (first
           that fits), and `layer` picks one; without it the deepest is taken.
        4. Rows are followed from the features back to the attention. Where a node in between hides them,
           `dropped_rows` has to be stated: a guess could take a reordering for none.
    """

    name: ClassVar[str] = "locate"

    def __init__(self, options: PruneOptions) -> None:
        super().__init__()
        self._options = options

    def requires(self, model: ir.Model) -> None:
        opset = model.graph.opset_imports.get("", 0)
        if opset < _MIN_OPSET:
            raise UnsupportedGraphError(
                f"the graph has opset {opset}, but {_MIN_OPSET} or later is needed: export it anew"
            )
        taken = {value.name for value in (*model.graph.inputs, *model.graph.outputs)}
        clash = [name for name in (NUM_KEEP, KEPT_INDICES, TOKEN_SCORES) if name in taken]
        if clash:
            raise UnsupportedGraphError(
                f"the graph already has '{clash[0]}': it is pruned, start from the unpruned graph"
            )

    def call(self, model: ir.Model) -> Rewritten[Located]:
        with without_external_weights(model):
            ShapeInferencePass(check_type=False, strict_mode=False)(
                model
            )  # annotations only: exporters leave gaps
        features, rows = _features(model.graph, self._options.features)
        tokens = rows - self._options.prefix_tokens
        if tokens < 1:
            raise LocateError(
                f"prefix_tokens is {self._options.prefix_tokens}, but '{features.name}' has {rows} rows: "
                "leave at least one"
            )
        upstream = upstream_nodes(features)
        search = find_cores(node for node in model.graph if node in upstream)
        if search.fused:
            node = search.fused[0]
            raise LocateError(
                f"'{node.name}' is a fused {node.domain}::{node.op_type}, and its probabilities are out of "
                "reach: prune the graph before a runtime's optimiser fuses it"
            )
        numbering = number_layers(search.cores)
        core, layer, locator = self._choose(model.graph, search, numbering)
        queries, heads = _attention_size(core)
        dropped = _dropped_rows(features, core, (queries, rows), self._options.dropped_rows)
        special = self._options.special_tokens
        found = Located(
            features=features,
            core=core,
            layer=layer,
            locator=locator,
            misses=numbering.misses,
            cores=search.cores,
            queries=queries,
            heads=heads,
            tokens=tokens,
            dropped=dropped,
            special=dropped + self._options.prefix_tokens if special is None else special,
        )
        return Rewritten(model, found, count=0)

    def _choose(
        self, graph: ir.Graph, search: CoreSearch, numbering: Numbering
    ) -> tuple[AttentionCore, int, str]:
        if self._options.tap is not None:
            return _tapped(graph, search, self._options.tap, numbering)
        if not search.cores:
            raise LocateError(_nothing_found(search, self._options.features))
        if self._options.layer is None:
            return search.cores[-1], numbering.layers[-1], numbering.locator
        if self._options.layer not in numbering.layers:
            known = ", ".join(str(layer) for layer in numbering.layers)
            raise LocateError(
                f"layer is {self._options.layer}, but the attentions behind '{self._options.features}' "
                f"are in layers {known} (found by {numbering.locator})"
            )
        position = numbering.layers.index(self._options.layer)
        return search.cores[position], self._options.layer, numbering.locator


def _features(graph: ir.Graph, name: str) -> tuple[ir.Value, int]:
    outputs = {value.name: value for value in graph.outputs}
    if name not in outputs:
        known = ", ".join(str(output) for output in outputs)
        raise LocateError(f"there is no output '{name}', the graph has {known}: name the features output")
    features = outputs[name]
    sizes = dims(features)
    if sizes is None or len(sizes) != 3:
        raise LocateError(f"output '{name}' has dims {sizes}, but features are [images, tokens, width]")
    if not isinstance(sizes[1], int) or not isinstance(sizes[2], int):
        raise LocateError(
            f"output '{name}' has dims {sizes}, but tokens and width must be fixed: "
            "export with a fixed image size"
        )
    return features, sizes[1]


def _nothing_found(search: CoreSearch, features: str) -> str:
    if not search.near_misses:
        return f"no attention found: '{features}' depends on no Softmax and no Attention node"
    best = max(search.near_misses, key=lambda miss: miss.steps)
    return (
        f"no attention found among {len(search.near_misses)} candidates; the closest is {best.node.op_type} "
        f"'{best.node.name}', but {best.reason}: name a tensor of probabilities with tap"
    )


def _tapped(
    graph: ir.Graph, search: CoreSearch, tap: str, numbering: Numbering
) -> tuple[AttentionCore, int, str]:
    for core, layer in zip(search.cores, numbering.layers, strict=True):
        if tap in {value.name for value in (*core.node.outputs, *core.product.outputs)}:
            return core, layer, "tensor"
    known = ", ".join(f"'{core.anchor.name}'" for core in search.cores) or "none recognised"
    value = next((value for node in graph for value in node.outputs if value.name == tap), None)
    if value is None:
        raise LocateError(f"tap '{tap}' is no tensor of the graph; tensors made by attention are: {known}")
    sizes, node = dims(value), value.producer()
    if sizes is None or len(sizes) != 4 or sizes[2] != sizes[3] or node is None or not value.uses():
        raise LocateError(
            f"tap '{tap}' has dims {sizes}, but probabilities are [images, heads, tokens, tokens]; "
            f"tensors made by attention are: {known}"
        )
    # The user vouches for it: no pattern is asked, and its layer is where it stands among the known ones.
    order = {node: position for position, node in enumerate(graph)}
    before = sum(order[core.node] < order[node] for core in search.cores)
    product = value_product(value) or next(iter(value.uses())).node
    return AttentionCore("softmax", node, product), before, "tensor"


def _attention_size(core: AttentionCore) -> tuple[int, int]:
    """(Q, H), both fixed."""
    source = core.anchor if core.form == "softmax" else core.node.inputs[0]
    sizes = dims(source) or ()
    heads = sizes[1] if len(sizes) == 4 else attribute_int(core.node, "q_num_heads", 0)
    queries = sizes[-2]
    if not isinstance(queries, int) or not isinstance(heads, int):
        raise LocateError(
            f"attention '{core.node.name}' has dims {sizes}, but heads and tokens must be fixed: "
            "export with a fixed image size"
        )
    keys = sizes[-1] if core.form == "softmax" else (dims(core.node.inputs[1]) or ())[-2]
    if keys != queries:
        raise LocateError(
            f"attention '{core.node.name}' has {queries} queries and {keys} keys, but tokens must look at "
            "each other: name another layer"
        )
    return queries, heads


def _dropped_rows(
    features: ir.Value, core: AttentionCore, counts: tuple[int, int], stated: int | None
) -> int:
    """o: attention row of the first row of the features; followed through the graph, or as stated."""
    queries, rows = counts
    reached, stops = trace_rows(features, core.anchor)
    offsets = {demand.offset for demand in reached if demand.axis == core.query_axis}
    if stated is None:
        if len(offsets) == 1 and min(offsets) + rows <= queries:
            return min(offsets)
        raise LocateError(_unknown_rows(features, core, counts, stops))
    if stated + rows > queries:
        raise LocateError(
            f"dropped_rows is {stated}, but attention '{core.node.name}' has {queries} rows and "
            f"'{features.name}' {rows}: give at most {queries - rows}"
        )
    if offsets and offsets != {stated}:
        raise LocateError(
            f"dropped_rows is {stated}, but row 0 of '{features.name}' is row {min(offsets)} of attention "
            f"'{core.node.name}': leave dropped_rows at None"
        )
    return stated


def _unknown_rows(
    features: ir.Value, core: AttentionCore, counts: tuple[int, int], stops: tuple[Stop, ...]
) -> str:
    queries, rows = counts
    where = f"; following them stopped at {stops[0]}" if stops else ""
    return (
        f"cannot tell which of the {queries} rows of attention '{core.node.name}' are the {rows} rows of "
        f"'{features.name}'{where}: if no node between them reorders tokens, state dropped_rows, the leading "
        "attention rows that never become features"
    )
