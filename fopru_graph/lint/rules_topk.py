"""Rules about TopK: the limit on K, the order of what it makes, and the precision of what it compares."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from fopru_graph.lint.graph import GraphView, axis_size, constants, upper_bound
from fopru_graph.lint.registry import Hit, rule
from fopru_graph.lint.targets import Target
from fopru_graph.shapes import attribute_int, dims

__all__ = ["most_selected"]

_HALF = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
_ELEMENTWISE = ("Cast", "Identity", "Neg", "Abs", "Add", "Sub", "Mul", "Div", "Mod")
# what lies between attention probabilities and the scores that are compared
_SCORE_PATH = (
    *_ELEMENTWISE,
    *("ReduceMean", "ReduceSum", "ReduceMax", "Slice", "Gather", "Squeeze", "Unsqueeze"),
    *("Reshape", "Transpose", "Concat", "Split"),
)


@rule("topk-unsorted", "TopK with sorted = 0", tensorrt="error", rtx="warning", ort="warning")
def topk_unsorted(view: GraphView, target: Target) -> Iterator[Hit]:
    for site in view.of("TopK"):
        if attribute_int(site.node, "sorted", 1) == 0:
            who = "the CUDA kernel refuses" if target.family == "ort" else "the parser documents no"
            yield Hit(f"{who} sorted = 0", "set sorted to 1", site)


@rule(
    "topk-limit", "TopK whose K is, or may become, more than the target takes", tensorrt="error", rtx="error"
)
def topk_limit(view: GraphView, target: Target) -> Iterator[Hit]:
    limit = target.topk_limit
    if limit is None:
        return
    fix = f"keep no more than {limit} elements: select per image or per tile"
    for site in view.of("TopK"):
        if len(site.node.inputs) < 2:
            continue
        fixed = constants(site.node.inputs[1])
        if fixed:
            if fixed[0] > limit:
                yield Hit(f"K is {fixed[0]}, at most {limit} is taken", fix, site)
            continue
        most = most_selected(site.node)
        if most is None or most > limit:
            among = "an unknown number of" if most is None else str(most)
            yield Hit(
                f"K is chosen at run time among {among} elements, and above {limit} the run fails",
                fix,
                site,
                "warning",
            )


@rule(
    "topk-beyond-axis", "TopK whose constant K exceeds the axis", tensorrt="error", rtx="error", ort="error"
)
def topk_beyond_axis(view: GraphView, target: Target) -> Iterator[Hit]:
    del target
    for site in view.of("TopK"):
        fixed = constants(site.node.inputs[1]) if len(site.node.inputs) > 1 else None
        if not fixed:
            continue
        size = axis_size(site.node.inputs[0], attribute_int(site.node, "axis", -1))
        if isinstance(size, int) and fixed[0] > size:
            yield Hit(f"K is {fixed[0]}, but the axis has {size} elements", f"keep no more than {size}", site)
        elif not isinstance(size, int) and fixed[0] > 1:
            yield Hit(
                f"K is {fixed[0]} whatever the axis '{size or '?'}' has, and a shorter one fails",
                "make K an input, or the axis fixed",
                site,
                "note",
            )


@rule(
    "half-scores",
    "float16 or bfloat16 scores behind a TopK",
    tensorrt="warning",
    rtx="warning",
    ort="warning",
)
def half_scores(view: GraphView, target: Target) -> Iterator[Hit]:
    del target
    fix = "repeat the scores in float32 from Q and K on, as pruning does"
    for site in view.of("TopK"):
        value = site.node.inputs[0]
        if value is not None and value.dtype in _HALF:
            yield Hit(
                f"it compares {value.dtype.name.lower()} numbers, of which many are equal: other tokens are "
                "kept than in float32",
                fix,
                site,
            )
            continue
        softmax = _half_softmax(value)
        if softmax is not None:
            yield Hit(
                f"its scores come from Softmax '{softmax.name}' in half precision: rounding breaks ties",
                fix,
                site,
            )


@rule("half-softmax", "Softmax in float16 or bfloat16", tensorrt="note", rtx="note", ort="note")
def half_softmax(view: GraphView, target: Target) -> Iterator[Hit]:
    del target
    found = [
        site
        for site in view.of("Softmax")
        if site.node.inputs[0] is not None and site.node.inputs[0].dtype in _HALF
    ]
    if found:
        others = f", and {len(found) - 1} more" if len(found) > 1 else ""
        yield Hit(
            f"Softmax is computed in half precision here{others}",
            "compare the features with float32; cast to float32 around it where they differ",
            found[0],
        )


def most_selected(node: ir.Node) -> int | None:
    """Greatest K that a TopK can be asked for: a bound of K itself, or the length of its axis."""
    if len(node.inputs) != 2:
        return None
    axis = attribute_int(node, "axis", -1)
    known = [upper_bound(node.inputs[1]), _axis_length(node.inputs[0], axis)]
    return min((number for number in known if number is not None), default=None)


def _axis_length(value: ir.Value | None, axis: int) -> int | None:
    """Length of an axis, or a bound of it: a TopK makes no more than it was given."""
    sizes = dims(value)
    if value is None or sizes is None or not -len(sizes) <= axis < len(sizes):
        return None
    size = sizes[axis]
    if isinstance(size, int):
        return size
    node = value.producer()
    if node is None or not node.inputs:
        return None
    if node.op_type == "TopK" and (attribute_int(node, "axis", -1) - axis) % len(sizes) == 0:
        return most_selected(node)
    if node.op_type in _ELEMENTWISE:
        same = [source for source in node.inputs if len(dims(source) or ()) == len(sizes)]
        return _axis_length(same[0], axis) if same else None
    return None


def _half_softmax(value: ir.Value | None) -> ir.Node | None:
    """The Softmax in half precision that scores come from; other operators end the search."""
    waiting, seen = [value], set[ir.Node]()
    while waiting:
        value = waiting.pop()
        node = value.producer() if value is not None else None
        if node is None or node in seen:
            continue
        seen.add(node)
        source = node.inputs[0] if node.inputs else None
        if node.op_type == "Softmax" and source is not None and source.dtype in _HALF:
            return node
        if node.op_type in _SCORE_PATH:
            waiting += list(node.inputs)
    return None
