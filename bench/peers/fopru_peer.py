"""Our own runtime on ONNX Runtime, with the decoder in float32 and in fewer bits."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from bench.peers.base import Engine, Peer, Task, Variant, require_bundle
from bench.peers.openvino_peer import RuntimeEngine
from bench.workspace import Workspace

__all__ = ["PEER"]


def _bundle_of(task: Task) -> Path:
    """The bundle of a variant: the given one, or one of the same checkpoint in the variant's precision."""
    given = require_bundle(task)
    return given if task.variant.precision == "fp32" else task.folder / f"bundle-{task.variant.precision}"


def _prepare(task: Task) -> None:
    """Build the bundle of a variant where it is missing or out of date; float32 is the given one."""
    from runtime import load_bundle

    target = _bundle_of(task)
    if target == task.bundle:
        return
    source = Path(load_bundle(require_bundle(task), verify=False).manifest.model.source)
    precision = f"decoder={task.variant.precision}"
    Workspace(task.folder).bundle_of(source, target.name, precision)


def _open(task: Task) -> Engine:
    return RuntimeEngine(replace(task, bundle=_bundle_of(task)), "onnxruntime")


PEER = Peer(
    name="fopru",
    packages=("onnxruntime",),
    modules=("onnxruntime",),
    install="pip install onnxruntime",
    variants=tuple(Variant(name, name) for name in ("fp32", "int8", "int4")),
    open=_open,
    prepare=_prepare,
    needs_bundle=True,
    about="fopru: the decoder of the bundle by our runtime on ONNX Runtime; int8 and int4 are bundles built "
    "with `--precision decoder=int8` and `int4`, blocks of 32.",
)
