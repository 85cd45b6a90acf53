"""OpenVINO on our ONNX files: the decoder of a bundle, run by our runtime with its OpenVINO backend."""

from __future__ import annotations

import numpy as np

from bench.peers.base import Array, Engine, Ids, Peer, SteppingEngine, Task, Variant, require_bundle
from runtime import Generator, load_bundle
from runtime.decoder import DecoderRun
from runtime.positions import Positions

__all__ = ["PEER", "RuntimeEngine"]

_BACKENDS = {"fp32": "openvino", "bf16": "openvino-bf16"}


class RuntimeEngine(SteppingEngine):
    """Our runtime with one of its backends; each prompt has a KV cache of its own, as each request has."""

    def __init__(self, task: Task, backend: str) -> None:
        bundle = load_bundle(require_bundle(task), verify=False)
        self._generator = Generator(bundle, backend=backend, threads=task.threads)
        self._capacity = task.capacity
        self._run: DecoderRun | None = None

    def prefill(self, ids: Ids) -> Array:
        """See `SteppingEngine.prefill`; the time has the embedding and the allocation of the cache in it."""
        axes = self._generator.manifest.decoder.position_axes
        positions = Positions(np.tile(np.arange(len(ids)), (axes, 1)), len(ids))
        self._run = self._generator.decoder_run(self._capacity, positions)
        return self._run.prefill(self._generator.embed(ids[None], ()))

    def step(self, token: int) -> Array:
        """See `SteppingEngine.step`."""
        assert self._run is not None, "prefill first"
        return self._run.step(token)


def _open(task: Task) -> Engine:
    return RuntimeEngine(task, _BACKENDS[task.variant.precision])


PEER = Peer(
    name="openvino",
    packages=("openvino",),
    modules=("openvino",),
    install="pip install openvino",
    variants=tuple(Variant(name, name) for name in _BACKENDS),
    open=_open,
    needs_bundle=True,
    about="OpenVINO: the decoder of the bundle, by our runtime with backend "
    "`openvino`, in bf16 `openvino-bf16`.",
)
