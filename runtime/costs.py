"""What a bundle in another precision than float32 may differ from its golden tensors, which are float32.

A looser tolerance for everybody would hide what a precision costs and what a device adds to it. So the build
measures each stage behind a converted graph once, writes the difference down, and a device is held to that:
1.5 times what the build measured, plus the tolerance of float32. Devices round in other places (float16 sums,
8-bit activations or none), which moves the logits by less than the weights' own rounding. Kept indices and
answers cannot be held to a number: how many differ is said, nothing is judged by it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from runtime import contract
from runtime.parity import ParityReport, StageResult

__all__ = ["HEADROOM", "costs_of", "judged"]

HEADROOM = 1.5
"""A device may differ from float32 by so many times what the build measured."""

_VISION = ("image_features", "token_scores", "kept_indices", "pruned_features", "input_ids", "position_ids")
_TEXT = ("inputs_embeds", "logits", "tokens")
_INTEGERS = ("kept_indices", "input_ids", "position_ids", "tokens")
_FP32 = "fp32"


def judged(
    report: ParityReport, precisions: Mapping[str, str], recorded: Mapping[str, Any] | None
) -> ParityReport:
    """A strict report read for a bundle in these precisions.

    Args:
        report: every stage against float32, with float32's tolerances.
        precisions: by graph.
        recorded: the manifest's parity; None while a bundle is being built.

    Returns:
        The stages behind a converted graph with their cost in `detail` and a tolerance of `HEADROOM` times
        the recorded difference; stages of float32 as they were.
    """
    built = None if recorded is None else recorded.get("costs", {})
    return ParityReport(tuple(_judged(stage, precisions, built) for stage in report.stages))


def costs_of(report: ParityReport, precisions: Mapping[str, str]) -> dict[str, float]:
    """Largest difference of each stage behind a converted graph, for the manifest; stages without one, and
    integers that are as in float32, are left out."""
    return {
        stage.name: stage.max_abs_diff
        for stage in report.stages
        if stage.max_abs_diff is not None
        and _precision_before(stage.name, precisions) != _FP32
        and (stage.max_abs_diff > 0 or _base(stage.name) not in _INTEGERS)
    }


def _judged(
    stage: StageResult, precisions: Mapping[str, str], built: Mapping[str, float] | None
) -> StageResult:
    precision = _precision_before(stage.name, precisions)
    if precision == _FP32 or stage.skipped:
        return stage
    name, difference = _base(stage.name), stage.max_abs_diff
    if name in _INTEGERS:
        detail = "as in float32" if stage.ok else f"differs from float32, as {precision} may: {stage.detail}"
        return replace(stage, ok=True, detail=detail, reason=f"{precision}: said, not judged")
    if difference is None:
        # Other tokens were kept, so that there is nothing to compare; or the values are no numbers.
        kept = precisions.get(contract.VISION_ENCODER_FOPRU, _FP32) != _FP32 and "shape" in stage.detail
        return replace(stage, ok=kept, detail=f"{precision}: {stage.detail}")
    cost = f"{precision} costs {difference:.1e}"
    if built is None:
        ok = difference < float("inf")  # false for NaN
        return replace(stage, ok=ok, tolerance=difference, detail=cost, reason=f"{precision}: measured here")
    limit = HEADROOM * float(built.get(stage.name) or 0.0) + stage.tolerance
    reason = f"{precision}: {HEADROOM} times what the build measured, plus float32's"
    return replace(stage, ok=difference <= limit, tolerance=limit, detail=cost, reason=reason)


def _precision_before(stage: str, precisions: Mapping[str, str]) -> str:
    """The converted precision that a stage is behind, the latest graph's first; fp32 where there is none."""
    name = _base(stage)
    graphs: list[str] = []
    if name in ("logits", "tokens"):
        # Without a name it is the first decoder of the bundle, which may have the portable one alone.
        first = contract.DECODER if contract.DECODER in precisions else contract.DECODER_PORTABLE
        graphs.append(stage.partition(" of ")[2] or first)
    if name in _TEXT:
        graphs.append(contract.EMBED_TOKENS)
    if name in (*_VISION, *_TEXT):
        graphs += [contract.VISION_ENCODER_FOPRU, contract.VISION_ENCODER]
    found = (precisions.get(graph, _FP32) for graph in graphs)
    return next((precision for precision in found if precision != _FP32), _FP32)


def _base(stage: str) -> str:
    return stage.partition(" of ")[0]
