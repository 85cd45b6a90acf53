"""What targets say to the pruned encoder of every family: our lint, and TensorRT for RTX where installed."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest

from export.families import FAMILIES
from fopru_graph.lint import lint_file
from fopru_graph.lint.profiles import Profile
from fopru_graph.lint.rtx import build_check
from runtime import contract
from runtime.bundle import Bundle, load_bundle
from tests.toy_families import TOYS

needs_rtx = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None,
    reason="TensorRT for RTX is not installed: pip install tensorrt-rtx",
)
RATIOS = (0.01, 0.3, 1.0)


@dataclass(frozen=True)
class Feeds:
    """Inputs of the pruned encoder for pictures of three sizes, at three ratios."""

    points: tuple[dict[str, np.ndarray], ...]

    def profiles(self) -> dict[str, Profile]:
        found = {}
        for name in self.points[0]:
            # The host reads num_keep and grid, so a profile has their content.
            shapes = [
                tuple(int(n) for n in point[name])
                if name in (contract.NUM_KEEP, contract.GRID)
                else point[name].shape
                for point in self.points
            ]
            if len(set(shapes)) > 1 or name in (contract.NUM_KEEP, contract.GRID):
                found[name] = Profile(*shapes)
        return found


def feeds_of(bundle: Bundle) -> Feeds:
    """Smallest, usual and greatest sizes of the first unit of a picture."""
    layout, points = bundle.manifest.layout, []
    for images, (side, ratio) in enumerate(zip((32, 64, 128), RATIOS, strict=True), 1):
        plan = layout.plan(side, side)
        unit, units = plan.units[0], 1 if layout.unit_tokens is None else images
        views = np.stack([np.zeros((3, *view_size(bundle, side)), np.float32) for _ in range(units)])
        point = {contract.PIXEL_VALUES: layout.pack(views), **plan.inputs}
        point[contract.NUM_KEEP] = np.array([max(1, int(unit.tokens * ratio))], np.int64)
        if layout.masked:
            point[contract.TOKEN_MASK] = np.ones((units, unit.tokens), np.bool_)
        points.append(point)
    return Feeds(tuple(points))


def view_size(bundle: Bundle, side: int) -> tuple[int, int]:
    from PIL import Image

    view = bundle.manifest.layout.views(Image.new("RGB", (side, side)), 2)[0]
    return view.shape[0], view.shape[1]


def test_every_family_has_a_toy() -> None:
    assert set(TOYS) == set(FAMILIES)


@pytest.mark.parametrize("family", sorted(FAMILIES))
@pytest.mark.parametrize("target", ["jetpack6", "jetpack7", "tensorrt10", "tensorrt-rtx", "ort"])
def test_the_lint_of_a_target_finds_no_error(
    family: str, target: str, family_bundle: Callable[[str], Path]
) -> None:
    for graph in (contract.VISION_ENCODER_FOPRU, contract.VISION_ENCODER):
        report = lint_file(load_bundle(family_bundle(family)).graph(graph), target)
        assert [finding for finding in report.findings if finding.severity == "error"] == []


@needs_rtx
@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_tensorrt_for_rtx_infers_the_shapes_of_onnx_runtime_and_builds(
    family: str, family_bundle: Callable[[str], Path]
) -> None:
    bundle = load_bundle(family_bundle(family))
    path, feeds = bundle.graph(contract.VISION_ENCODER_FOPRU), feeds_of(bundle)
    report = build_check(path, feeds.profiles(), capabilities=("SM86",))
    assert report.ok, report.findings
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    for point, values in zip(report.points, feeds.points, strict=True):
        shapes = {name: out.shape for name, out in zip(names, session.run(None, values), strict=True)}
        assert point.outputs == shapes
