"""Twins of graphs for a processor without kernels for them: bfloat16, and weights in int4 for TensorRT.

ONNX Runtime's CPU provider multiplies no bfloat16. What a GPU computes is near to this: it reads numbers of
8 bits, sums products in float32 and rounds the sum. So each operator runs in float32 on rounded inputs, and
what it makes is rounded by two Casts. The order of sums stays this machine's own.

`trt::TRT_INT4DequantizeLinear`, which stands for DequantizeLinear in graphs before opset 21, is renamed. ONNX
Runtime fuses the standard operator and the product behind it, and rounds activations to 8 bits there, which
TensorRT does not; a weight of three axes is in the way of that. Where memory allows, the weights are written
out instead (`calib.precision.unpacked`), the same numbers in an eighth of the time.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import onnx_ir as ir

from calib.precision.qdq import INT4_OPSET, TENSORRT_DOMAIN
from calib.precision.unpacked import fits_unpacked, int4_nodes, unpack_int4
from calib.precision.weight_file import WeightFile
from runtime.bundle import MANIFEST_FILE
from runtime.contract import TensorSpec
from runtime.dtypes import BFLOAT16
from runtime.manifest import DecoderInfo, FileInfo, Manifest

__all__ = [
    "TWIN_NOTE",
    "emulate_bfloat16",
    "emulate_int4",
    "emulated_decoder",
    "emulated_manifest",
    "runnable_copy",
]

TWIN_NOTE = (
    "the decoder was compared through its twin for ONNX Runtime: DequantizeLinear of opset 21 in place of "
    "TRT_INT4DequantizeLinear, the same integers and scales, products in float16"
)

_FULL, _BRAIN = ir.DataType.FLOAT, ir.DataType.BFLOAT16
# These hand on numbers that are rounded already.
_MOVES = (
    *("Reshape", "Transpose", "Slice", "Split", "Concat", "Squeeze", "Unsqueeze", "Expand", "Flatten"),
    *("Gather", "GatherElements", "GatherND", "Identity", "Pad", "Tile", "Where"),
)


def emulate_bfloat16(model: ir.Model) -> int:
    """Change a graph in place; weights stay in bfloat16, inputs and outputs become float32.

    Returns:
        Values that are rounded; 0 where nothing is computed in bfloat16.
    """
    graph, rounded = model.graph, 0
    for value in [*graph.inputs, *graph.initializers.values()]:
        if value.dtype != _BRAIN:
            continue
        if value.is_initializer():
            _widen(graph, value)
        else:
            value.type = ir.TensorType(_FULL)
    for node in list(graph):
        for value in node.outputs:
            if value.dtype != _BRAIN:
                continue
            value.type = ir.TensorType(_FULL)
            if node.op_type == "Cast":
                node.attributes["to"] = ir.AttrInt64("to", _FULL)
            if node.op_type not in _MOVES:
                _round(graph, value)
                rounded += 1
    return rounded


def emulate_int4(model: ir.Model) -> int:
    """Let weights in int4 be dequantised by the standard operator, as [1, K, N] where they were [K, N]; in
    place.

    The opset becomes 21 where it is less: nothing else in a decoder differs from 20 but the types that
    operators take.

    Returns:
        Weights.
    """
    nodes = int4_nodes(model)
    for node in nodes:
        node.domain, node.op_type = "", "DequantizeLinear"
        made = node.outputs[0]
        if made.shape is None or any(user.op_type != "MatMul" for user in made.consumers()):
            continue
        for value in node.inputs[:2]:
            assert value is not None
            _add_axis(value)
        node.attributes["axis"] = ir.AttrInt64("axis", node.attributes.get_int("axis", 1) + 1)
        made.shape = ir.Shape([1, *made.shape])
    if nodes:
        model.opset_imports[""] = max(model.opset_imports[""], INT4_OPSET)
        model.opset_imports.pop(TENSORRT_DOMAIN, None)
    return len(nodes)


@contextmanager
def runnable_copy(root: Path, precisions: tuple[str, ...]) -> Iterator[Path]:
    """A bundle directory that ONNX Runtime runs as TensorRT would: `root` itself, or, with bf16 among its
    precisions or weights in int4 for TensorRT, a copy (of hard links, for as long as the context is open) of
    twins.

    Graphs and manifest keep their names; a cache in bfloat16 is float32 in the copy.
    """
    if "bf16" not in precisions and not any(map(_has_int4, root.rglob("*.onnx"))):
        yield root
        return
    # Named as a build's folder, with this process's id at its end: what a killed build leaves beside its
    # bundle is removed by the next one (`calib.bundle_writer`).
    copy = Path(tempfile.mkdtemp(prefix=f".{root.name}-", suffix=f"-{os.getpid()}", dir=root.parent))
    try:
        # Weights have one name while graphs are made: onnx-ir reads none that have a second.
        for path in sorted(root.rglob("*"), key=lambda path: (path.is_file(), path.suffix != ".onnx", path)):
            target = copy / path.relative_to(root)
            if path.is_dir():
                target.mkdir()
            elif path.suffix == ".onnx":
                model = ir.load(path)
                emulate_bfloat16(model)
                if int4_nodes(model) and fits_unpacked(model):
                    with WeightFile(target.with_name(f"{path.stem}_unpacked.onnx_data")) as file:
                        unpack_int4(model, file)
                else:
                    emulate_int4(model)
                ir.save(model, target)
            else:
                os.link(path, target)
        manifest = copy / MANIFEST_FILE
        if manifest.exists():
            found = emulated_manifest(Manifest.from_json(manifest.read_text(encoding="utf-8")), copy)
            manifest.unlink()  # a link: what is written to it would be written to the bundle
            manifest.write_text(found.to_json(), encoding="utf-8")
        yield copy
    finally:
        shutil.rmtree(copy)


def emulated_manifest(manifest: Manifest, copy: Path) -> Manifest:
    """The manifest of a copy that has its graphs already."""
    graphs = {
        name: replace(info, inputs=_full(info.inputs), outputs=_full(info.outputs))
        for name, info in manifest.graphs.items()
    }
    files = dict(manifest.files)
    for info in graphs.values():
        content = (copy / info.file).read_bytes()
        files[info.file] = FileInfo(len(content), hashlib.sha256(content).hexdigest())
    return replace(manifest, graphs=graphs, decoder=emulated_decoder(manifest.decoder), files=files)


def emulated_decoder(info: DecoderInfo) -> DecoderInfo:
    """The decoder of a copy: its cache is never bfloat16."""
    return replace(info, cache_dtype="float32") if info.cache_dtype == BFLOAT16 else info


def _has_int4(graph: Path) -> bool:
    return bool(int4_nodes(ir.load(graph)))


def _full(specs: tuple[TensorSpec, ...]) -> tuple[TensorSpec, ...]:
    return tuple(replace(spec, dtype="float32") if spec.dtype == BFLOAT16 else spec for spec in specs)


def _add_axis(value: ir.Value) -> None:
    tensor = value.const_value
    assert tensor is not None
    shape = ir.Shape([1, *tensor.shape.numpy()])
    if isinstance(tensor, ir.ExternalTensor):
        place = tensor.location, tensor.offset, tensor.length, tensor.dtype
        value.const_value = ir.ExternalTensor(
            *place, shape=shape, name=tensor.name or "", base_dir=tensor.base_dir
        )
    else:
        value.const_value = ir.tensor(tensor.numpy()[None], dtype=tensor.dtype, name=tensor.name)
    value.shape = shape


def _widen(graph: ir.Graph, value: ir.Value) -> None:
    users = list(value.uses())
    cast = _cast(value, _FULL, f"{value.name}_wide")
    graph.insert_before(graph[0], cast)
    for user in users:
        user.node.replace_input_with(user.idx, cast.outputs[0])


def _round(graph: ir.Graph, value: ir.Value) -> None:
    node = value.producer()
    assert node is not None
    users, name = list(value.uses()), str(value.name)
    narrow = _cast(value, _BRAIN, f"{name}_narrow")
    wide = _cast(narrow.outputs[0], _FULL, f"{name}_rounded")
    graph.insert_after(node, [narrow, wide])
    for user in users:
        user.node.replace_input_with(user.idx, wide.outputs[0])
    for position, output in enumerate(graph.outputs):
        if output is value:
            value.name = f"{name}_exact"
            wide.outputs[0].name = name
            graph.outputs[position] = wide.outputs[0]


def _cast(value: ir.Value, dtype: ir.DataType, name: str) -> ir.Node:
    node = ir.node("Cast", [value], {"to": dtype})
    node.outputs[0].name = name
    node.outputs[0].type, node.outputs[0].shape = ir.TensorType(dtype), value.shape
    return node
