"""bfloat16 graphs on a processor without kernels for them: the same graph in float32, every value rounded.

ONNX Runtime's CPU provider multiplies no bfloat16. What a GPU computes is near to this: it reads numbers of
8 bits, sums products in float32 and rounds the sum. So each operator runs in float32 on rounded inputs, and
what it makes is rounded by two Casts. The order of sums stays this machine's own.
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

from runtime.bundle import MANIFEST_FILE
from runtime.contract import TensorSpec
from runtime.manifest import FileInfo, Manifest

__all__ = ["emulate_bfloat16", "emulated_manifest", "runnable_copy"]

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


@contextmanager
def runnable_copy(root: Path, precisions: tuple[str, ...]) -> Iterator[Path]:
    """A bundle directory that ONNX Runtime runs: `root` itself, or, with bf16 among its precisions, a copy
    (of hard links, for as long as the context is open) whose bfloat16 graphs are emulated.

    Graphs and manifest keep their names; the cache is float32 in the copy.
    """
    if "bf16" not in precisions:
        yield root
        return
    copy = Path(tempfile.mkdtemp(prefix=f".{root.name}-", dir=root.parent))
    try:
        for path in sorted(root.rglob("*")):
            target = copy / path.relative_to(root)
            if path.is_dir():
                target.mkdir()
            elif path.suffix == ".onnx":
                model = ir.load(path)
                emulate_bfloat16(model)
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
    decoder = replace(manifest.decoder, cache_dtype="float32")
    return replace(manifest, graphs=graphs, decoder=decoder, files=files)


def _full(specs: tuple[TensorSpec, ...]) -> tuple[TensorSpec, ...]:
    return tuple(replace(spec, dtype="float32") if spec.dtype == "bfloat16" else spec for spec in specs)


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
