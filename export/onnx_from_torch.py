"""One torch module → one ONNX graph with the names, dtypes and axes of its contract, weights in a file
beside it.

Peak memory is a feature here. Three things keep it near one copy of the weights: initializers are the torch
tensors themselves, transposed and widened weights are computed one at a time while they are written, and
weights go straight to disk.
"""

from __future__ import annotations

import io
import logging
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch.utils import _pytree as pytree

from calib.precision.widened import Widened, fold_casts, write_as_casts
from export.decoder.tied import read_from_other_graph
from export.errors import TraceError
from export.families.base import Subgraph
from export.onnx_names import name_graph
from export.stored_weights import weight_names
from runtime.contract import GraphContract

__all__ = ["GraphStats", "quiet_exporter", "write_lowered", "write_onnx_from_torch"]

# Where a node came from is worth keeping (the rewriter finds layers by it); Python stack traces of the
# machine that
# exported are not.
_KEPT_METADATA = ("pkg.torch.onnx.name_scopes", "pkg.torch.onnx.class_hierarchy")
_IR_VERSION = 10  # opset 20..23; the oldest that has both
_INLINE_BYTES = 256  # smaller constants stay in the graph file, where shape inference sees them
_NOISY_LOGGERS = ("torch.onnx", "torch.export", "torch.fx", "onnxscript", "onnx_ir")


@dataclass(frozen=True)
class GraphStats:
    """Size of one written graph; `weight_bytes` is its data file."""

    nodes: int
    opset: int
    weight_bytes: int


def write_onnx_from_torch(graph: Subgraph, target: Path, opset: int, *, narrow: bool = False) -> GraphStats:
    """Trace a module and write `target` (`x.onnx`) with its weights in `x.onnx_data`.

    Args:
        graph: the module is in eval mode, its flattened inputs and outputs are those of the contract, in
            order; every named axis of the example inputs must have a size above 1, or torch takes it for a
            constant. String dims of the contract become dynamic axes of that name.
        target: file to write; the folder exists, with the files of the graphs that `graph.stored` names.
        opset: ONNX opset to target.
        narrow: write matrices that the model keeps in 16 bits as they are, with a Cast, for a graph that
            `calib.precision` will convert; else all weights are float32.

    Raises:
        TraceError: torch cannot trace the module, or what comes out is not the contract.
    """
    module, args, contract = graph.module, graph.args, graph.contract
    leaves, structure = pytree.tree_flatten(args)
    axes = _dynamic_axes(contract)
    if len(leaves) != len(axes):
        raise TraceError(
            f"{type(module).__name__} got {len(leaves)} example inputs for {len(axes)} contract inputs"
        )
    try:
        with torch.no_grad(), quiet_exporter():
            # Traced here and not inside torch.onnx.export, which on failure tries three more ways and prints
            # each.
            traced = torch.export.export(
                module, args, dynamic_shapes=pytree.tree_unflatten(axes, structure), strict=False
            )
            # Optimised below, after the weights have been made lazy.
            program = torch.onnx.export(traced, opset_version=opset, optimize=False, verbose=False)
            assert program is not None  # it is None with dynamo=False only
            for weight in graph.stored:
                read_from_other_graph(program.model, weight, target.parent)
            if fold_casts(program.model):
                _put_first(program.model.graph, weight_names(module))
            transpose_weights_lazily(program.model)
            program.optimize()
    except (MemoryError, TraceError):
        raise
    except Exception as error:  # torch.export fails with dozens of types; the reason is in the first line
        raise TraceError(
            f"torch cannot export {type(module).__name__} ({_first_line(error)}): this architecture needs a "
            "wrapper of its own, please report it with the checkpoint's config.json"
        ) from error
    model = program.model
    name_graph(model, contract)
    _strip_metadata(model, target.stem)
    if narrow:
        write_as_casts(model)
    data = target.with_name(target.name + "_data")
    _store_weights(model, data)
    ir.save(model, target)
    weights = data.stat().st_size if data.exists() else 0
    return _stats(model, weights)


def write_lowered(traced: Path, target: Path, lower: Callable[[ir.Model], None]) -> GraphStats:
    """Write `target` from a traced file beside it, with `lower` applied; the weights stay where they are."""
    model = ir.load(traced)
    lower(model)
    model.graph.name = target.stem
    ir.save(model, target)
    return _stats(model, 0)


def _stats(model: ir.Model, weight_bytes: int) -> GraphStats:
    return GraphStats(sum(1 for _ in model.graph.all_nodes()), model.opset_imports[""], weight_bytes)


def _store_weights(model: ir.Model, data: Path) -> None:
    """Move all weights but small ones, and those that are in a file already, to `data`."""
    own = [
        value
        for value in model.graph.initializers.values()
        if value.const_value is not None
        and not isinstance(value.const_value, ir.ExternalTensor)
        and value.const_value.nbytes > _INLINE_BYTES
    ]
    tensors = [value.const_value for value in own if value.const_value is not None]
    if not tensors:
        return
    for value, stored in zip(
        own, ir.external_data.convert_tensors_to_external(tensors, data.parent, data.name), strict=True
    ):
        value.const_value = stored


def _dynamic_axes(contract: GraphContract) -> list[dict[int, Any]]:
    """Per input: axis → torch dimension; axes of one name are one dimension, so no graph compares them."""
    names = Counter(dim for spec in contract.inputs for dim in spec.shape if isinstance(dim, str))
    # A name used once may still depend on others (total = past + seq), which torch must find out by itself.
    dims = {
        name: torch.export.Dim(name) if count > 1 else torch.export.Dim.DYNAMIC
        for name, count in names.items()
    }
    return [
        {axis: dims[dim] for axis, dim in enumerate(spec.shape) if isinstance(dim, str)}
        for spec in contract.inputs
    ]


def transpose_weights_lazily(model: ir.Model) -> int:
    """Replace every `Transpose(weight)` by a weight that is transposed when it is written; returns how many.

    A linear layer is exported as a Transpose of its weight and a MatMul. Folding it eagerly, as the
    optimiser does, holds a second copy of all weights; leaving it makes every runtime fold it, once per
    start.
    """
    changed = 0
    for node in list(model.graph):
        source = node.inputs[0] if node.op_type == "Transpose" and node.domain == "" else None
        if source is None or not source.is_initializer() or source.const_value is None:
            continue
        order = [int(axis) for axis in node.attributes.get_ints("perm")]
        weight = source.const_value
        folded = ir.Value(
            name=f"{source.name}_transposed_{changed}",
            const_value=_transposed(weight, order),
            type=ir.TensorType(weight.dtype),
            shape=ir.Shape([weight.shape.numpy()[axis] for axis in order]),
        )
        model.graph.register_initializer(folded)
        ir.convenience.replace_all_uses_with(node.outputs[0], folded)
        model.graph.remove(node, safe=True)
        changed += 1
    return changed


def _put_first(graph: ir.Graph, names: list[str]) -> None:
    """Order initializers: what a module keeps in 16 bits is no parameter, and would come last."""
    known = set(names)
    rest = [name for name in graph.initializers if name not in known]
    values = [graph.initializers.pop(name) for name in (*names, *rest) if name in graph.initializers]
    for value in values:
        graph.register_initializer(value)


def _transposed(weight: ir.TensorProtocol, order: list[int]) -> ir.LazyTensor:
    if isinstance(weight, Widened):
        return Widened(_transposed(weight.source, order))

    def evaluate() -> ir.TensorProtocol:
        return ir.Tensor(np.ascontiguousarray(weight.numpy().transpose(order)))

    return ir.LazyTensor(
        evaluate,
        dtype=weight.dtype,
        shape=ir.Shape([weight.shape.numpy()[axis] for axis in order]),
        name=weight.name,
        cache=False,
    )


def _strip_metadata(model: ir.Model, name: str) -> None:
    for node in model.graph.all_nodes():
        for key in [key for key in node.metadata_props if key not in _KEPT_METADATA]:
            del node.metadata_props[key]
        for output in node.outputs:
            output.metadata_props.clear()
    for value in (*model.graph.inputs, *model.graph.initializers.values()):
        value.metadata_props.clear()
    model.metadata_props.clear()
    model.graph.metadata_props.clear()
    model.graph.name = name
    model.producer_name = "fopru-edge"
    model.producer_version = None
    model.ir_version = _IR_VERSION


def _first_line(error: Exception) -> str:
    cause = error.__cause__ or error
    text = str(cause).strip() or type(cause).__name__
    return text.splitlines()[0][:200]


@contextmanager
def quiet_exporter() -> Iterator[None]:
    """Keep the exporters' own remarks (no torchvision, deprecated pytree calls) off the user's terminal."""
    levels = {name: logging.getLogger(name).level for name in _NOISY_LOGGERS}
    for name in _NOISY_LOGGERS:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            # Torch warns about its own calls here, and prints whole graphs when tracing fails; what a user
            # needs of it is
            # in the error.
            warnings.simplefilter("ignore")
            yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
