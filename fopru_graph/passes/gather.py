"""Pass 4, gather: the features keep the selected rows only, and so does everything before them that can."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from fopru_graph.builder import GraphBuilder, Made
from fopru_graph.errors import RewriteError, UnsupportedGraphError
from fopru_graph.hoisting import Frontier, HoistPlan, plan_hoist
from fopru_graph.passes.base import GraphPass, Rewritten
from fopru_graph.passes.locate import Located
from fopru_graph.passes.select import Selected
from fopru_graph.shapes import Dim, dims, static_product
from fopru_graph.tokenwise import Demand, is_token_slice

__all__ = ["UNGATHERED", "GatherPass", "Gathered"]

_INT64 = ir.DataType.INT64
_MOST_BLOCKS = 65536  # images times heads whose positions are stored; more are counted at run time
KEPT_ROWS = "kept_rows"


@dataclass(frozen=True)
class Gathered:
    """Where rows are taken.

    Attributes:
        place: `early` if the last used attention computes kept rows only, else `late`.
        reason: why there and not earlier.
        tensors: names of the tensors whose rows are taken.
        added: new nodes.
        removed: nodes that were dead, and nodes that a selection made superfluous.
    """

    place: str
    reason: str
    tensors: tuple[str, ...]
    added: int
    removed: int


UNGATHERED = Gathered("none", "only scores were asked for", (), 0, 0)


class GatherPass(GraphPass[Gathered]):
    """Selects rows of the features as early as the result stays exact.

    Rules:
        0. Dead nodes go first: they would count as somebody who needs all rows.
        1. A node moves behind the selection if it works row by row (`tokenwise.py`) and nobody needs its
           other rows (`hoisting.py`). In the scoring layer this stops at the probabilities, which the score
           needs whole, or at Q; the residual and other layers' features are gathered beside.
        2. A Slice along tokens disappears: its start is added to the positions taken before it.
        3. A Reshape behind the selection copies its leading dims instead of stating the old number of tokens.
        4. Prefix rows come first and are always taken.
        5. Rows are taken by one Gather over the tensor with its leading axes folded: as fast as GatherND on
           ONNX Runtime CPU, right for different indices per image, and GatherND would block CUDA graph
           capture.
    """

    name: ClassVar[str] = "gather"

    def __init__(self, located: Located, selected: Selected) -> None:
        super().__init__()
        self._name = located.features.name
        self._located = located
        self._selected = selected

    def call(self, model: ir.Model) -> Rewritten[Gathered]:
        located, before = self._located, len(model.graph)
        RemoveUnusedNodesPass()(model)
        dead = before - len(model.graph)
        plan = plan_hoist(model.graph, located.features)
        place, reason = _verdict(plan, located)
        names = tuple(str(frontier.value.name) for frontier in plan.frontier)
        builder = GraphBuilder(model.graph, self.name)
        rows = _Rows(builder, self._selected.indices, located.prefix)
        for frontier in plan.frontier:
            taken = rows.take(frontier.value, frontier.demand)
            _replace(model.graph, frontier, taken, builder)
        for node, demand in plan.nodes:
            _shorten(node, demand, builder)
        slices = [node for node, demand in plan.nodes if is_token_slice(node, demand)]
        for node in slices:
            _bypass(model.graph, node)
        model.graph.sort()
        found = Gathered(place, reason, names, builder.added, dead + len(slices))
        return Rewritten(model, found, builder.added + len(plan.nodes) + dead)

    def ensures(self, model: ir.Model) -> None:
        features = next((value for value in model.graph.outputs if value.name == self._name), None)
        sizes = dims(features)
        if sizes is None or sizes[1] != KEPT_ROWS:
            raise RewriteError(f"the gather pass left '{self._name}' with dims {sizes}, not with kept rows")


class _Rows:
    """Makes the positions to take, and takes them; equal positions are made once."""

    def __init__(self, builder: GraphBuilder, indices: ir.Value, prefix: int) -> None:
        self._builder = builder
        self._images = (dims(indices) or (None,))[0]
        self._positions: dict[int, ir.Value] = {}
        self._flat: dict[tuple[int, tuple[Dim, ...]], ir.Value] = {}
        self._kept = self._with_prefix(indices, prefix)

    def take(self, value: ir.Value, demand: Demand) -> ir.Value:
        """Kept rows of a value [images, …, tokens, …]: leading axes folded into one, then one Gather."""
        builder = self._builder
        sizes = dims(value) or ()
        axis = demand.axis
        folded = builder.op(
            "Reshape",
            [value, self._row_shape(value, axis)],
            Made(f"{value.name}_rows", value.dtype or ir.DataType.FLOAT, (None, *sizes[axis + 1 :])),
        )
        made = Made(
            f"{value.name}_kept",
            value.dtype or ir.DataType.FLOAT,
            (*sizes[:axis], KEPT_ROWS, *sizes[axis + 1 :]),
        )
        return builder.op("Gather", [folded, self._flat_positions(value, demand)], made, {"axis": 0})

    def _with_prefix(self, indices: ir.Value, prefix: int) -> ir.Value:
        """int64 [images, p + K]: rows of the features."""
        if not prefix:
            return indices
        builder = self._builder
        # Zero times one position per image: the cheapest [images, 1] at hand, for any number of images.
        one = builder.slice(indices, 1, (0, 1), Made("one_position", _INT64, (self._images, 1)))
        none = builder.op(
            "Mul", [one, builder.scalar("zero", 0)], Made("no_position", _INT64, (self._images, 1))
        )
        first = builder.constant("prefix", np.arange(prefix, dtype=np.int64).reshape(1, prefix))
        every = builder.op("Add", [none, first], Made("prefix_rows", _INT64, (self._images, prefix)))
        return builder.op(
            "Concat",
            [every, self._shifted(indices, prefix)],
            Made("feature_rows", _INT64, (self._images, KEPT_ROWS)),
            {"axis": 1},
        )

    def _shifted(self, positions: ir.Value, offset: int) -> ir.Value:
        if not offset:
            return positions
        made = Made("positions", _INT64, dims(positions) or ())
        return self._builder.op("Add", [positions, self._builder.ints("offset", [offset])], made)

    def _flat_positions(self, value: ir.Value, demand: Demand) -> ir.Value:
        """int64 [images, …, p + K]: rows of the folded tensor."""
        lead = (dims(value) or ())[: demand.axis + 1]
        key = (demand.offset, lead)
        if key not in self._flat:
            if demand.offset not in self._positions:
                self._positions[demand.offset] = self._shifted(self._kept, demand.offset)
            self._flat[key] = self._fold(self._positions[demand.offset], value, lead)
        return self._flat[key]

    def _fold(self, positions: ir.Value, value: ir.Value, lead: tuple[Dim, ...]) -> ir.Value:
        """Position t of image b and head h becomes (b * H + h) * T + t."""
        builder, heads, axis = self._builder, lead[1:-1], len(lead) - 1
        for _ in heads:
            made = Made("positions_per_head", _INT64, (self._images, *[1] * len(heads), KEPT_ROWS))
            positions = builder.op("Unsqueeze", [positions, builder.ints("axis", [1])], made)
        starts = self._block_starts(value, lead)
        return builder.op(
            "Add", [starts, positions], Made("flat_positions", _INT64, (*lead[:axis], KEPT_ROWS))
        )

    def _block_starts(self, value: ir.Value, lead: tuple[Dim, ...]) -> ir.Value:
        """int64 [images, heads…, 1]: 0, T, 2T, … where T is the number of tokens."""
        builder, axis = self._builder, len(lead) - 1
        blocks, tokens = static_product(lead[:-1]), lead[-1]
        if 0 in lead:
            raise UnsupportedGraphError(
                f"'{value.name}' has dims {dims(value)}, but an encoder has at least one of each: export it "
                "again"
            )
        if blocks is not None and blocks <= _MOST_BLOCKS and isinstance(tokens, int):
            starts = np.arange(blocks, dtype=np.int64) * tokens
            return builder.constant(
                "block_starts", starts.reshape(*(int(size or 1) for size in lead[:-1]), 1)
            )
        heads = static_product(lead[1:-1]) or 1
        step = builder.scalar("tokens", tokens) if isinstance(tokens, int) else builder.size(value, axis)
        end = builder.op("Mul", [builder.size(value, 0), step], Made("images_end", _INT64, ()))
        if heads > 1:
            end = builder.op("Mul", [end, builder.scalar("heads", heads)], Made("blocks_end", _INT64, ()))
        flat = builder.op(
            "Range", [builder.scalar("zero", 0), end, step], Made("block_starts_flat", _INT64, (None,))
        )
        shape = builder.ints("block_shape", [-1, *(int(size or 1) for size in lead[1:-1]), 1])
        return builder.op("Reshape", [flat, shape], Made("block_starts", _INT64, (*lead[:-1], 1)))

    def _row_shape(self, value: ir.Value, axis: int) -> ir.Value:
        """Target of the fold: (-1, dims after the tokens); those that vary are read at run time."""
        rest, builder = (dims(value) or ())[axis + 1 :], self._builder
        if static_product(rest) is not None:
            return builder.ints("row_shape", [-1, *(int(size or 0) for size in rest)])
        every = builder.op("Shape", [value], Made("shape", _INT64, (axis + 1 + len(rest),)))
        tail = builder.slice(every, 0, (axis + 1, None), Made("row_dims", _INT64, (len(rest),)))
        made = Made("row_shape", _INT64, (1 + len(rest),))
        return builder.op("Concat", [builder.ints("every", [-1]), tail], made, {"axis": 0})


def _replace(graph: ir.Graph, frontier: Frontier, taken: ir.Value, builder: GraphBuilder) -> None:
    for node, index in frontier.uses:
        node.replace_input_with(index, taken)
    if not frontier.uses:  # the features output itself: the new value takes over its name and place
        name = frontier.value.name
        frontier.value.name = builder.fresh(f"{name}_unpruned")
        taken.name = name
        graph.outputs[list(graph.outputs).index(frontier.value)] = taken


def _shorten(node: ir.Node, demand: Demand, builder: GraphBuilder) -> None:
    """Declare kept rows on the outputs, and let a Reshape copy its leading dims."""
    lead = demand.axis + 1
    if node.op_type == "Reshape":
        rest = [int(size or 0) for size in (dims(node.outputs[0]) or ())[lead:]]
        node.replace_input_with(1, builder.ints("reshape", [0] * lead + rest))
        node.attributes.pop("allowzero", None)
    for value in node.outputs:
        sizes = list(dims(value) or ())
        if len(sizes) > demand.axis:
            sizes[demand.axis] = KEPT_ROWS
            value.shape = ir.Shape(sizes)


def _bypass(graph: ir.Graph, node: ir.Node) -> None:
    """Remove a node whose input already is its output."""
    source, out = node.inputs[0], node.outputs[0]
    if source is None:
        return
    name, is_output = out.name, out.is_graph_output()
    ir.convenience.replace_all_uses_with(out, source, replace_graph_outputs=True)
    if is_output:
        source.name = name
    graph.remove(node, safe=True)


def _verdict(plan: HoistPlan, located: Located) -> tuple[str, str]:
    if located.merge > 1:
        return "late", f"patches are merged {located.merge} x {located.merge} before the features"
    moved = plan.node_set
    products = [core for core in located.cores if core.product in moved]
    if located.core.product in moved and located.core not in products:
        products.append(located.core)
    if products:
        first = products[0].product
        return "early", f"from {first.op_type} '{first.name}' on, only kept rows are computed"
    if plan.stops:
        return "late", str(plan.stops[0])
    shared = ", ".join(f"'{frontier.value.name}'" for frontier in plan.frontier)
    return "late", f"{shared} is needed whole elsewhere"
