"""What targets say about the pruned encoder of a bundle: lint, and TensorRT for RTX where it is installed."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fopru_graph.errors import OptionError
from fopru_graph.lint import TARGETS, Finding, LintReport, lint_file
from fopru_graph.lint.profiles import Profile, read_on_host
from fopru_graph.lint.rtx import build_check
from runtime import contract
from runtime.bundle import Bundle
from runtime.counts import kept_count
from runtime.preprocess import prepare

__all__ = ["RtxFound", "graver_findings", "lint_found", "rtx_found", "rtx_profiles"]

Size = tuple[int, int]
MOST_SELECTED = 3839  # by TensorRT's TopK


@dataclass(frozen=True)
class RtxFound:
    """What TensorRT for RTX made of a graph; `verdict` in words, seconds None where it did not get so far."""

    verdict: str
    version: str = ""
    parse_seconds: float | None = None
    build_seconds: float | None = None
    engine_bytes: int | None = None
    findings: tuple[str, ...] = ()


def lint_found(bundle: Bundle) -> dict[str, LintReport]:
    """What the lint says about the pruned encoder, by target."""
    graph = bundle.graph(contract.VISION_ENCODER_FOPRU)
    return {target: lint_file(graph, target) for target in TARGETS}


def graver_findings(reports: dict[str, LintReport]) -> Iterator[str]:
    """Errors and warnings in a sentence each: once per rule, with all targets that it holds for."""
    found: dict[str, tuple[Finding, list[str]]] = {}
    for target, report in reports.items():
        for finding in (*report.of("error"), *report.of("warning")):
            _, targets = found.setdefault(finding.rule, (finding, []))
            if target not in targets:
                targets.append(target)
    for finding, targets in found.values():
        yield f"{', '.join(targets)}: {finding}"


def rtx_found(bundle: Bundle, sizes: Sequence[Size], ratio: float, build: bool) -> RtxFound:
    """Parse the pruned encoder for pictures of the given sizes, and build it for SM86.

    Args:
        bundle: whose pruned encoder.
        sizes: (height, width) of pictures, which bound what varies.
        ratio: fraction kept at the optimum of the profile.
        build: False: parse and infer shapes only.
    """
    if importlib.util.find_spec("tensorrt_rtx") is None:
        return RtxFound("not installed")
    capabilities = ("SM86",) if build else ()
    try:
        found = build_check(
            bundle.graph(contract.VISION_ENCODER_FOPRU),
            rtx_profiles(bundle, sizes, ratio),
            capabilities=capabilities,
        )
    except OptionError as error:
        return RtxFound(f"no profile: {error}")
    parsed = not any(finding.rule in ("rtx-parse", "rtx-crash") for finding in found.findings)
    verdict = ("built" if found.engines else "parsed") if parsed else "refused"
    engine = found.engines[0] if found.engines else None
    return RtxFound(
        verdict if found.ok else f"{verdict}, {len(found.findings)} findings",
        found.version,
        found.parse_seconds,
        engine.seconds if engine else None,
        engine.bytes if engine else None,
        tuple(str(finding) for finding in found.findings),
    )


def rtx_profiles(bundle: Bundle, sizes: Sequence[Size], ratio: float) -> dict[str, Profile]:
    """A profile for every input of the pruned encoder that varies, from the feeds of real pictures."""
    import onnx_ir as ir

    graph = ir.load(bundle.graph(contract.VISION_ENCODER_FOPRU)).graph
    points = [_feeds(bundle, size, units, ratio) for size, units in _points(bundle, sizes)]
    keeps = [1, points[1][contract.NUM_KEEP][0], min(MOST_SELECTED, points[2][contract.NUM_KEEP][1])]
    profiles = {}
    for value in graph.inputs:
        name = str(value.name)
        rows: list[tuple[int, ...]]
        if name == contract.NUM_KEEP:
            rows = [(int(keep),) for keep in keeps]
        elif read_on_host(value):
            rows = [tuple(int(number) for number in np.ravel(point[name])) for point in points]
        elif value.shape is not None and all(isinstance(size, int) for size in value.shape):
            continue
        else:
            rows = [tuple(int(size) for size in point[name].shape) for point in points]
        profiles[name] = Profile(*rows)
    return profiles


def _points(bundle: Bundle, sizes: Sequence[Size]) -> list[tuple[Size, int]]:
    """(picture, units per call) at minimum, optimum and maximum."""
    if bundle.manifest.layout.unit_tokens is not None:
        return [(sizes[0], units) for units in (1, 1, 4)]
    ordered = sorted(sizes, key=math.prod)
    return [(ordered[0], 1), (sizes[0], 1), (ordered[-1], 1)]


def _feeds(bundle: Bundle, size: Size, units: int, ratio: float) -> dict[str, Any]:
    """Inputs of the pruned encoder; `num_keep` holds what the ratio keeps, and all tokens."""
    from PIL import Image

    manifest = bundle.manifest
    prepared = prepare(Image.new("RGB", (size[1], size[0])), manifest.layout, manifest.preprocess)
    unit = prepared.plan.units[0]
    first = prepared.pixel_values[:1]
    return {
        contract.PIXEL_VALUES: np.broadcast_to(first, (units, *first.shape[1:])),
        **prepared.plan.inputs,
        contract.NUM_KEEP: np.array([kept_count(unit.tokens, ratio), unit.tokens]),
        contract.TOKEN_MASK: np.ones((units, unit.tokens), np.bool_),
        contract.GRID: np.array(unit.grid or (1, unit.tokens), np.int64),
    }
