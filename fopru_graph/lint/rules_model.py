"""Rules about the model as a whole: versions, operators the target lacks, names, weight files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import onnx_ir as ir

from fopru_graph.lint.dependence import SELECTING_OPS
from fopru_graph.lint.graph import GraphView
from fopru_graph.lint.registry import Hit, rule
from fopru_graph.lint.targets import OP_RELEASES, ORT_OPS, UNSUPPORTED_OPS, Target

__all__: list[str] = []

_REWRITES = {
    "Attention": "export with opset 20, which writes MatMul, Softmax, MatMul",
    "RotaryEmbedding": "export with opset 20, which writes Mul, Add, Slice and Concat",
    "RMSNormalization": "export with opset 20, which writes Pow, ReduceMean, Sqrt, Div and Mul",
    "TensorScatter": "export a cache that grows by Concat",
    "Swish": "export with opset 20, which writes Sigmoid and Mul",
}


@rule("opset", "opset outside the target's range", tensorrt="error", rtx="warning", ort="error")
def opset(view: GraphView, target: Target) -> Iterator[Hit]:
    found = view.opset
    allowed = f"{target.min_opset} to {target.max_opset} ({target.opset_source})"
    if found > target.max_opset:
        yield Hit(
            f"the graph has opset {found}, the range is {allowed}",
            f"export with opset {target.max_opset} or earlier",
            severity=None if target.opset_certain else "warning",
        )
    elif found < target.min_opset:
        yield Hit(
            f"the graph has opset {found}, the range is {allowed}",
            f"export with opset {target.min_opset} or later",
        )


@rule("ir-version", "IR version newer than the target loads", ort="error")
def ir_version(view: GraphView, target: Target) -> Iterator[Hit]:
    found = view.model.ir_version
    if target.max_ir is not None and found > target.max_ir:
        yield Hit(
            f"the file has IR version {found}, at most {target.max_ir} is loaded",
            f"save with IR version {target.max_ir} or earlier; opsets up to 24 need 11",
        )


@rule(
    "invalid-node",
    "node that is not what ONNX says of its operator",
    tensorrt="error",
    rtx="error",
    ort="error",
)
def invalid_node(view: GraphView, target: Target) -> Iterator[Hit]:
    del target
    for site in view.sites:
        if site.node in view.invalid:
            yield Hit(view.invalid[site.node], "export it again", site)


@rule("op-too-young", "operator that came to the parser in a later release", tensorrt="error", rtx="error")
def op_too_young(view: GraphView, target: Target) -> Iterator[Hit]:
    for site in view.sites:
        release = OP_RELEASES.get(site.node.op_type)
        named = site.standard or _is_tensorrt_op(site.node)
        if release is not None and named and target.before(*release):
            fix = _REWRITES.get(
                site.node.op_type, f"use TensorRT {_text(release)}, or write it with older operators"
            )
            yield Hit(
                f"the parser takes {site.node.op_type} from TensorRT {_text(release)} on, here it is "
                f"{_text(target.release)}",
                fix,
                site,
            )


@rule("op-unsupported", "operator that no TensorRT parser takes", tensorrt="error", rtx="error")
def op_unsupported(view: GraphView, target: Target) -> Iterator[Hit]:
    del target
    for site in view.of(*UNSUPPORTED_OPS):
        yield Hit(
            "the parser's table marks it as not supported", "write it with operators of that table", site
        )


@rule(
    "custom-domain",
    "operator of a domain that the target does not have",
    tensorrt="error",
    rtx="error",
    ort="error",
)
def custom_domain(view: GraphView, target: Target) -> Iterator[Hit]:
    for site in view.sites:
        node = site.node
        if site.standard and node.op_type in ORT_OPS and target.family != "ort":
            message = "it is an operator of ONNX Runtime, which ONNX and the parser do not have"
            yield Hit(message, "prune and save before a runtime fuses the graph", site)
            continue
        known = site.standard or node.domain in target.domains or view.is_local(node)
        if known or (target.family != "ort" and _is_tensorrt_op(node)):
            continue
        if target.family == "ort":
            message = f"ONNX Runtime has no operators of domain '{node.domain}' of its own"
            fix = "register the library that has them, or export without them"
        elif target.family == "tensorrt":
            message = f"'{node.domain}' is no domain of the parser: without a plugin of that name it stops"
            fix = "prune and save before a runtime fuses the graph, or register the plugin"
        else:
            message = f"'{node.domain}' is no domain of the parser, which aborts the process on a plugin"
            fix = "prune and save before a runtime fuses the graph"
        yield Hit(message, fix, site)


@rule(
    "selects-by-data",
    "NonZero, Compress or Unique: as many elements as the data says",
    tensorrt="error",
    rtx="error",
    ort="note",
)
def selects_by_data(view: GraphView, target: Target) -> Iterator[Hit]:
    fix = "select with TopK and Gather, the number kept an input"
    for site in view.of(*SELECTING_OPS):
        if site.node.op_type == "NonZero" and target.family != "tensorrt-rtx":
            source = site.node.inputs[0]
            if source is not None and view.depends(source).kind == "constant":
                continue  # its size is known
        if target.family == "ort":
            yield Hit("the size of the result is known only while running: no CUDA graph", fix, site)
        elif site.node.op_type == "NonZero" and target.family == "tensorrt":
            yield Hit(
                "the size of the result is known only while running: the engine needs an output "
                "allocator and takes no CUDA graph; the table has it for floats only",
                fix,
                site,
                "warning",
            )
        elif site.node.op_type == "NonZero":
            yield Hit("NonZero is a plugin there, and the parser refuses it", fix, site)
        else:
            yield Hit("the parser's table marks it as not supported", fix, site)


@rule("dynamic-quantize", "DynamicQuantizeLinear", tensorrt="error", rtx="error")
def dynamic_quantize(view: GraphView, target: Target) -> Iterator[Hit]:
    del target
    for site in view.of("DynamicQuantizeLinear"):
        yield Hit(
            "the parser does not take it",
            "quantise with fixed scales: QuantizeLinear and DequantizeLinear",
            site,
        )


@rule("duplicate-names", "two tensors of one name", tensorrt="error", rtx="error", ort="error")
def duplicate_names(view: GraphView, target: Target) -> Iterator[Hit]:
    del target
    outputs = Counter(str(value.name) for value in view.model.graph.outputs)
    made: Counter[tuple[str, str]] = Counter()
    for site in view.sites:
        made.update((site.where, str(value.name)) for value in site.node.outputs if value.name)
    names = {name for name, times in outputs.items() if times > 1}
    names |= {name for (_, name), times in made.items() if times > 1}
    for name in sorted(names):
        yield Hit(f"'{name}' is the name of two tensors, and one hides the other", "give each its own name")


@rule(
    "external-data",
    "weight file missing, outside the folder, or of another graph",
    tensorrt="error",
    rtx="error",
    ort="error",
)
def external_data(view: GraphView, target: Target) -> Iterator[Hit]:
    del target
    files: dict[str, ir.ExternalTensor] = {}
    for _, tensor in view.tensors:
        if isinstance(tensor, ir.ExternalTensor):
            files.setdefault(str(tensor.location), tensor)
    for location, tensor in sorted(files.items()):
        if PurePosixPath(location).is_absolute() or ".." in PurePosixPath(location).parts:
            yield Hit(
                f"the weights of '{tensor.name}' are at '{location}', outside the folder of the graph",
                "save the graph beside its weights",
            )
        elif not Path(tensor.path).is_file():
            yield Hit(f"weight file '{location}' is missing", "copy it beside the graph")
        elif view.path is not None and not location.startswith(view.path.stem):
            yield Hit(
                f"the weights are in '{location}', which is named after another graph",
                "ship both together, and keep that file when the other graph is written anew",
                severity="note",
            )


def _is_tensorrt_op(node: ir.Node) -> bool:
    """Whether the parser has a schema of its own for an operator, whatever domain it is written in."""
    return node.op_type.startswith("TRT_")


def _text(release: tuple[int, int] | None) -> str:
    return "" if release is None else f"{release[0]}.{release[1]}"
