"""One graph, run in a process of its own: what it takes, and where its time goes. Called by `bench.tiles`.

    python -m bench.one_run GRAPH FEEDS.npz --threads 2 --warmup 0

Prints one JSON object: seconds of the last run, and kernel seconds by pass. Memory is the caller's to watch.
The arena grows by what is asked for, not by powers of two, so that its size is what the graph needs.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from bench.node_times import SUFFIX, group_events, inner_nodes, pass_of_nodes
from runtime.backends.onnxruntime import session_options

__all__ = ["main"]

_AS_REQUESTED = 1  # ONNX Runtime's kSameAsRequested


def main(arguments: list[str] | None = None) -> int:
    """Run it and print what was seen."""
    parser = argparse.ArgumentParser(prog="python -m bench.one_run")
    parser.add_argument("graph", type=Path)
    parser.add_argument("feeds", type=Path)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--warmup", type=int, default=0)
    options = parser.parse_args(arguments)
    with np.load(options.feeds) as stored:
        feeds = dict(stored)
    with tempfile.TemporaryDirectory() as scratch:
        session = _session(options.graph, options.threads, Path(scratch) / "profile")
        given = {value.name for value in session.get_inputs()}
        feeds = {name: value for name, value in feeds.items() if name in given}
        for _ in range(options.warmup):
            session.run(None, feeds)
        start = time.perf_counter()
        session.run(None, feeds)
        seconds = time.perf_counter() - start
        events = json.loads(Path(session.end_profiling()).read_text())
    inner = inner_nodes(options.graph)
    last = max(event["ts"] for event in events if event.get("name") == "model_run")
    own = [
        event
        for event in events
        if event.get("ts", 0) >= last and str(event.get("name", "")).removesuffix(SUFFIX) not in inner
    ]
    times = group_events(own, pass_of_nodes(options.graph), runs=1)
    print(json.dumps({"seconds": seconds, "kernel": times.seconds}))
    return 0


def _session(graph: Path, threads: int, profile: Path) -> Any:
    import onnxruntime

    memory = onnxruntime.OrtMemoryInfo(
        "Cpu", onnxruntime.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, onnxruntime.OrtMemType.DEFAULT
    )
    arena = onnxruntime.OrtArenaCfg({"arena_extend_strategy": _AS_REQUESTED})
    onnxruntime.create_and_register_allocator(memory, arena)
    options = session_options(onnxruntime, threads)
    options.add_session_config_entry("session.use_env_allocators", "1")
    options.enable_profiling = True
    options.profile_file_prefix = str(profile)
    return onnxruntime.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])


if __name__ == "__main__":
    sys.exit(main())
