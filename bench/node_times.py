"""Where an ONNX Runtime run spends its time, grouped by the graph pass that made the node.

Nodes added by the rewriter carry the name of their pass in their metadata (`fopru.pass`). The profiler
reports node names, not metadata, so the two are joined by name. A node that ONNX Runtime fused or folded
away has no time of its own: it is counted as absent, and its work is inside a node of another group.
"""

from __future__ import annotations

import json
import tempfile
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runtime.backends.onnxruntime import session_options

__all__ = ["PASS_KEY", "NodeTimes", "group_events", "inner_nodes", "pass_of_nodes", "profile_graph"]

PASS_KEY = "fopru.pass"
OTHER = "encoder"
SUFFIX = "_kernel_time"


@dataclass(frozen=True)
class NodeTimes:
    """Seconds per run by pass (`encoder` = nodes that are not ours), and how many stamped nodes were seen."""

    seconds: dict[str, float]
    stamped: int
    seen: int

    @property
    def total(self) -> float:
        """Seconds in all kernels of a run."""
        return sum(self.seconds.values())

    def share(self, *passes: str) -> float:
        """Fraction of the kernel time spent in nodes of these passes."""
        return sum(self.seconds.get(name, 0.0) for name in passes) / self.total


def pass_of_nodes(path: Path) -> dict[str, str]:
    """Node name → pass, for the stamped nodes of an ONNX file (weights are not read)."""
    import onnx

    model = onnx.load(str(path), load_external_data=False)
    found = {}
    for node in model.graph.node:
        stamps = [entry.value for entry in node.metadata_props if entry.key == PASS_KEY]
        if stamps:
            found[node.name] = stamps[0]
    return found


def inner_nodes(path: Path) -> set[str]:
    """Names of the nodes inside bodies of Loop and If: their time is in that of the node around them."""
    import onnx

    model = onnx.load(str(path), load_external_data=False)
    bodies = [
        attribute.g for node in model.graph.node for attribute in node.attribute if attribute.HasField("g")
    ]
    return {node.name for body in bodies for node in body.node}


def group_events(events: list[dict[str, Any]], passes: Mapping[str, str], runs: int) -> NodeTimes:
    """Add up the kernel events of `runs` runs by pass.

    Args:
        events: the profiler's list; durations in microseconds.
        passes: node name → pass.
        runs: runs that the events cover.
    """
    seconds: dict[str, float] = defaultdict(float)
    seen = set()
    for event in events:
        name = str(event.get("name", ""))
        if event.get("cat") != "Node" or not name.endswith(SUFFIX):
            continue
        node = name.removesuffix(SUFFIX)
        if node in passes:
            seen.add(node)
        seconds[passes.get(node, OTHER)] += float(event["dur"]) / 1e6 / runs
    return NodeTimes(dict(seconds), len(passes), len(seen))


def profile_graph(path: Path, feeds: Mapping[str, Any], *, threads: int, runs: int) -> NodeTimes:
    """Run a graph with the profiler on, after one run that is left out, and group its time by pass."""
    with tempfile.TemporaryDirectory() as scratch:
        session = _profiled_session(path, threads, Path(scratch) / "profile")
        for _ in range(1 + runs):
            session.run(None, dict(feeds))
        events = json.loads(Path(session.end_profiling()).read_text())
    inner = inner_nodes(path)
    outer = [event for event in events if str(event.get("name", "")).removesuffix(SUFFIX) not in inner]
    return group_events(_without_first_run(outer), pass_of_nodes(path), runs)


def _profiled_session(path: Path, threads: int, prefix: Path) -> Any:
    """A session with the options of `runtime.backends.onnxruntime`, and the profiler on."""
    import onnxruntime

    options = session_options(onnxruntime, threads)
    options.enable_profiling = True
    options.profile_file_prefix = str(prefix)
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def _without_first_run(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Drops what started before the end of the first run, which pays for the first touch of memory."""
    ends = [event["ts"] + event["dur"] for event in events if event.get("name") == "model_run"]
    return [event for event in events if event.get("ts", 0) >= min(ends)]
