"""Which operators work row by row: if only some rows of the result are wanted, which rows of which inputs
are.

A rule gets a node and the axis of its first output that counts tokens, and answers with one `Demand` per
input that carries tokens, or with a `Refusal`. A rule must be certain: equal dims are equal numbers or equal
names, never hopes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import onnx_ir as ir

from fopru_graph.attention import ONNX_DOMAINS
from fopru_graph.shapes import INT32_MAX, attribute_int, constant_ints, dims, same, static_product

__all__ = ["Demand", "InputDemands", "Refusal", "demands_of", "is_token_slice", "slice_axes"]


@dataclass(frozen=True)
class Demand:
    """Rows wanted of a value: `axis` counts its tokens, and row i of the features is its row `i + offset`."""

    axis: int
    offset: int


@dataclass(frozen=True)
class Refusal:
    """Why a node is not known to work row by row."""

    reason: str


InputDemands = tuple[tuple[int, Demand], ...]
_Answer = InputDemands | Refusal
_Rule = Callable[[ir.Node, Demand], _Answer]


def demands_of(node: ir.Node, demand: Demand) -> _Answer:
    """Rows that a node needs of its inputs to make the demanded rows of its first output.

    Axis 0 is the images axis everywhere: a value that counts tokens on it is refused.
    """
    if node.domain not in ONNX_DOMAINS or node.op_type not in _RULES:
        return Refusal("this operator is not known to work row by row")
    if any(dims(value) is None for value in (*node.inputs, node.outputs[0]) if value is not None):
        return Refusal("the shape of one of its tensors is unknown")
    answer = _RULES[node.op_type](node, demand)
    if isinstance(answer, Refusal):
        return answer
    if not answer or any(wanted.axis < 1 for _, wanted in answer):
        return Refusal("none of its inputs has a token axis beside the images axis")
    if any(not _fixed_rows(node.inputs[index], wanted.axis) for index, wanted in answer):
        return Refusal("an axis between images and tokens has no fixed size")
    return answer


def is_token_slice(node: ir.Node, demand: Demand) -> bool:
    """Whether the node is a Slice along tokens: with a gather before it, it has nothing left to do."""
    if node.op_type != "Slice":
        return False
    axes = slice_axes(node)
    return axes is not None and demand.axis in axes


def _fixed_rows(value: ir.Value | None, axis: int) -> bool:
    """Whether each image has a fixed number of blocks of rows (heads): then rows have known positions."""
    return static_product(_known(value)[1:axis]) is not None


def _known(value: ir.Value | None) -> tuple[int | str | None, ...]:
    return dims(value) or ()


def _unary(_node: ir.Node, demand: Demand) -> _Answer:
    return ((0, demand),)


def _broadcast(node: ir.Node, demand: Demand) -> _Answer:
    """Elementwise over broadcast operands; those without tokens (scalars, weights) are left alone."""
    out = _known(node.outputs[0])
    wanted: list[tuple[int, Demand]] = []
    for index, value in enumerate(node.inputs):
        sizes = _known(value)
        axis = demand.axis - (len(out) - len(sizes))
        if axis < 0 or sizes[axis] == 1:
            continue
        if len(sizes) != len(out) or not all(
            same(a, b) for a, b in zip(sizes[:axis], out[:axis], strict=True)
        ):
            return Refusal(
                f"its operand '{value.name if value else ''}' varies along tokens, not along images or heads"
            )
        if not same(sizes[axis], out[demand.axis]):
            return Refusal(
                f"its operand '{value.name if value else ''}' has {sizes[axis]} tokens and its result "
                f"{out[demand.axis]}, so that one may stand for all"
            )
        wanted.append((index, demand))
    return tuple(wanted)


def _matmul(node: ir.Node, demand: Demand) -> _Answer:
    left, right, out = _known(node.inputs[0]), _known(node.inputs[1]), _known(node.outputs[0])
    if demand.axis == len(out) - 1:
        return Refusal("tokens are the columns of its result")
    if demand.axis < len(out) - 2 and len(right) > 2:
        return Refusal("tokens are a batch axis of both of its operands")
    if len(left) != len(out) or not all(same(a, b) for a, b in zip(left[:-2], out[:-2], strict=True)):
        return Refusal("its left operand is shared by images or heads")
    return ((0, demand),)


def _normalization(node: ir.Node, demand: Demand) -> _Answer:
    rank = len(_known(node.outputs[0]))
    axis = attribute_int(node, "axis", -1) % rank
    if axis <= demand.axis:
        return Refusal(
            f"it normalises over axis {axis} and later ones, tokens (axis {demand.axis}) among them"
        )
    for value in node.inputs[1:]:
        sizes = _known(value)
        position = demand.axis - (rank - len(sizes))
        if position >= 0 and sizes[position] != 1:
            return Refusal(f"its weight '{value.name if value else ''}' varies along tokens")
    return ((0, demand),)


def _softmax(node: ir.Node, demand: Demand) -> _Answer:
    axis = attribute_int(node, "axis", -1) % len(_known(node.outputs[0]))
    return Refusal("it normalises over tokens") if axis == demand.axis else ((0, demand),)


def _reduce(node: ir.Node, demand: Demand) -> _Answer:
    rank = len(_known(node.inputs[0]))
    if len(node.inputs) > 1 and node.inputs[1] is not None:
        axes = constant_ints(node.inputs[1])
    else:
        attribute = node.attributes.get("axes")
        axes = list(attribute.as_ints()) if attribute is not None else []
    if axes is None:
        return Refusal("the axes it reduces are not constant")
    if not axes and not attribute_int(node, "noop_with_empty_axes", 0):
        axes = list(range(rank))
    reduced = {axis % rank for axis in axes}
    if 0 in reduced:
        return Refusal("it reduces over images")
    kept = list(range(rank))
    if not attribute_int(node, "keepdims", 1):
        kept = [axis for axis in kept if axis not in reduced]
    if demand.axis >= len(kept) or kept[demand.axis] in reduced:
        return Refusal("it reduces over tokens")
    return ((0, Demand(kept[demand.axis], demand.offset)),)


def _transpose(node: ir.Node, demand: Demand) -> _Answer:
    rank = len(_known(node.inputs[0]))
    attribute = node.attributes.get("perm")
    perm = list(attribute.as_ints()) if attribute is not None else list(reversed(range(rank)))
    if perm[0] != 0:
        return Refusal(f"it moves the images axis (perm {perm})")
    return ((0, Demand(perm[demand.axis], demand.offset)),)


def _reshape(node: ir.Node, demand: Demand) -> _Answer:
    """Only axes after the tokens may be split or merged, e.g. heads: [B, Q, H, d] ↔ [B, Q, H * d]."""
    source, out = _known(node.inputs[0]), _known(node.outputs[0])
    lead = demand.axis + 1
    if len(source) <= demand.axis or not all(
        same(a, b) for a, b in zip(source[:lead], out[:lead], strict=True)
    ):
        return Refusal(f"it reshapes {list(source)} to {list(out)}, which mixes tokens with other axes")
    before, after = static_product(source[lead:]), static_product(out[lead:])
    if before is None or before != after:
        return Refusal(
            f"it reshapes {list(source)} to {list(out)}, and the axes after the tokens are not fixed"
        )
    return ((0, demand),)


def slice_axes(node: ir.Node) -> list[int] | None:
    """Axes that a Slice cuts, or None if they are not constant."""
    rank = len(_known(node.inputs[0]))
    starts = constant_ints(node.inputs[1]) if len(node.inputs) > 1 else None
    if len(node.inputs) > 3 and node.inputs[3] is not None:
        axes = constant_ints(node.inputs[3])
    else:
        axes = list(range(len(starts))) if starts is not None else None
    return [axis % rank for axis in axes] if axes is not None else None


def _slice(node: ir.Node, demand: Demand) -> _Answer:
    """Along tokens: a constant start >= 0, forwards, every row (the offset of all rows before it grows)."""
    axes = slice_axes(node)
    starts = constant_ints(node.inputs[1]) if len(node.inputs) > 1 else None
    steps = constant_ints(node.inputs[4]) if len(node.inputs) > 4 and node.inputs[4] is not None else None
    if axes is None or starts is None:
        return Refusal("its bounds are not constant")
    ends = constant_ints(node.inputs[2])
    if 0 in axes and not _is_whole(axes.index(0), starts, ends, steps):
        return Refusal("it slices images")
    if demand.axis not in axes:
        return ((0, demand),)
    position = axes.index(demand.axis)
    if len(axes) > 1:
        return Refusal("it slices tokens and another axis at once")
    if starts[position] < 0 or (steps is not None and steps[position] != 1):
        return Refusal("it counts tokens from the end, or skips some")
    if not isinstance(_known(node.inputs[0])[demand.axis], int) and (
        ends is None or ends[position] < INT32_MAX
    ):
        return Refusal("it may cut off rows at the end, as their number varies")
    return ((0, Demand(demand.axis, demand.offset + starts[position])),)


def _is_whole(position: int, starts: list[int], ends: list[int] | None, steps: list[int] | None) -> bool:
    """Whether a Slice takes all of one of its axes, as TorchScript writes `x[:, 1:]`."""
    to_the_end = ends is not None and ends[position] >= INT32_MAX
    return starts[position] == 0 and to_the_end and (steps is None or steps[position] == 1)


def _concat(node: ir.Node, demand: Demand) -> _Answer:
    axis = attribute_int(node, "axis", 0) % len(_known(node.outputs[0]))
    if axis in (0, demand.axis):
        return Refusal("it concatenates along tokens" if axis else "it concatenates images")
    return tuple((index, demand) for index in range(len(node.inputs)))


def _split(node: ir.Node, demand: Demand) -> _Answer:
    axis = attribute_int(node, "axis", 0) % len(_known(node.outputs[0]))
    if axis in (0, demand.axis):
        return Refusal("it splits tokens" if axis else "it splits images")
    return ((0, demand),)


def _attention(node: ir.Node, demand: Demand) -> _Answer:
    """Queries are rows, and so are those of a mask; keys and values stay whole."""
    query, out = _known(node.inputs[0]), _known(node.outputs[0])
    if demand.axis != len(out) - 2 or len(query) != len(out):
        return Refusal("tokens are not its queries")
    if any(value.uses() or value.is_graph_output() for value in node.outputs[1:]):
        return Refusal("a second output of it is in use")
    if attribute_int(node, "is_causal", 0):
        return Refusal("it is causal, so that a query's result depends on its position")
    mask = node.inputs[3] if len(node.inputs) > 3 else None
    sizes = _known(mask)
    if mask is None or sizes[-2:-1] == (1,):
        return ((0, demand),)
    if len(sizes) != 4 or not same(sizes[0], out[0]):
        return Refusal(f"its mask '{mask.name}' has a row per query and is shared by images")
    return (0, demand), (3, Demand(2, demand.offset))


_UNARY = (
    "Abs Cast Celu Dropout Elu Erf Exp Gelu HardSigmoid HardSwish Identity IsNaN LeakyRelu Log Mish Neg Not "
    "Reciprocal Relu Selu Sigmoid Softplus Sqrt Swish Tanh"
)
_RULES: dict[str, _Rule] = {
    **dict.fromkeys(_UNARY.split(), _unary),
    **dict.fromkeys(["Add", "Clip", "Div", "Max", "Min", "Mul", "Pow", "Sub", "Where"], _broadcast),
    **dict.fromkeys(["LayerNormalization", "RMSNormalization"], _normalization),
    **dict.fromkeys(["ReduceMax", "ReduceMean", "ReduceMin", "ReduceSum"], _reduce),
    "Attention": _attention,
    "Concat": _concat,
    "MatMul": _matmul,
    "Reshape": _reshape,
    "Slice": _slice,
    "Softmax": _softmax,
    "Split": _split,
    "Transpose": _transpose,
}
