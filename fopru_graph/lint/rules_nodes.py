"""Rules about shapes that depend on data, element types, axes that must be constant, and control flow."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from fopru_graph.lint.dependence import SHAPE_INPUTS
from fopru_graph.lint.graph import GraphView, Site, axis_size, constants
from fopru_graph.lint.registry import Hit, rule
from fopru_graph.lint.targets import DTYPES, INTEGER_MATH_REFUSED, Release, Target
from fopru_graph.shapes import attribute_int, dims

__all__: list[str] = []

_INTEGERS = (ir.DataType.INT32, ir.DataType.INT64)
_UINT8_TAKEN = ("Cast", "CastLike", "QuantizeLinear", "DequantizeLinear", "Identity")
_REDUCTIONS = (
    *("ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax"),
    *("ReduceMean", "ReduceMin", "ReduceProd", "ReduceSum", "ReduceSumSquare"),
)
# operator -> (input, its name, first release whose parser takes a value that is no constant, None: none does)
_CONSTANT_INPUTS: dict[str, tuple[int, str, Release | None]] = {
    **dict.fromkeys(_REDUCTIONS, (1, "axes", None)),
    "Squeeze": (1, "axes", None),
    "Unsqueeze": (1, "axes", None),
    "OneHot": (1, "depth", None),
    "Pad": (3, "axes", (10, 4)),
    "Slice": (3, "axes", (10, 3)),
    "CumSum": (1, "axis", (10, 8)),
}


@rule("shape-from-data", "a shape that depends on the data", tensorrt="warning", rtx="warning", ort="note")
def shape_from_data(view: GraphView, target: Target) -> Iterator[Hit]:
    for site in view.of(*SHAPE_INPUTS):
        causes = [view.depends(value) for value in _inputs(site.node, SHAPE_INPUTS[site.node.op_type])]
        cause = next((each for each in causes if each.kind == "data" and not each.counted), None)
        if cause is not None:
            price = (
                "no CUDA graph"
                if target.family == "ort"
                else "an output allocator is needed, and no CUDA graph"
            )
            yield Hit(
                f"the size of the result hangs on the content of '{cause.source}', known only while "
                f"running: {price}",
                "take sizes from Shape, or from an integer input of rank 0 or 1",
                site,
            )


@rule("constant-input", "axes or depth that are not constant", tensorrt="error", rtx="error")
def constant_input(view: GraphView, target: Target) -> Iterator[Hit]:
    for site in view.of(*_CONSTANT_INPUTS):
        position, name, release = _CONSTANT_INPUTS[site.node.op_type]
        values = _inputs(site.node, (position,))
        if not values or view.depends(values[0]).kind == "constant":
            continue
        if release is not None and not target.before(*release):
            continue
        since = f" before TensorRT {release[0]}.{release[1]}" if release is not None else ""
        yield Hit(f"the parser takes {name} only as a constant{since}", f"make {name} a constant", site)


@rule("dtype", "element type that the parser does not know", tensorrt="error", rtx="error")
def dtype(view: GraphView, target: Target) -> Iterator[Hit]:
    seen: set[ir.Value] = set()
    doubles: list[Site] = []
    for given in view.model.graph.inputs:
        seen.add(given)
        if given.dtype is not None and _unknown(given.dtype, target):
            yield Hit(f"input '{given.name}' is {_name(given.dtype)}, which the parser does not know", _CAST)
    for site in view.sites:
        for value in (*site.node.inputs, *site.node.outputs):
            if value is None or value in seen or value.dtype is None:
                continue
            seen.add(value)
            if _unknown(value.dtype, target):
                yield Hit(
                    f"'{value.name}' is {_name(value.dtype)}, which the parser does not know", _CAST, site
                )
            elif value.dtype == ir.DataType.DOUBLE:
                doubles.append(site)
        if (
            ir.DataType.UINT8 in _dtypes(site.node)
            and site.standard
            and site.node.op_type not in _UINT8_TAKEN
        ):
            yield Hit("the parser takes uint8 as input and output of the graph only", _CAST, site)
    if doubles:
        yield Hit(
            "the graph holds float64, which the parser turns into float32",
            "export in float32",
            doubles[0],
            "warning",
        )


_CAST = "cast to float32, int32 or int64 before it"


@rule(
    "integer-math",
    "matrix products of integers, Pow of integers, CumSum of integers",
    tensorrt="error",
    rtx="error",
)
def integer_math(view: GraphView, target: Target) -> Iterator[Hit]:
    fix = "cast to float32 before it"
    for site in view.of(*INTEGER_MATH_REFUSED, "CumSum", "Pow"):
        first, *others = [value.dtype if value is not None else None for value in site.node.inputs]
        operator = site.node.op_type
        if operator == "Pow":
            if first in _INTEGERS and target.before(10, 12):
                yield Hit("the parser takes an integer base from TensorRT 10.12 on", fix, site)
            elif others and others[0] in _INTEGERS and target.before(10, 8):
                yield Hit(
                    "the parser takes an integer exponent from TensorRT 10.8 on", "make it a float", site
                )
        elif operator == "CumSum":
            if first in _INTEGERS and target.family == "tensorrt":
                yield Hit("the parser's table has CumSum for floats only", fix, site, "warning")
        elif first in _INTEGERS:
            yield Hit(f"the parser refuses {_name(first)} here", fix, site)


@rule("scatter-reduction", "ScatterND or ScatterElements with a reduction", tensorrt="error", rtx="error")
def scatter_reduction(view: GraphView, target: Target) -> Iterator[Hit]:
    for site in view.of("ScatterND", "ScatterElements"):
        attribute = site.node.attributes.get("reduction")
        if attribute is None:
            continue
        reduction = attribute.as_string()
        if site.node.op_type == "ScatterND" and reduction == "none":
            if target.before(10, 9):  # the importer looks for the attribute, not for its value [doc]
                yield Hit(
                    "before TensorRT 10.9 the parser refuses the attribute whatever it says",
                    "leave the attribute reduction out: none is its default",
                    site,
                )
        elif reduction != "none" and (site.node.op_type == "ScatterND" or target.family == "tensorrt-rtx"):
            yield Hit(
                f"the parser takes no reduction, it is '{reduction}'",
                "gather instead, or reduce over an axis",
                site,
            )


@rule("loop-outputs", "Loop that collects an unknown number of results", tensorrt="error", rtx="error")
def loop_outputs(view: GraphView, target: Target) -> Iterator[Hit]:
    fix = "give the Loop a constant trip count and no condition, or unroll it"
    for site in view.of("Loop"):
        trips, node = site.node.inputs[0], site.node
        carried = len(node.inputs) - 2
        if len(node.outputs) <= carried:
            continue
        if trips is None:
            yield Hit("it collects results, but has no trip count", fix, site)
        elif view.depends(trips).kind != "constant" or not _always_goes_on(node):
            yield Hit(
                "it collects results, and how many is not constant, which the parser documents as refused",
                fix,
                site,
                None if target.family == "tensorrt" else "warning",
            )


@rule("if-names", "branches of If whose outputs have the same name", tensorrt="warning")
def if_names(view: GraphView, target: Target) -> Iterator[Hit]:
    del target
    for site in view.of("If"):
        bodies = [attribute.as_graph() for attribute in site.node.attributes.values()]
        names = [{str(value.name) for value in body.outputs} for body in bodies]
        shared = set.intersection(*names) if names else set()
        if shared:
            yield Hit(
                f"both branches call an output '{min(shared)}', the parser documents different names",
                "rename one of them",
                site,
            )


@rule(
    "resize-antialias",
    "Resize with antialiasing, or that keeps the aspect ratio",
    tensorrt="error",
    rtx="error",
)
def resize_antialias(view: GraphView, target: Target) -> Iterator[Hit]:
    del target
    for site in view.of("Resize"):
        policy = site.node.attributes.get("keep_aspect_ratio_policy")
        if attribute_int(site.node, "antialias", 0):
            yield Hit("the parser takes no antialiasing", "resize without it, or on the host", site)
        elif policy is not None and policy.as_string() != "stretch":
            yield Hit(f"the parser takes no policy '{policy.as_string()}'", "give the sizes in full", site)


@rule("slice-axes", "Slice without axes, of fewer axes than there are", tensorrt="error", rtx="error")
def slice_axes(view: GraphView, target: Target) -> Iterator[Hit]:
    del target
    for site in view.of("Slice"):
        sizes = dims(site.node.inputs[0])
        if site.opset < 10 or sizes is None or _inputs(site.node, (3,)):
            continue
        starts = axis_size(site.node.inputs[1], 0)
        if isinstance(starts, int) and starts != len(sizes):
            yield Hit(
                f"it has no axes and {starts} starts for {len(sizes)} dims, the parser takes one for each",
                "name the axes",
                site,
            )


@rule(
    "gather-range",
    "Gather with a constant index beyond the axis",
    tensorrt="error",
    rtx="error",
    ort="error",
)
def gather_range(view: GraphView, target: Target) -> Iterator[Hit]:
    del target
    for site in view.of("Gather"):
        numbers = constants(site.node.inputs[1]) or []
        size = axis_size(site.node.inputs[0], attribute_int(site.node, "axis", 0))
        wrong = [at for at in numbers if isinstance(size, int) and not -size <= at < size]
        if wrong:
            yield Hit(
                f"index {wrong[0]} is beyond the axis of {size}, and no build finds it", "correct it", site
            )


@rule("gathernd-capture", "GatherND", ort="note")
def gathernd_capture(view: GraphView, target: Target) -> Iterator[Hit]:
    del target
    for site in view.of("GatherND"):
        yield Hit(
            "on CUDA it keeps the run from being captured as a CUDA graph",
            "use Gather over one axis",
            site,
        )


def _inputs(node: ir.Node, positions: tuple[int, ...]) -> list[ir.Value]:
    """The inputs at some positions that are given."""
    values = [node.inputs[at] for at in positions if at < len(node.inputs)]
    return [value for value in values if value is not None]


def _dtypes(node: ir.Node) -> list[ir.DataType | None]:
    return [value.dtype for value in node.inputs if value is not None]


def _unknown(found: ir.DataType, target: Target) -> bool:
    return found not in DTYPES or target.before(*DTYPES[found])


def _name(found: ir.DataType | None) -> str:
    return found.name.lower() if found is not None else "unknown"


def _always_goes_on(loop: ir.Node) -> bool:
    """Whether the condition of a Loop is what it was before: passed on, or a constant."""
    body = loop.attributes["body"].as_graph()
    value: ir.Value | None = body.outputs[0]
    while value is not None:
        if value is body.inputs[1] or ir.convenience.get_const_tensor(value) is not None:
            return True
        node = value.producer()
        if node is None or node.op_type not in ("Identity", "Cast"):
            return False
        value = node.inputs[0]
    return False
