"""One engine in a process of its own, told what to do by lines of JSON. Called by `bench.peers.rig`.

    python -m bench.peers.worker PEER VARIANT --checkpoint DIR --folder DIR --threads 2 --capacity 900

`--prepare` converts the checkpoint and ends. Otherwise each line of standard input is an order, answered by
one line:

    {"order": "generate", "ids": [...], "new": 32}    seconds, tokens and the memory of this process so far
    {"order": "logits", "ids": [...], "more": [...], "to": "file.npy"}
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from bench.peers.base import Engine, Task
from bench.peers.registry import find_peer

__all__ = ["main", "memory_counters"]


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
    answers = _own_stdout()
    try:
        peer = find_peer(options.peer)
        variant = peer.variant(options.variant)
        paths = options.checkpoint, options.folder
        task = Task(*paths, variant, options.threads, options.capacity, options.bundle)
        if options.prepare:
            task.folder.mkdir(parents=True, exist_ok=True)
            if peer.prepare is not None:
                peer.prepare(task)
            _tell(answers, {})
            return 0
        engine = peer.open(task)
        _tell(answers, {})
    except Exception as error:  # whatever an engine throws is its row in the table
        _tell(answers, {"error": _one_line(error)})
        return 1
    for line in sys.stdin:
        try:
            _tell(answers, _obey(engine, json.loads(line)))
        except Exception as error:
            _tell(answers, {"error": _one_line(error)})
    return 0


def _obey(engine: Engine, order: dict[str, Any]) -> dict[str, Any]:
    ids = np.array(order["ids"], np.int64)
    if order["order"] == "generate":
        return asdict(engine.generate(ids, order["new"])) | memory_counters()
    np.save(order["to"], engine.logits(ids, np.array(order["more"], np.int64)))
    return {}


def memory_counters() -> dict[str, int]:
    """Bytes of this process: the most it had resident, and what of it is anonymous now; {} but on Linux."""
    status = Path("/proc/self/status")
    if not status.is_file():
        return {}
    lines = dict(line.split(":", 1) for line in status.read_text().splitlines() if ":" in line)
    counters = {"peak_rss": "VmHWM", "anonymous": "RssAnon"}
    return {name: int(lines[key].split()[0]) * 1024 for name, key in counters.items()}


def _own_stdout() -> TextIO:
    """A stream for answers alone: what libraries print to standard output goes to standard error."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return answers


def _tell(answers: TextIO, content: dict[str, Any]) -> None:
    print(json.dumps(content), file=answers, flush=True)


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}"[:600]


if __name__ == "__main__":
    sys.exit(main())
