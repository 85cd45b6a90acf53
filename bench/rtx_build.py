"""Does TensorRT for RTX take the pruned encoder, how long is a build, and which token counts does it see?

    python -m bench.rtx_build --encoder clip-l-336 --opset 20

Needs `pip install tensorrt-rtx` and no GPU: it parses, infers shapes at three points and builds engines for
SM86 and SM120 on the CPU. The same shapes are run with ONNX Runtime and compared. Says nothing about speed.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np

from bench.encoders import ENCODERS, EncoderShape, ensure_encoder
from bench.environment import describe_environment
from bench.errors import BenchError
from bench.options import Settings, add_common_options, report, run_script, settings_from, status
from bench.results import Result, Table
from fopru_graph import prune_file
from fopru_graph.lint.rtx import BuildReport, Point, build_check

__all__ = ["main", "measure_build"]


def measure_build(shape: EncoderShape, opset: int, settings: Settings) -> Result:
    """Parse and build an encoder as exported and pruned; compare the token counts of the pruned one."""
    status(f"exporting {shape.name}, opset {opset}")
    source = ensure_encoder(shape.name, opset, settings.workspace.root / "encoders")
    pruned = source.with_name("pruned.onnx")
    prune_file(source, pruned)
    reports = {}
    for name, path in (("as exported", source), ("pruned", pruned)):
        status(f"TensorRT for RTX: {name}")
        reports[name] = build_check(path)
    counts = [
        (point, _with_onnxruntime(pruned, point, settings.threads)) for point in reports["pruned"].points
    ]
    return _result(shape, opset, reports, (counts, settings.threads))


def _with_onnxruntime(path: Path, point: Point, threads: int) -> dict[str, tuple[int, ...]]:
    """Dims of every output at the inputs of a point."""
    import onnxruntime

    from runtime.backends.onnxruntime import session_options

    options = session_options(onnxruntime, threads)
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    feeds: dict[str, Any] = {
        "pixel_values": np.zeros(point.inputs["pixel_values"], np.float32),
        "num_keep": np.array(point.inputs["num_keep"], np.int64),
    }
    names = [output.name for output in session.get_outputs()]
    status(f"ONNX Runtime at the {point.name}")
    return {name: value.shape for name, value in zip(names, session.run(None, feeds), strict=True)}


def _result(
    shape: EncoderShape,
    opset: int,
    reports: dict[str, BuildReport],
    run: tuple[list[tuple[Point, dict[str, tuple[int, ...]]]], int],
) -> Result:
    counts, threads = run
    builds = [
        (
            name,
            f"{found.parse_seconds or 0:.1f}",
            engine.capability,
            f"{engine.seconds:.1f}",
            f"{engine.bytes / 1e6:.0f}",
        )
        for name, found in reports.items()
        for engine in found.engines
    ]
    shapes, equal = [], []
    for point, ours in counts:
        for name, dims in ours.items():
            seen = point.outputs[name]
            equal.append(seen == dims)
            shapes.append(
                (f"{point.name}: {name}", str(list(dims)), str(list(seen)), "yes" if seen == dims else "no")
            )
    refused = [f"{name}: {finding.message}" for name, found in reports.items() for finding in found.findings]
    figures = {
        "encoder": shape.name,
        "opset": opset,
        "tensorrt_rtx": reports["pruned"].version,
        "reports": {name: found.to_dict() for name, found in reports.items()},
        "shapes_equal": sum(equal),
        "shapes_compared": len(equal),
    }
    if not equal and not refused:
        raise BenchError(f"TensorRT for RTX compared nothing of {shape.name}: look at its report")
    version = reports["pruned"].version
    tables = (
        Table(
            f"{shape.about}; opset {opset}; TensorRT for RTX {version}",
            ("graph", "parse s", "engine", "build s", "MB"),
            tuple(builds),
        ),
        Table("Dims of outputs", ("at", "ONNX Runtime", "TensorRT for RTX", "equal"), tuple(shapes)),
    )
    name = f"rtx-{shape.name}-opset{opset}"
    return Result(name, describe_environment(threads), figures, {}, tables, tuple(refused))


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.rtx_build", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--encoder", choices=sorted(ENCODERS), default="clip-l-336")
    parser.add_argument("--opset", type=int, choices=(20, 23), default=20)
    add_common_options(parser, rounds=None)
    parser.set_defaults(rounds=1, warmup=0)

    def body(options: argparse.Namespace) -> None:
        settings = settings_from(options)
        report(measure_build(ENCODERS[options.encoder], options.opset, settings), settings)

    return run_script(parser, body, arguments)


if __name__ == "__main__":
    sys.exit(main())
