"""One engine in a process of its own, told what to do by lines of JSON. Called by `bench.peers.rig`.

    python -m bench.peers.worker PEER VARIANT --checkpoint DIR --folder DIR --threads 2 --capacity 900

`--prepare` converts the checkpoint and ends. Otherwise each line of standard input is an order, answered by
one line:

    {"order": "generate", "ids": [...], "new": 32}    seconds, tokens and the memory of this process so far
    {"order": "logits", "ids": [...], "more": [...], "to": "file.npy"}
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from bench.child import memory_counters, serve
from bench.peers.base import Engine, Task
from bench.peers.registry import find_peer

__all__ = ["main"]


def main(arguments: list[str] | None = None) -> int:
    """Prepare, or serve until standard input ends."""
    parser = argparse.ArgumentParser(prog="python -m bench.peers.worker")
    parser.add_argument("peer")
    parser.add_argument("variant")
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--bundle", type=Path)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--capacity", type=int, required=True)
    parser.add_argument("--prepare", action="store_true")
    options = parser.parse_args(arguments)
    return serve(partial(_open, options))


def _open(options: argparse.Namespace) -> Callable[[dict[str, Any]], dict[str, Any]] | None:
    peer = find_peer(options.peer)
    paths = options.checkpoint, options.folder
    task = Task(*paths, peer.variant(options.variant), options.threads, options.capacity, options.bundle)
    if not options.prepare:
        return partial(_obey, peer.open(task))
    task.folder.mkdir(parents=True, exist_ok=True)
    if peer.prepare is not None:
        peer.prepare(task)
    return None


def _obey(engine: Engine, order: dict[str, Any]) -> dict[str, Any]:
    ids = np.array(order["ids"], np.int64)
    if order["order"] == "generate":
        return asdict(engine.generate(ids, order["new"])) | memory_counters()
    np.save(order["to"], engine.logits(ids, np.array(order["more"], np.int64)))
    return {}


if __name__ == "__main__":
    sys.exit(main())
