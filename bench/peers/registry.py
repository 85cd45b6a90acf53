"""The peers by name."""

from __future__ import annotations

from bench.errors import BenchError
from bench.peers import (
    fopru_peer,
    llama_cpp_peer,
    onnxruntime_genai_peer,
    openvino_genai_peer,
    openvino_peer,
    transformers_peer,
)
from bench.peers.base import Peer, Variant

__all__ = ["PEERS", "choose", "find_peer"]

_MODULES = (
    transformers_peer,
    fopru_peer,
    openvino_peer,
    openvino_genai_peer,
    llama_cpp_peer,
    onnxruntime_genai_peer,
)

PEERS: dict[str, Peer] = {module.PEER.name: module.PEER for module in _MODULES}
"""In the order of tables; the first variant of the first one is the reference."""


def find_peer(name: str) -> Peer:
    """The peer called `name`.

    Raises:
        BenchError: there is none.
    """
    if name not in PEERS:
        raise BenchError(f"no peer is called {name!r}: choose one of {', '.join(PEERS)}")
    return PEERS[name]


def choose(names: list[str]) -> list[tuple[Peer, Variant]]:
    """Peers and variants named `peer` or `peer:variant`, in the order of tables; all when none is named.

    Raises:
        BenchError: a name is not known.
    """
    wanted: set[tuple[str, str]] = set()
    for name in names or list(PEERS):
        head, _, tail = name.partition(":")
        peer = find_peer(head)
        wanted |= {(head, peer.variant(tail).name)} if tail else {(head, item.name) for item in peer.variants}
    return [
        (peer, item) for peer in PEERS.values() for item in peer.variants if (peer.name, item.name) in wanted
    ]
