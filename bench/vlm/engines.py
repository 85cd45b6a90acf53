"""The engines by name, as data."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from bench.errors import BenchError
from bench.peers.base import Peer, Variant
from bench.peers.registry import choose as choose_peers
from bench.vlm.base import RATIOS, Engine, Task
from bench.vlm.bundle_engine import BundleEngine
from bench.vlm.transformers_engine import TransformersEngine

__all__ = ["ENGINES", "LANGUAGE", "EngineSpec", "choose", "find_engine"]


@dataclass(frozen=True)
class EngineSpec:
    """One way to run the whole model, or its language model alone.

    Attributes:
        name: in tables and on the command line.
        precision: what the weights are kept in; decides how near PyTorch's logits must be.
        bundle: precision of the decoder of the bundle that it runs; None: it reads the checkpoint.
        open: the engine; None for one of the language model alone.
        ratios: what can be asked of it.
        modules: what must be importable.
        install: the command that installs it.
        peer: the engine of the language model, and its variant.
    """

    name: str
    precision: str
    bundle: str | None = None
    open: Callable[[Task], Engine] | None = None
    ratios: tuple[float, ...] = RATIOS
    modules: tuple[str, ...] = ()
    install: str = ""
    peer: tuple[Peer, Variant] | None = None

    @property
    def missing(self) -> tuple[str, ...]:
        """Modules that cannot be imported here."""
        return tuple(module for module in self.modules if importlib.util.find_spec(module) is None)


def _transformers(precision: str, dtype: str, attention: str) -> EngineSpec:
    return EngineSpec(
        name=f"transformers {precision} {attention}",
        precision=precision,
        open=lambda task: TransformersEngine(task, dtype, attention),
        ratios=(1.0,),
    )


def _fopru(name: str, precision: str, bundle: str = "fp32", backend: str = "onnxruntime") -> EngineSpec:
    modules = ("openvino",) if backend.startswith("openvino") else ()
    return EngineSpec(
        name=f"fopru {name}",
        precision=precision,
        bundle=bundle,
        open=lambda task: BundleEngine(task, backend),
        modules=modules,
        install="pip install openvino" if modules else "",
    )


ENGINES: dict[str, EngineSpec] = {
    spec.name: spec
    for spec in (
        _transformers("fp32", "float32", "sdpa"),  # the reference: logits are compared with its own
        _transformers("fp32", "float32", "eager"),
        _transformers("bf16", "bfloat16", "sdpa"),
        _transformers("bf16", "bfloat16", "eager"),
        _fopru("fp32", "fp32"),
        _fopru("int8", "int8", "int8"),
        _fopru("int4", "int4", "int4"),
        _fopru("openvino", "fp32", backend="openvino"),
        _fopru("openvino-bf16", "bf16", backend="openvino-bf16"),
    )
}
"""Engines of the whole model; the first one is the reference."""

LANGUAGE = (
    *("llama.cpp:fp32", "llama.cpp:q8_0", "llama.cpp:q4_0"),
    *("openvino-genai:bf16", "openvino-genai:int8", "onnxruntime-genai:fp32"),
)
"""Engines of the language model alone that are measured unless others are named."""


def find_engine(name: str) -> EngineSpec:
    """The engine called `name`; `PEER:VARIANT` is one of `bench.peers`, for the language model alone.

    Raises:
        BenchError: there is none.
    """
    if name in ENGINES:
        return ENGINES[name]
    if ":" not in name:
        raise BenchError(
            f"no engine is called {name!r}: choose one of {', '.join(ENGINES)}, "
            "or PEER:VARIANT of bench.peers"
        )
    ((peer, variant),) = choose_peers([name])
    return EngineSpec(
        name=f"{peer.name} {variant.name}",
        precision=variant.precision,
        modules=peer.modules,
        install=peer.install,
        peer=(peer, variant),
    )


def choose(names: Iterable[str]) -> list[EngineSpec]:
    """Those named, all when none is; the reference always, and first."""
    found = [find_engine(name) for name in names] or [*ENGINES.values(), *map(find_engine, LANGUAGE)]
    reference = next(iter(ENGINES.values()))
    return [reference, *(spec for spec in dict.fromkeys(found) if spec != reference)]
