"""Parse and build a graph with TensorRT for RTX, which needs no GPU for that, and compare what it says.

It is the nearest thing to TensorRT's own parser on a machine without one. It builds for SM86 (nearest to
Orin) and SM120 (nearest to Thor), never for Jetson itself, and says nothing about speed there.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import onnx_ir as ir

from fopru_graph.api import TENSORRT_TOPK, load_graph
from fopru_graph.errors import OptionError
from fopru_graph.lint.graph import GraphView, view_of
from fopru_graph.lint.profiles import POINTS, Profile, at_point, derive_profiles
from fopru_graph.lint.report import Finding
from fopru_graph.lint.run import lint_view
from fopru_graph.lint.targets import TARGETS
from fopru_graph.shapes import Dim, dims

__all__ = ["BUILD_RULES", "CAPABILITIES", "BuildReport", "Engine", "Point", "Profile", "build_check"]

CAPABILITIES = ("SM86", "SM120")

BUILD_RULES: Mapping[str, str] = MappingProxyType(
    {
        "rtx-parse": "the parser refuses the graph",
        "rtx-shapes": "at one of the three points it refuses the graph, or finds other shapes than ONNX does",
        "rtx-profile": "an input needs a profile and has none",
        "rtx-build": "no engine can be built",
        "rtx-crash": "it aborted its process",
        "rtx-timeout": "it took longer than allowed",
    }
)
"""What a build can find besides the rules of the lint, all errors."""

_TARGET = "tensorrt-rtx"
_POINT_RULES = ("topk-limit", "topk-beyond-axis", "gather-range")  # what it does not catch itself
_BUILD_FIX = "change the node or the attention that it names"
_CHILD = Path(__file__).with_name("rtx_child.py")


@dataclass(frozen=True)
class Point:
    """One point of the profiles: dims (or content, for inputs that the host reads) of the inputs, dims that
    TensorRT for RTX infers for the outputs (-1: it cannot tell)."""

    name: str
    inputs: dict[str, tuple[int, ...]]
    outputs: dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Engine:
    """One engine that was built and thrown away; seconds on this machine's CPU."""

    capability: str
    seconds: float
    bytes: int


@dataclass(frozen=True)
class BuildReport:
    """What came of parsing and building.

    Attributes:
        version: of TensorRT for RTX, "" if it was not started.
        parse_seconds: None if it did not get so far.
        points, engines: what was inferred and built, empty if it did not get so far.
    """

    version: str
    parse_seconds: float | None
    points: tuple[Point, ...]
    engines: tuple[Engine, ...]
    findings: tuple[Finding, ...]

    @property
    def ok(self) -> bool:
        """Whether nothing is an error."""
        return not any(finding.severity == "error" for finding in self.findings)

    def to_dict(self) -> dict[str, Any]:
        """Plain types only, ready for JSON."""
        plain: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(self)))
        return {"ok": self.ok, **plain}


def build_check(
    path: str | os.PathLike[str],
    profiles: Mapping[str, Profile] | None = None,
    *,
    capabilities: tuple[str, ...] = CAPABILITIES,
    timeout: float = 600.0,
) -> BuildReport:
    """Parse a graph, infer its shapes at three points, build engines; in a process of its own.

    Args:
        path: an ONNX file.
        profiles: by input name, where the derived ones do not do: images 1, 1, 4; `num_keep` 1, 30 % and all
            tokens up to 3839; every other dim that varies has to be given.
        capabilities: names as TensorRT for RTX has them, SM75 to SM121.
        timeout: seconds for everything.

    Raises:
        OptionError: TensorRT for RTX is not installed, or profiles do not fit the graph.
        GraphFileError: the file or a weight file is missing or damaged.
    """
    if not _installed():
        raise OptionError("building needs TensorRT for RTX, which is not installed: pip install tensorrt-rtx")
    path = Path(path).resolve()
    model = load_graph(path)
    view = view_of(model, path)
    fatal = tuple(
        finding for finding in lint_view(view, TARGETS[_TARGET]).findings if finding.rule == "custom-domain"
    )
    if fatal:  # the parser would abort the process
        return BuildReport("", None, (), (), fatal)
    chosen = derive_profiles(view, profiles or {}, TENSORRT_TOPK)
    with tempfile.TemporaryDirectory(prefix="fopru_lint_") as name:
        folder = Path(name)
        fixed = (
            {point: at_point(model, chosen, point) for point in POINTS} if chosen else {"fixed point": model}
        )
        views = {point: view_of(each, path) for point, each in fixed.items()}
        job = {
            "path": str(path),
            "graph": _save(model, folder / "graph.onnx"),
            "points": {point: _save(each.model, folder / f"{point}.onnx") for point, each in views.items()},
            "profiles": {name: [each.at(point) for point in POINTS] for name, each in chosen.items()},
            "capabilities": capabilities,
        }
        lines, end = _run(job, folder, timeout)
    return _report(lines, end, views, chosen)


def _installed() -> bool:
    return importlib.util.find_spec("tensorrt_rtx") is not None


def _save(model: ir.Model, file: Path) -> str:
    """Protobuf only: weights in files stay there."""
    ir.save(model, file)
    return str(file)


def _run(job: dict[str, Any], folder: Path, timeout: float) -> tuple[list[dict[str, Any]], str]:
    """(results in order, how the process ended: "" for well)."""
    request, results = folder / "job.json", folder / "results.jsonl"
    request.write_text(json.dumps(job))
    results.touch()
    # -P: the child's own folder holds modules of common names
    command = [sys.executable, "-P", str(_CHILD), str(request), str(results)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=timeout)
        end = "" if done.returncode == 0 else _reason(done.returncode, done.stderr)
    except subprocess.TimeoutExpired:
        end = f"timeout after {timeout:g} s"
    return [json.loads(line) for line in results.read_text().splitlines()], end


def _reason(code: int, stderr: str) -> str:
    last = next((line for line in reversed(stderr.splitlines()) if line.strip()), "")
    how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
    return f"{how}: {last.strip()[:200]}" if last else how


def _report(
    lines: list[dict[str, Any]], end: str, views: Mapping[str, GraphView], profiles: Mapping[str, Profile]
) -> BuildReport:
    stages: dict[str, list[dict[str, Any]]] = {}
    for line in lines:
        stages.setdefault(line["stage"], []).append(line)
    findings: list[Finding] = []
    for line in stages.get("parsed", []):
        findings += [_refused("rtx-parse", error, "") for error in line["errors"]]
    points = []
    for line in stages.get("inferred", []):
        point = line["point"]
        outputs = {name: tuple(shape) for name, shape in line["shapes"].items()}
        points.append(Point(point, {name: each.at(point) for name, each in profiles.items()}, outputs))
        findings += [_refused("rtx-shapes", error, f"at the {point}") for error in line["errors"]]
        findings += _shape_findings(views[point], outputs, f"at the {point}")
        findings += _not_caught(views[point], f"at the {point}")
    for line in stages.get("inputs", []):
        findings += [
            _error(
                "rtx-profile", f"input '{name}' varies or sizes other tensors, without a profile", "give one"
            )
            for name in line["missing"]
        ]
    engines = []
    for line in stages.get("built", []):
        if line["bytes"] is None:
            why = _one_line(line["logged"][0] if line["logged"] else "no reason given")
            findings.append(_error("rtx-build", f"no engine for {line['capability']}: {why}", _BUILD_FIX))
        else:
            engines.append(Engine(line["capability"], line["seconds"], line["bytes"]))
    if end:
        findings.append(_died(end, lines))
    start, parsed = stages.get("start", [{}])[0], stages.get("parsed", [{}])[0]
    return BuildReport(
        version=start.get("version", ""),
        parse_seconds=parsed.get("seconds"),
        points=tuple(points),
        engines=tuple(engines),
        findings=tuple(findings),
    )


def _shape_findings(view: GraphView, outputs: Mapping[str, tuple[int, ...]], where: str) -> Iterator[Finding]:
    """Outputs whose dims differ from those that ONNX infers for the same inputs, where both know them."""
    for value in view.model.graph.outputs:
        expected, found = dims(value), outputs.get(str(value.name))
        if expected is None or found is None:
            continue
        if len(expected) != len(found) or any(map(_differ, expected, found)):
            message = f"output '{value.name}' has dims {found} {where}, by ONNX they are {expected}"
            yield _error("rtx-shapes", message, "look for a Reshape or Slice that fits one size only")


def _differ(expected: Dim, found: int) -> bool:
    return isinstance(expected, int) and found != -1 and expected != found


def _not_caught(view: GraphView, where: str) -> Iterator[Finding]:
    for finding in lint_view(view, TARGETS[_TARGET]).findings:
        if finding.rule in _POINT_RULES and finding.severity == "error":
            yield dataclasses.replace(finding, message=f"{finding.message} {where}")


def _refused(rule: str, error: Mapping[str, str], where: str) -> Finding:
    message = _one_line(error["message"]) + (f" ({where})" if where else "")
    return _error(rule, message, "lint names what it takes instead", (error["op"], error["node"]))


def _died(end: str, lines: list[dict[str, Any]]) -> Finding:
    last = lines[-1] if lines else {"stage": "starting"}
    doing = " ".join(str(last[key]) for key in ("stage", "point", "capability") if key in last)
    if end.startswith("timeout"):
        return _error("rtx-timeout", f"{end} while {doing}", "allow more seconds, or take a smaller graph")
    return _error(
        "rtx-crash", f"the process ended by {end} while {doing}", "export without the node it names"
    )


def _error(rule: str, message: str, fix: str, node: tuple[str, str] = ("", "")) -> Finding:
    return Finding(rule, "error", node[0], node[1], "", message, fix)


def _one_line(text: str) -> str:
    return "; ".join(line.strip() for line in text.splitlines() if line.strip())[:400] or "no reason given"
