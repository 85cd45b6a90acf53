"""Pass 1, locate: the attention that scores the tokens, and how its rows map to the rows of the features."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from fopru_graph.attention import (
    AttentionCore,
    CoreSearch,
    find_cores,
    upstream_nodes,
    value_product,
)
from fopru_graph.errors import LocateError
from fopru_graph.layers import Numbering, number_layers
from fopru_graph.lineage import follow
from fopru_graph.merging import check_merged, order_input, rows_before_patches
from fopru_graph.options import IMAGE_FEATURES, PruneOptions
from fopru_graph.passes.base import GraphPass, Rewritten
from fopru_graph.rows import check_keys, dropped_rows, prefix_and_special
from fopru_graph.selectors import SELECTORS
from fopru_graph.shapes import Dim, attribute_int, dims, same

__all__ = ["LocatePass", "Located", "features_output"]


@dataclass(frozen=True)
class Located:
    """What was found.

    Attributes:
        features: the output to prune, [images, p + N, D].
        core: the scoring attention; `layer` its number, `locator` who knew it, `misses` why earlier locators
            did not.
        cores: all attentions upstream of the features; `layers` their numbers.
        queries: Q, rows and columns of the attention; a name where images vary in size.
        heads: H.
        tokens: N, or "tokens" where it varies.
        prefix: p, leading rows of the features that are always kept.
        dropped: o, leading attention rows that never reach the features.
        special: leading attention rows that are not patches.
        aggregation: how attention becomes scores.
        dropped_outputs: outputs that were removed.
        note: what was assumed, or empty.
        merge: s, where s x s patches make one token.
        order: graph input int64 [N] or [1, N]: which merged token each token of the features is.
    """

    features: ir.Value
    core: AttentionCore
    layer: int
    locator: str
    misses: tuple[str, ...]
    cores: tuple[AttentionCore, ...]
    layers: tuple[int, ...]
    queries: Dim
    heads: int
    tokens: Dim
    prefix: int
    dropped: int
    special: int
    aggregation: str
    dropped_outputs: tuple[str, ...] = ()
    note: str = ""
    merge: int = 1
    order: ir.Value | None = None

    @property
    def patches(self) -> Dim:
        """Attention rows that become tokens, or "patches" where their number varies and several make one."""
        if isinstance(self.tokens, int):
            return self.tokens * self.merge**2
        return self.tokens if self.merge == 1 else "patches"

    @property
    def first(self) -> int:
        """Attention row of token 0, or of its first patch."""
        return self.dropped + self.prefix


class LocatePass(GraphPass[Located]):
    """Finds the scoring attention. Changes no node; removes other outputs if it is told to.

    Rules:
        1. The features are the named output, of rank 3: `image_features`, or the only one of rank 3.
        2. Candidates are the attentions upstream of them; one fused by a vendor is refused, as its scores are
           out of reach.
        3. `tap` names the probabilities; else layers are numbered by torch scopes, node names or order (first
           that fits), and `layer` picks one; without it the deepest is taken.
        4. Rows are followed from the features back to the attention. Where a node in between hides them,
           `dropped_rows` has to be stated: a guess could take a reordering for none.
        5. Where the options say how patches become tokens, or in what order, that is taken instead, as far as
           the sizes agree.
        6. Rows that no pixel reaches (class token, registers) are special: not scored, and kept if they are
           among the features.
    """

    name: ClassVar[str] = "locate"

    def __init__(self, options: PruneOptions) -> None:
        super().__init__()
        self._options = options

    def call(self, model: ir.Model) -> Rewritten[Located]:
        options = self._options
        features, rows = features_output(model.graph, options.features)
        gone = () if options.keep_other_outputs else _drop_outputs(model.graph, features)
        upstream = upstream_nodes(features)
        search = find_cores(node for node in model.graph if node in upstream)
        if search.fused:
            node = search.fused[0]
            raise LocateError(
                f"'{node.name}' is a fused {node.domain}::{node.op_type}, and its probabilities are out of "
                "reach: prune the graph before a runtime's optimiser fuses it"
            )
        numbering = number_layers(search.cores)
        if not search.cores and options.tap is None:
            raise LocateError(_nothing_found(search, str(features.name), upstream))
        core, layer, locator = self._choose(model.graph, search, numbering, str(features.name))
        queries, heads = _attention_size(core)
        lineage = follow(features, axis=1)
        if options.maps_tokens:
            check_merged(options, features, core, lineage)
            dropped = rows_before_patches(options, features, core)
        else:
            dropped = dropped_rows(features, core, lineage, options.dropped_rows)
        if options.tap is None:
            check_keys(core)
        if options.maps_tokens:
            prefix, special, note = 0, dropped, ""
        else:
            prefix, special, note = prefix_and_special(options, features, lineage, dropped)
        if isinstance(rows, int) and rows - prefix < 1:
            raise LocateError(
                f"prefix_tokens is {prefix}, but '{features.name}' has {rows} rows: leave at least one"
            )
        found = Located(
            features=features,
            core=core,
            layer=layer,
            locator=locator,
            misses=numbering.misses,
            cores=search.cores,
            layers=numbering.layers,
            queries=queries,
            heads=heads,
            tokens=rows - prefix if isinstance(rows, int) else "tokens",
            prefix=prefix,
            dropped=dropped,
            special=special,
            aggregation=options.aggregation or SELECTORS[options.strategy].aggregation(special),
            dropped_outputs=gone,
            note=note,
            merge=options.merge,
            order=order_input(model.graph, options.token_order, rows),
        )
        return Rewritten(model, found, count=len(gone))

    def _choose(
        self, graph: ir.Graph, search: CoreSearch, numbering: Numbering, features: str
    ) -> tuple[AttentionCore, int, str]:
        if self._options.tap is not None:
            return _tapped(graph, search, self._options.tap, numbering)
        if self._options.layer is None:
            return search.cores[-1], numbering.layers[-1], numbering.locator
        if self._options.layer not in numbering.layers:
            known = ", ".join(str(layer) for layer in numbering.layers)
            raise LocateError(
                f"layer is {self._options.layer}, but the attentions behind '{features}' "
                f"are in layers {known} (found by {numbering.locator})"
            )
        position = numbering.layers.index(self._options.layer)
        return search.cores[position], self._options.layer, numbering.locator


def features_output(graph: ir.Graph, wanted: str | None) -> tuple[ir.Value, Dim]:
    """The features output and its number of rows."""
    outputs = {str(value.name): value for value in graph.outputs}
    of_rank_3 = [name for name, value in outputs.items() if len(dims(value) or ()) == 3]
    name = wanted or (IMAGE_FEATURES if IMAGE_FEATURES in outputs or len(of_rank_3) != 1 else of_rank_3[0])
    if name not in outputs:
        raise LocateError(
            f"there is no output '{name}', the graph has {', '.join(outputs)}: name the features output"
        )
    features = outputs[name]
    sizes = dims(features)
    if sizes is None or len(sizes) != 3:
        raise LocateError(f"output '{name}' has dims {sizes}, but features are [images, tokens, width]")
    if not isinstance(sizes[2], int):
        raise LocateError(
            f"output '{name}' has dims {sizes}, but the width must be fixed: export with a fixed width"
        )
    return features, sizes[1]


def _drop_outputs(graph: ir.Graph, features: ir.Value) -> tuple[str, ...]:
    gone = [value for value in graph.outputs if value is not features]
    for value in gone:
        graph.outputs.remove(value)
    return tuple(str(value.name) for value in gone)


def _nothing_found(search: CoreSearch, features: str, upstream: set[ir.Node]) -> str:
    bodies = (node for node in upstream if node.op_type in ("If", "Loop", "Scan"))
    hidden = next(bodies, None)
    if not search.near_misses and hidden is not None:
        return (
            f"no attention found outside of {hidden.op_type} '{hidden.name}', whose body is not looked into: "
            "export without it (constant folding often removes it)"
        )
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
    if sizes is None or len(sizes) != 4 or not same(sizes[2], sizes[3]) or node is None or not value.uses():
        raise LocateError(
            f"tap '{tap}' has dims {sizes}, but probabilities are [images, heads, tokens, tokens]; "
            f"tensors made by attention are: {known}"
        )
    # The user vouches for it: no pattern is asked, and its layer is where it stands among the known ones.
    order = {node: position for position, node in enumerate(graph)}
    before = sum(order[core.node] < order[node] for core in search.cores)
    product = value_product(value) or next(iter(value.uses())).node
    return AttentionCore("softmax", node, product), before, "tensor"


def _attention_size(core: AttentionCore) -> tuple[Dim, int]:
    """(Q, H); H is fixed."""
    source = core.anchor if core.form == "softmax" else core.node.inputs[0]
    sizes = dims(source) or ()
    heads = sizes[1] if len(sizes) == 4 else attribute_int(core.node, "q_num_heads", 0)
    queries = sizes[-2]
    if not isinstance(heads, int):
        raise LocateError(
            f"attention '{core.node.name}' has dims {sizes}, but the number of heads must be fixed: export "
            "with constant shapes, or name a tensor of probabilities with tap"
        )
    keys = sizes[-1] if core.form == "softmax" else (dims(core.node.inputs[1]) or ())[-2]
    if not same(keys, queries):
        raise LocateError(
            f"attention '{core.node.name}' has {queries} queries and {keys} keys, but tokens must look at "
            "each other: name another layer"
        )
    return queries, heads
