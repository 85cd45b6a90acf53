"""Which graphs does which target take, what does TensorRT for RTX make of them, and does it see our shapes?

    python -m bench.target_graphs            the demo, CLIP-L/336 and a Llama of two layers of LLaVA-1.5-7B
    python -m bench.target_graphs --tiny     the demo alone

Every graph of a bundle in float16 that is built with `--target jetpack6`: lint for every target, then (with
`pip install tensorrt-rtx`, no GPU) parse, infer shapes at three points, build for SM86 and SM120. ONNX
Runtime runs the same points, and the dims of all outputs are compared: tokens kept, rows of features, logits,
cache. Seconds are of this machine's processor and say nothing about a device.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from bench.checkpoints import Recipe, ensure_checkpoint
from bench.environment import describe_environment
from bench.errors import BenchError
from bench.options import Settings, add_common_options, report, run_script, settings_from, status
from bench.results import Result, Table, write_markdown
from bench.workspace import DEMO
from calib.precision import parse_precision
from export.build import BuildOptions, build
from fopru_graph.lint import SEVERITIES, TARGETS, Severity, lint_file
from fopru_graph.lint.profiles import POINTS, Profile, read_on_host
from fopru_graph.lint.rtx import CAPABILITIES, BuildReport, Point, build_check
from runtime import contract
from runtime.bundle import Bundle, load_bundle

__all__ = [
    "GraphFound",
    "decoder_profiles",
    "lint_table",
    "look_at",
    "main",
    "measure",
    "ort_shapes",
    "rtx_table",
    "shape_table",
    "text_profiles",
]

TARGET, PRECISION = "jetpack6", "fp16"
LLAVA = "llava-1.5-7b"
LAYERS = 2  # of the language model: the others are the same
_PROMPT, _PAST = (1, 64, 512), (0, 600, 2048)


@dataclass(frozen=True)
class GraphFound:
    """One graph: findings of the lint by target and severity, and what TensorRT for RTX made of it.

    Attributes:
        name: bundle and graph.
        nodes, opset: of the file.
        findings: by target, how many of each severity.
        rtx: None where it is not installed.
        shapes: by point and output, (dims by ONNX Runtime, dims by TensorRT for RTX).
    """

    name: str
    nodes: int
    opset: int
    findings: dict[str, dict[Severity, int]]
    rtx: BuildReport | None
    shapes: dict[str, dict[str, tuple[tuple[int, ...], tuple[int, ...]]]]

    @property
    def equal(self) -> int:
        """How many dims of outputs are the same on both sides."""
        return sum(ours == theirs for point in self.shapes.values() for ours, theirs in point.values())

    @property
    def compared(self) -> int:
        """How many were compared."""
        return sum(map(len, self.shapes.values()))

    @property
    def grave(self) -> int:
        """Errors and warnings, of all targets that are for this graph."""
        return sum(counts["error"] + counts["warning"] for counts in self.findings.values())


def look_at(bundle: Bundle, name: str, capabilities: Sequence[str] = CAPABILITIES) -> list[GraphFound]:
    """Every graph of a bundle; `name` goes before theirs."""
    found = []
    for graph in bundle.manifest.graphs:
        path = bundle.graph(graph)
        status(f"{name}: {graph}")
        model = ir.load(path)
        findings = {
            target: {severity: len(lint_file(path, target).of(severity)) for severity in SEVERITIES}
            for target in TARGETS
        }
        rtx, shapes = None, {}
        if importlib.util.find_spec("tensorrt_rtx") is not None:
            rtx = build_check(path, _profiles(bundle, graph), capabilities=tuple(capabilities))
            shapes = {point.name: _compared(model, path, point) for point in rtx.points}
        nodes = sum(1 for _ in model.graph.all_nodes())
        found.append(GraphFound(f"{name}: {graph}", nodes, model.opset_imports[""], findings, rtx, shapes))
    return found


def _profiles(bundle: Bundle, graph: str) -> dict[str, Profile]:
    if graph == contract.EMBED_TOKENS:
        return text_profiles()
    if graph in bundle.manifest.decoder.caches:
        return decoder_profiles(bundle)
    return {}  # images 1, 1, 4; kept 1, 30 %, all


def text_profiles() -> dict[str, Profile]:
    """One row, then a prompt, then the longest one."""
    return {contract.INPUT_IDS: Profile(*((1, rows) for rows in _PROMPT))}


def decoder_profiles(bundle: Bundle) -> dict[str, Profile]:
    """A decoder with an append cache: one token without a past, a prompt behind one, the longest of both."""
    info = bundle.manifest.decoder
    axes = () if info.position_axes == 1 else (info.position_axes,)
    cache = Profile(*((1, past, info.kv_heads, info.head_dim) for past in _PAST))
    totals = [past + rows for past, rows in zip(_PAST, _PROMPT, strict=True)]
    return {
        contract.INPUTS_EMBEDS: Profile(*((1, rows, info.hidden_size) for rows in _PROMPT)),
        contract.ATTENTION_MASK: Profile(*((1, total) for total in totals)),
        contract.POSITION_IDS: Profile(*((*axes, 1, rows) for rows in _PROMPT)),
        contract.NUM_LOGITS_TO_KEEP: Profile((1,), (1,), (1,)),
        **{
            contract.past_name(layer, part): cache
            for layer in range(info.layers)
            for part in ("key", "value")
        },
    }


def _compared(
    model: ir.Model, path: Path, point: Point
) -> dict[str, tuple[tuple[int, ...], tuple[int, ...]]]:
    ours = ort_shapes(model, path, point)
    return {name: (dims, point.outputs[name]) for name, dims in ours.items()}


def ort_shapes(model: ir.Model, path: Path, point: Point) -> dict[str, tuple[int, ...]]:
    """Dims of every output of a graph that ONNX Runtime makes at a point; inputs are zeros."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    made = session.run(None, _feeds(model, point.inputs))
    return {name: value.shape for name, value in zip(names, made, strict=True)}


def _feeds(model: ir.Model, given: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    feeds = {}
    for value in model.graph.inputs:
        name, dtype = str(value.name), value.dtype
        if dtype is None or value.shape is None:
            raise BenchError(f"input '{name}' has no type: export the graph again")
        if read_on_host(value):
            content = np.array(given[name], dtype.numpy())
            feeds[name] = content if len(value.shape) else content.reshape(())
            continue
        shape = given.get(name) or tuple(int(size) for size in value.shape.numpy())
        # A mask of zeros would leave a softmax nothing to sum.
        fill = np.ones if name in (contract.ATTENTION_MASK, contract.TOKEN_MASK) else np.zeros
        feeds[name] = fill(shape, dtype.numpy())
    return feeds


def _bundle(name: str, settings: Settings) -> Bundle:
    checkpoint = (
        settings.workspace.checkpoint(DEMO)
        if name == DEMO
        else ensure_checkpoint(
            Recipe(name, decoder_layers=LAYERS), settings.workspace.root / "checkpoints" / f"{name}-{LAYERS}"
        )
    )
    status(f"building {name} for {TARGET}")
    target = settings.workspace.root / f"{name}-{TARGET}"
    options = BuildOptions(str(checkpoint), target, target=TARGET, precision=parse_precision(PRECISION))
    built = build(options)
    if not built.ok:
        raise BenchError(f"the bundle of {name} is not what it should be: {'; '.join(built.failures)}")
    return load_bundle(built.bundle, verify=False)


def measure(names: Sequence[str], settings: Settings) -> Result:
    """Build the bundles and look at every graph of them."""
    found = [graph for name in names for graph in look_at(_bundle(name, settings), name)]
    version = next((graph.rtx.version for graph in found if graph.rtx is not None), "not installed")
    refused = [f"{graph.name}: {finding}" for graph in found if graph.rtx for finding in graph.rtx.findings]
    grave, equal, compared = (
        sum(getattr(graph, what) for graph in found) for what in ("grave", "equal", "compared")
    )
    figures = {
        "target": TARGET,
        "precision": PRECISION,
        "tensorrt_rtx": version,
        "graphs": {graph.name: _figures(graph) for graph in found},
        "errors_and_warnings": grave,
        "dims_equal": equal,
        "dims_compared": compared,
    }
    notes = (
        f"Lint: {grave} errors and warnings of {len(TARGETS)} targets on {len(found)} graphs; the notes say "
        "that two graphs share a weight file.",
        f"Dims of outputs at three points: {equal} of {compared} are those of ONNX Runtime.",
        "Engines for SM86 and SM120 were built on this processor and thrown away: no GPU, and nothing about "
        "speed or Jetson's own TensorRT.",
        *refused,
    )
    tables = (lint_table(found), rtx_table(found, version), shape_table(found))
    return Result("target-graphs", describe_environment(settings.threads), figures, {}, tables, notes)


def _figures(graph: GraphFound) -> dict[str, Any]:
    return {
        "nodes": graph.nodes,
        "opset": graph.opset,
        "findings": graph.findings,
        "rtx": None if graph.rtx is None else graph.rtx.to_dict(),
        "shapes": json.loads(json.dumps(graph.shapes)),
    }


def lint_table(found: Sequence[GraphFound]) -> Table:
    """Counts of findings, a column per target."""

    def cell(counts: Mapping[Severity, int]) -> str:
        return f"{counts['error']} / {counts['warning']} / {counts['note']}"

    rows = tuple(
        (graph.name, str(graph.nodes), *(cell(graph.findings[target]) for target in TARGETS))
        for graph in found
    )
    title = f"Lint of graphs built with --target {TARGET}, {PRECISION}: errors / warnings / notes"
    return Table(title, ("graph", "nodes", *TARGETS), rows)


def rtx_table(found: Sequence[GraphFound], version: str) -> Table:
    """Seconds to parse and build, size of the engines, dims that are equal."""
    rows = []
    for graph in found:
        engines = {engine.capability: engine for engine in graph.rtx.engines} if graph.rtx else {}
        parse = graph.rtx.parse_seconds if graph.rtx else None
        cells = [
            f"{engines[sm].seconds:.1f} s, {engines[sm].bytes / 1e6:.1f} MB" if sm in engines else "no engine"
            for sm in CAPABILITIES
        ]
        rows.append(
            (
                graph.name,
                "-" if parse is None else f"{parse:.2f}",
                *cells,
                f"{graph.equal} of {graph.compared}",
            )
        )
    columns = ("graph", "parse s", *CAPABILITIES, "dims as ONNX Runtime's")
    return Table(f"TensorRT for RTX {version}, on a processor", columns, tuple(rows))


def shape_table(found: Sequence[GraphFound]) -> Table:
    """All outputs but the cache's, at the three points."""
    rows = []
    for graph in found:
        names = dict.fromkeys(name for point in graph.shapes.values() for name in point)
        for name in [name for name in names if not name.startswith("present.")]:
            pairs = [graph.shapes.get(point, {}).get(name) for point in POINTS]
            rows.append((f"{graph.name}: {name}", *(_dims(pair) for pair in pairs)))
    return Table("Dims that TensorRT for RTX infers", ("output", *POINTS), tuple(rows))


def _dims(pair: tuple[tuple[int, ...], tuple[int, ...]] | None) -> str:
    if pair is None:
        return ""
    ours, theirs = pair
    return str(list(theirs)) if ours == theirs else f"{list(theirs)}, not {list(ours)}"


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit status: 1 where a graph is refused or has other dims."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.target_graphs", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--tiny", action="store_true", help="the demo alone")
    add_common_options(parser, rounds=None)
    clean = True

    def body(options: argparse.Namespace) -> None:
        nonlocal clean
        settings = settings_from(options)
        result = measure([DEMO] if options.tiny else [DEMO, LLAVA], settings)
        report(result, settings)
        write_markdown(result, settings.results)
        figures = result.figures
        refused = any(
            graph["rtx"] is not None and not graph["rtx"]["ok"] for graph in figures["graphs"].values()
        )
        clean = (
            not figures["errors_and_warnings"]
            and not refused
            and figures["dims_equal"] == figures["dims_compared"]
        )

    return run_script(parser, body, arguments) or int(not clean)


if __name__ == "__main__":
    sys.exit(main())
