"""What is in an encoder: attention layers, special tokens, and whether pruning would work."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx_ir as ir

from fopru_graph.api import load_graph, prune
from fopru_graph.attention import AttentionCore, find_cores, logits_product, upstream_nodes
from fopru_graph.errors import GraphError, first_cause
from fopru_graph.layers import number_layers
from fopru_graph.lineage import follow, row_offset
from fopru_graph.options import PruneOptions
from fopru_graph.passes import PreparePass
from fopru_graph.passes.locate import features_output
from fopru_graph.shapes import Dim, attribute_int, dims, static_product
from fopru_graph.specials import special_rows
from fopru_graph.weights import external_tensors

__all__ = ["InspectReport", "Layer", "Miss", "Port", "inspect_file"]

_FLOAT = 4  # bytes


@dataclass(frozen=True)
class Port:
    """An input or output of the graph; `dims` None: not even its rank is known."""

    name: str
    dtype: str
    dims: tuple[Dim, ...] | None


@dataclass(frozen=True)
class Layer:
    """One attention.

    Attributes:
        number: as `--layer` takes it.
        form: `softmax` or `attention_op`.
        queries, keys: a name where they vary.
        masked: whether something is added to, or chosen instead of, its logits.
        probability_bytes: float32 probabilities of one image, None where their number varies.
        tap: name of the tensor of probabilities, or of the operator's result.
    """

    number: int
    form: str
    node: str
    heads: Dim
    queries: Dim
    keys: Dim
    dtype: str
    masked: bool
    probability_bytes: int | None
    tap: str


@dataclass(frozen=True)
class Miss:
    """A node that began to look like attention, and why it is none."""

    op_type: str
    node: str
    reason: str


@dataclass(frozen=True)
class InspectReport:
    """What was found.

    Attributes:
        features: the output that would be pruned, "" if none is told.
        locator: what numbered the layers; `locator_misses` why earlier locators did not.
        special_tokens: leading rows of the deepest attention that are no patches; None: not told.
        prunable: whether pruning with defaults works; `verdict` how, or why not.
    """

    path: str
    producer: str
    opset: int
    ir_version: int
    weight_bytes: int
    external_bytes: int
    weight_files: int
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    features: str
    locator: str
    locator_misses: tuple[str, ...]
    layers: tuple[Layer, ...]
    near_misses: tuple[Miss, ...]
    special_tokens: int | None
    prunable: bool
    verdict: str

    def to_dict(self) -> dict[str, Any]:
        """Plain types only, ready for JSON."""
        plain = dataclasses.asdict(self)
        return {key: list(value) if isinstance(value, tuple) else value for key, value in plain.items()}


def inspect_file(path: str | os.PathLike[str], features: str | None = None) -> InspectReport:
    """Look at an encoder; writes nothing, and does not fail on a graph that cannot be pruned.

    Args:
        path: an ONNX file.
        features: output that would be pruned; None: as `PruneOptions.features`.

    Raises:
        GraphFileError: the file or a weight file is missing or damaged.
    """
    model = load_graph(path)
    inputs, outputs = _ports(model.graph.inputs), _ports(model.graph.outputs)
    weights = [
        value.const_value for value in model.graph.initializers.values() if value.const_value is not None
    ]
    external = external_tensors(model)
    prunable, verdict = _dry_run(path, features)
    value, found = _prepared(model, features)
    upstream = upstream_nodes(value) if value is not None else None
    search = find_cores(node for node in model.graph if upstream is None or node in upstream)
    numbering = number_layers(search.cores)
    misses = [Miss(miss.node.op_type, miss.node.name or "", miss.reason) for miss in search.near_misses]
    misses += [
        Miss(
            f"{node.domain}::{node.op_type}",
            node.name or "",
            "it is fused: its probabilities are out of reach",
        )
        for node in search.fused
    ]
    return InspectReport(
        path=str(Path(path)),
        producer=" ".join(part for part in (model.producer_name, model.producer_version) if part),
        opset=model.graph.opset_imports.get("", 0),
        ir_version=model.ir_version,
        weight_bytes=sum(tensor.nbytes for tensor in weights),
        external_bytes=sum(tensor.nbytes for tensor in external),
        weight_files=len({str(tensor.location) for tensor in external}),
        inputs=inputs,
        outputs=outputs,
        features=found,
        locator=numbering.locator if search.cores else "",
        locator_misses=numbering.misses if search.cores else (),
        layers=tuple(map(_layer, search.cores, numbering.layers)),
        near_misses=tuple(misses),
        special_tokens=_special(value, search.cores),
        prunable=prunable,
        verdict=verdict,
    )


def _ports(values: Sequence[ir.Value]) -> tuple[Port, ...]:
    return tuple(Port(str(value.name), _dtype(value), dims(value)) for value in values)


def _dtype(value: ir.Value) -> str:
    return value.dtype.name.lower() if value.dtype is not None else "?"


def _prepared(model: ir.Model, features: str | None) -> tuple[ir.Value | None, str]:
    """The features output and its name, once shapes are filled in; (None, "") where none is told."""
    try:
        PreparePass().run(model)
        value, _ = features_output(model.graph, features)
    except GraphError:  # the verdict says why
        return None, ""
    return value, str(value.name)


def _dry_run(path: str | os.PathLike[str], features: str | None) -> tuple[bool, str]:
    """Prune a model of its own: tensors would be shared with a copy."""
    try:
        report = prune(load_graph(path), PruneOptions(features=features))
    except GraphError as error:
        return False, str(error)
    except Exception as error:
        return False, f"the rewriter failed ({type(error).__name__}: {first_cause(error)}): please report it"
    return True, f"gather {report.gather}: {report.gather_reason}"


def _layer(core: AttentionCore, number: int) -> Layer:
    operator = core.form == "attention_op"
    query = dims(core.node.inputs[0]) or ()
    shape = dims(core.anchor) or ()
    if operator:
        heads: Dim = query[1] if len(query) == 4 else attribute_int(core.node, "q_num_heads", 0)
        queries, keys = query[-2], (dims(core.node.inputs[1]) or (None, None))[-2]
        masked = len(core.node.inputs) > 3 and core.node.inputs[3] is not None
    else:
        heads, queries, keys = shape[1:4] if len(shape) == 4 else (None, None, None)
        masked = _has_mask(core.node.inputs[0])
    size = static_product((heads, queries, keys))
    return Layer(
        number=number,
        form=core.form,
        node=core.node.name or "",
        heads=heads,
        queries=queries,
        keys=keys,
        dtype=_dtype(core.anchor),
        masked=masked,
        probability_bytes=None if size is None else _FLOAT * size,
        tap=str(core.anchor.name),
    )


def _has_mask(logits: ir.Value | None) -> bool:
    """Whether an Add or a Where stands between QK^T and Softmax."""
    product = logits_product(logits)
    while logits is not None and product is not None:
        node = logits.producer()
        if node is None or node is product:
            return False
        if node.op_type in ("Add", "Where"):
            return True
        logits = next((value for value in node.inputs if logits_product(value) is product), None)
    return False


def _special(features: ir.Value | None, cores: tuple[AttentionCore, ...]) -> int | None:
    if features is None or not cores:
        return None
    lineage = follow(features, axis=1)
    dropped = row_offset(lineage, cores[-1].anchor, cores[-1].query_axis)
    return None if dropped is None else special_rows(lineage, dropped)
