"""What is in an encoder: attention layers, special tokens, weights, and whether pruning would work."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import onnx_ir as ir

from fopru_graph.api import load_graph, prune
from fopru_graph.attention import AttentionCore, NearMiss, find_cores, logits_product, upstream_nodes
from fopru_graph.errors import GraphError, first_cause
from fopru_graph.layers import number_layers
from fopru_graph.lineage import follow, row_offset
from fopru_graph.merging import looks_merged
from fopru_graph.options import PruneOptions
from fopru_graph.passes import PreparePass
from fopru_graph.passes.locate import features_output
from fopru_graph.report import PruneReport
from fopru_graph.shapes import Dim, attribute_int, dims, static_product
from fopru_graph.specials import special_rows
from fopru_graph.weights import external_tensors

__all__ = ["LOCATORS", "InspectReport", "Layer", "Miss", "Port", "inspect", "inspect_file", "ports"]

LOCATORS: Mapping[str, str] = MappingProxyType(
    {
        "scope": "the name scopes of torch's exporter",
        "name": "the names of nodes",
        "structure": "the order of attentions in the graph",
        "tensor": "the tensor you named",
        "": "nothing",
    }
)
"""What numbered the layers, in words; "" is for a graph without attention."""

_FLOAT32 = 4  # bytes
_DTYPES = {ir.DataType.FLOAT: "float32", ir.DataType.DOUBLE: "float64"}  # as numpy has it


@dataclass(frozen=True)
class Port:
    """An input or output of the graph; `dims` is None where not even the rank is known."""

    name: str
    dtype: str
    dims: tuple[Dim, ...] | None


@dataclass(frozen=True)
class Layer:
    """One attention.

    Attributes:
        number: as `PruneOptions.layer` takes it; None where it does not lead to the features.
        upstream: whether it leads to the features; None where they are not known.
        form: `softmax` or `attention_op`.
        node: name of the Softmax or Attention node.
        heads: H.
        queries, keys: rows and columns of the probabilities; names where they vary.
        dtype: of the probabilities, or of the operator's result.
        masked: whether a mask, or a bias, is added to its logits.
        score_bytes: of one image's probabilities in float32, None where their number varies.
        tap: tensor of the probabilities, or the operator's result, as `PruneOptions.tap` takes it.
    """

    number: int | None
    upstream: bool | None
    form: str
    node: str
    heads: Dim
    queries: Dim
    keys: Dim
    dtype: str
    masked: bool
    score_bytes: int | None
    tap: str


@dataclass(frozen=True)
class Miss:
    """A node that began to look like attention, and why it cannot be used."""

    op_type: str
    node: str
    reason: str


@dataclass(frozen=True)
class InspectReport:
    """What was found.

    Attributes:
        path: the file, "" for a model in memory.
        producer, opset, ir_version: of the file; opset 0 if the default domain is not imported.
        weight_bytes: of all weights, `external_bytes` of those in `weight_files` beside the graph.
        features: output that would be pruned, "" if it is not known which.
        locator: what numbers the layers, a key of `LOCATORS`; `locator_misses` why earlier ones did not.
        layers: every attention of the graph, in topological order; none of a graph whose shapes cannot be
            filled in (`verdict` says why).
        near_misses: nodes that look like attention, up to a point.
        fused: attentions that a runtime's optimiser has fused.
        special_tokens: leading rows of the deepest attention that are no patches; None: the graph does not
            tell.
        merge: s, if the deepest attention has s * s patches for each row of the features; None: it has not,
            or the sizes vary.
        prunable: whether pruning works; None if it was not tried.
        verdict: how it would be pruned, or the sentence that refuses it, or "".
        notes: of the pruning that was tried.
    """

    path: str
    producer: str
    opset: int
    ir_version: int
    weight_bytes: int
    external_bytes: int
    weight_files: tuple[str, ...]
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    features: str
    locator: str
    locator_misses: tuple[str, ...]
    layers: tuple[Layer, ...]
    near_misses: tuple[Miss, ...]
    fused: tuple[Miss, ...]
    special_tokens: int | None
    merge: int | None = None
    prunable: bool | None = None
    verdict: str = ""
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain types only, ready for JSON."""
        return {key: _plain(value) for key, value in dataclasses.asdict(self).items()}


def inspect(model: ir.Model, options: PruneOptions | None = None) -> InspectReport:
    """Look at an encoder in memory, which gets shapes filled in and local functions inlined.

    Whether it can be pruned is left open: trying would change it. `inspect_file` tries.

    Args:
        model: any ONNX model.
        options: only `features` is asked.
    """
    options = options or PruneOptions()
    weights = [value.const_value for value in model.graph.initializers.values()]
    external = external_tensors(model)
    prepared = _prepare(model)
    features = _features(model.graph, options.features) if prepared else None
    upstream = upstream_nodes(features) if features is not None else set()
    search = find_cores(model.graph if prepared else ())
    ours = [core for core in search.cores if features is None or core.node in upstream]
    numbering = number_layers(ours)
    numbers = dict(zip((core.node for core in ours), numbering.layers, strict=True))
    return InspectReport(
        path="",
        producer=" ".join(part for part in (model.producer_name, model.producer_version) if part),
        opset=model.graph.opset_imports.get("", 0),
        ir_version=model.ir_version,
        weight_bytes=_bytes(weights),
        external_bytes=_bytes(external),
        weight_files=tuple(sorted({str(tensor.location) for tensor in external})),
        inputs=ports(model.graph.inputs),
        outputs=ports(model.graph.outputs),
        features=str(features.name) if features is not None else "",
        locator=numbering.locator if ours else "",
        locator_misses=numbering.misses if ours else (),
        layers=tuple(
            _layer(core, numbers.get(core.node), core.node in upstream if features is not None else None)
            for core in search.cores
        ),
        near_misses=tuple(map(_near_miss, search.near_misses)),
        fused=tuple(map(_fused, search.fused)),
        special_tokens=_special(features, ours),
        merge=looks_merged(features, ours[-1]) if features is not None and ours else None,
    )


def inspect_file(path: str | os.PathLike[str], options: PruneOptions | None = None) -> InspectReport:
    """Look at an encoder and try to prune it; writes nothing, and a refusal is an answer, no error.

    Args:
        path: an ONNX file.
        options: how to prune it; `features` is also the output that is looked at.

    Raises:
        GraphFileError: the file or a weight file is missing or damaged.
    """
    report = inspect(load_graph(path), options)
    # Read again: the first model is prepared already, and a copy would share its tensors.
    prunable, verdict, notes = _attempt(load_graph(path), options or PruneOptions())
    return dataclasses.replace(report, path=str(Path(path)), prunable=prunable, verdict=verdict, notes=notes)


def ports(values: Iterable[ir.Value]) -> tuple[Port, ...]:
    """Inputs or outputs of a graph."""
    return tuple(Port(str(value.name), _dtype(value), dims(value)) for value in values)


def _plain(value: Any) -> Any:
    """Tuples as lists, at any depth."""
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    return [_plain(each) for each in value] if isinstance(value, list | tuple) else value


def _dtype(value: ir.Value) -> str:
    if value.dtype is None:
        return "?"
    return _DTYPES.get(value.dtype, value.dtype.name.lower())


def _prepare(model: ir.Model) -> bool:
    """Fill in shapes; False for a graph that cannot be read that far, and pruning says why."""
    try:
        PreparePass().run(model)
    except GraphError:
        return False
    return True


def _features(graph: ir.Graph, wanted: str | None) -> ir.Value | None:
    """The features output; None where it is not known, and pruning says why."""
    try:
        return features_output(graph, wanted)[0]
    except GraphError:
        return None


def _bytes(tensors: Iterable[ir.TensorProtocol | None]) -> int:
    """Of all that say what they hold: a damaged file may have a weight without a dtype."""
    return sum(
        tensor.nbytes for tensor in tensors if tensor is not None and tensor.dtype != ir.DataType.UNDEFINED
    )


def _attempt(model: ir.Model, options: PruneOptions) -> tuple[bool, str, tuple[str, ...]]:
    try:
        report: PruneReport = prune(model, options)
    except GraphError as error:
        return False, str(error), ()
    except Exception as error:  # whatever a damaged graph sets off, the rest of the table is still of use
        why = f"{type(error).__name__}: {first_cause(error)}"
        return False, f"the rewriter failed ({why}): this is a bug, report it with the graph", ()
    return True, f"{report.gather} gather: {report.gather_reason}", report.notes


def _layer(core: AttentionCore, number: int | None, upstream: bool | None) -> Layer:
    shape = dims(core.anchor) or ()
    if core.form == "softmax":
        heads, queries, keys = shape[1:4]
        masked = _masked(core.node.inputs[0])
    else:
        query, key = dims(core.node.inputs[0]) or (), dims(core.node.inputs[1]) or ()
        heads = query[1] if len(query) == 4 else attribute_int(core.node, "q_num_heads", 0)
        queries, keys = query[-2], key[-2]
        masked = len(core.node.inputs) > 3 and core.node.inputs[3] is not None
    elements = static_product((heads, queries, keys))
    return Layer(
        number=number,
        upstream=upstream,
        form=core.form,
        node=core.node.name or "",
        heads=heads,
        queries=queries,
        keys=keys,
        dtype=_dtype(core.anchor),
        masked=masked,
        score_bytes=None if elements is None else _FLOAT32 * elements,
        tap=str(core.anchor.name),
    )


def _masked(logits: ir.Value | None) -> bool:
    """Whether an Add or a Where stands between QK^T and Softmax."""
    product = logits_product(logits)
    while logits is not None and (node := logits.producer()) is not None and node is not product:
        if node.op_type in ("Add", "Where"):
            return True
        logits = next((value for value in node.inputs if logits_product(value) is product), None)
    return False


def _near_miss(miss: NearMiss) -> Miss:
    return Miss(miss.node.op_type, miss.node.name or "", miss.reason)


def _fused(node: ir.Node) -> Miss:
    return Miss(
        f"{node.domain}::{node.op_type}",
        node.name or "",
        "a runtime's optimiser fused it, and its probabilities are out of reach",
    )


def _special(features: ir.Value | None, cores: list[AttentionCore]) -> int | None:
    if features is None or not cores:
        return None
    lineage = follow(features, axis=1)
    dropped = row_offset(lineage, cores[-1].anchor, cores[-1].query_axis)
    return None if dropped is None else special_rows(lineage, dropped)
