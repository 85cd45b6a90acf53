"""One engine in a process of its own, told what to do by lines of JSON. Called by `bench.vlm.rig`.

python -m bench.vlm.worker "fopru int8" --checkpoint DIR --bundle DIR --threads 2 --side 384

{"order": "answer", "ratio": 0.3, "new": 17}    an `Answer`, and the memory of this process so far
{"order": "logits", "to": "file.npy"}           logits of the last position of the unpruned prompt
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from bench.child import memory_counters, serve
from bench.vlm.base import Engine, Task
from bench.vlm.engines import find_engine

__all__ = ["main"]


def main(arguments: list[str] | None = None) -> int:
    """Serve until standard input ends."""
    parser = argparse.ArgumentParser(prog="python -m bench.vlm.worker")
    parser.add_argument("engine")
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--bundle", type=Path)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--side", type=int, required=True)
    return serve(partial(_open, parser.parse_args(arguments)))


def _open(options: argparse.Namespace) -> Callable[[dict[str, Any]], dict[str, Any]]:
    spec = find_engine(options.engine)
    assert spec.open is not None, "engines of a language model have a worker of their own"
    task = Task(options.checkpoint, options.bundle, options.threads, options.side)
    return partial(_obey, spec.open(task))


def _obey(engine: Engine, order: dict[str, Any]) -> dict[str, Any]:
    if order["order"] == "answer":
        return engine.answer(order["ratio"], order["new"]).to_dict() | memory_counters()
    np.save(order["to"], engine.logits())
    return {}


if __name__ == "__main__":
    sys.exit(main())
