"""What a bundle in another precision than float32 may differ from its golden tensors, which are float32.

A looser tolerance for everybody would hide what a precision costs and what a device adds to it. So the build
measures each stage behind a converted graph once, writes the difference down, and a device is held to that:
1.5 times what the build measured, plus the tolerance of float32. Devices round in other places (8-bit
activations or none), which moves the logits by less than the weights' own rounding. Kept indices and answers
cannot be held to a number: how many differ is said, nothing is judged by it.

Sums of float16 are another matter. The CPU that builds adds up in float32 and rounds once per node; a device
may add up in float16, whose error grows with the root of the number of terms. No factor of what was measured
covers that for every model, so a stage of fp16 beyond it is held to the floor that the build itself is held
to (`FLOORS`), whatever adds up how. Instructions for bfloat16 add up in float32.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from math import isfinite
from types import MappingProxyType
from typing import Any

from runtime import contract
from runtime.parity import ParityReport, StageResult

__all__ = ["FLOORS", "HEADROOM", "Component", "Floor", "components_of", "costs_of", "judged"]

HEADROOM = 1.5
"""A device may differ from float32 by so many times what the build measured."""

_VISION = ("image_features", "token_scores", "kept_indices", "pruned_features", "input_ids", "position_ids")
_TEXT = ("inputs_embeds", "logits", "tokens")
_INTEGERS = ("kept_indices", "input_ids", "position_ids", "tokens")
_FP32, _HALF = "fp32", "fp16"


@dataclass(frozen=True)
class Floor:
    """How exact a component in a precision has to be: mean cosine, fraction of likeliest tokens kept, how far
    its numbers may be from the size they have in float32 (a fraction of it), and how good the visual tokens
    are that it chooses (`runtime.parity.StageResult.chosen`)."""

    cosine: float
    top1: float
    gain: float
    chosen: float = 0.8


FLOORS: Mapping[str, Floor] = MappingProxyType(
    {"fp16": Floor(0.999, 0.95, 0.02), "bf16": Floor(0.99, 0.9, 0.05)}
)
"""Below, a graph is broken and not merely rounded.

1 - cosine grows with the square of the rounding. On 200 pictures of the demo float16 (11 bits) measures 1e-7
and bfloat16 (8 bits) 2e-5 for vision, less for logits, so that there is room for deeper models; encoders
in weakly typed float16 that were published as broken had cosines of 0.14 to 0.65.
A cosine does not see a wrong scale: the sizes of features and logits are within 0.13 % (float16)
and 1.8 % (bfloat16) of float32's there.
One token in twenty (bfloat16: in ten) may have another likeliest successor, as random and small models have
near-ties. Weights in 8 and 4 bits have no floor: what they cost depends on the model, and is said.
"""


@dataclass(frozen=True)
class Component:
    """How exact one component of a bundle is beside PyTorch in float32.

    Attributes:
        name: `vision` (rows of the unpruned encoder's features), `pruned vision` (those of the pruned one,
            where it keeps the tokens of float32), `selection` (the tokens it keeps), `decoder` (centred
            logits of every position of text, the visual rows being PyTorch's), or the name of a further
            decoder graph (its logits behind the prompt of the golden tensors).
        precision: of its graphs.
        cosine: mean over rows; None where it is no number, and for `selection`.
        top1: fraction of positions that keep the likeliest token; `decoder` alone has one.
        floor: what is asked of it; None: nothing.
        chosen: of `selection` alone: how good the kept tokens are, see `runtime.parity.StageResult`.
        gain: how many times as large its features or logits are as in float32; None where that is no
            number.
    """

    name: str
    precision: str
    cosine: float | None
    top1: float | None = None
    floor: Floor | None = None
    chosen: float | None = None
    gain: float | None = None

    @property
    def failure(self) -> str | None:
        """A sentence's end where it is below its floor, None where it is not."""
        if self.floor is None:
            return None
        if self.chosen is not None:
            if self.chosen >= self.floor.chosen:
                return None
            return (
                f"{self.name} in {self.precision} keeps tokens worth {self.chosen:.2f}, where those of "
                f"float32 are 1 and the worst ones 0, at least {self.floor.chosen:g} is expected: give "
                "vision another --precision"
            )
        if self.cosine is None or self.cosine < self.floor.cosine:
            found = "no number" if self.cosine is None else f"{self.cosine:.5f}"
            return (
                f"{self.name} in {self.precision} has the cosine {found} to float32, at least "
                f"{self.floor.cosine:g} is expected: give this part another --precision"
            )
        if self.gain is not None and abs(self.gain - 1) > self.floor.gain:
            return (
                f"{self.name} in {self.precision} makes numbers {self.gain:.3f} times as large as in "
                f"float32, {1 - self.floor.gain:g} to {1 + self.floor.gain:g} is expected: give this part "
                "another --precision"
            )
        if self.top1 is not None and self.top1 < self.floor.top1:
            return (
                f"{self.name} in {self.precision} keeps {self.top1:.1%} of the likeliest tokens of float32, "
                f"at least {self.floor.top1:.0%} are expected: give this part another --precision"
            )
        return None

    def to_dict(self) -> dict[str, Any]:
        """For the manifest's parity."""
        return {**asdict(self), "ok": self.failure is None, "failure": self.failure}


def components_of(
    report: ParityReport, precisions: Mapping[str, str], loss: Mapping[str, Any] | None
) -> tuple[Component, ...]:
    """The components that are not float32.

    Args:
        report: of the bundle.
        precisions: by graph.
        loss: `mean_cosine`, `mean_gain` and `top1_agreement` of the logits, measured by the build; None: not
            measured.
    """
    found = []
    vision = precisions.get(contract.VISION_ENCODER, _FP32)
    stages = {each.name: each for each in report.stages}
    stage = stages.get("image_features")
    if vision != _FP32 and stage is not None:
        found.append(Component("vision", vision, stage.cosine, floor=FLOORS.get(vision), gain=stage.gain))
    found += _pruned(stages, precisions)
    decoder = precisions.get(_first_decoder(precisions), _FP32)
    if decoder == _FP32:
        decoder = precisions.get(contract.EMBED_TOKENS, _FP32)
    if decoder != _FP32 and loss is not None:
        cosine, gain, top1 = loss["mean_cosine"], loss["mean_gain"], loss["top1_agreement"]
        found.append(Component("decoder", decoder, cosine, top1, FLOORS.get(decoder), gain=gain))
    return (*found, *_further(stages, precisions))


def _pruned(stages: Mapping[str, StageResult], precisions: Mapping[str, str]) -> list[Component]:
    """Of the graph that scores and selects, which is another one than that of `vision`."""
    precision = precisions.get(contract.VISION_ENCODER_FOPRU, _FP32)
    kept, features = stages.get("kept_indices"), stages.get("pruned_features")
    if precision == _FP32 or kept is None or features is None:
        return []
    found, floor = [], FLOORS.get(precision)
    if kept.chosen is not None:
        found.append(Component("selection", precision, None, floor=floor, chosen=kept.chosen))
    if kept.max_abs_diff == 0.0:  # else rows of other tokens stand beside each other
        found.append(Component("pruned vision", precision, features.cosine, floor=floor, gain=features.gain))
    return found


def _further(stages: Mapping[str, StageResult], precisions: Mapping[str, str]) -> list[Component]:
    """Decoder graphs that the loss of logits is not measured with."""
    kept = stages.get("kept_indices")
    if kept is None or kept.max_abs_diff != 0.0:  # another prompt
        return []
    graphs = ((stage, name.partition(" of ")[2]) for name, stage in stages.items() if _base(name) == "logits")
    return [
        Component(
            graph, precisions[graph], stage.cosine, floor=FLOORS.get(precisions[graph]), gain=stage.gain
        )
        for stage, graph in graphs
        if precisions.get(graph, _FP32) != _FP32
    ]


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
        and isfinite(stage.max_abs_diff)  # JSON has no other numbers, and the stage diverges then
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
    held = replace(stage, ok=difference <= limit, tolerance=limit, detail=cost, reason=reason)
    return held if held.ok or precision != _HALF else _held_to_floor(held)


def _held_to_floor(stage: StageResult) -> StageResult:
    """A stage that is further off than the build was, as sums in float16 may be."""
    floor, cosine, gain = FLOORS[_HALF], stage.cosine, stage.gain
    if cosine is None or gain is None:
        return stage
    return replace(
        stage,
        ok=cosine >= floor.cosine and abs(gain - 1) <= floor.gain,
        detail=f"{stage.detail}, cosine {cosine:.5f}, {gain:.3f} times as large",
        reason=f"fp16: beyond the build, as float16 sums may be; cosine {floor.cosine:g}, size within "
        f"{floor.gain:.0%}",
    )


def _precision_before(stage: str, precisions: Mapping[str, str]) -> str:
    """The converted precision that a stage is behind, the latest graph's first; fp32 where there is none."""
    name = _base(stage)
    graphs: list[str] = []
    if name in ("logits", "tokens"):
        graphs.append(stage.partition(" of ")[2] or _first_decoder(precisions))
    if name in _TEXT:
        graphs.append(contract.EMBED_TOKENS)
    if name in (*_VISION, *_TEXT):
        graphs += [contract.VISION_ENCODER_FOPRU, contract.VISION_ENCODER]
    found = (precisions.get(graph, _FP32) for graph in graphs)
    return next((precision for precision in found if precision != _FP32), _FP32)


def _first_decoder(precisions: Mapping[str, str]) -> str:
    """The decoder that stages without a name are about: a bundle may have the portable one alone."""
    return contract.DECODER if contract.DECODER in precisions else contract.DECODER_PORTABLE


def _base(stage: str) -> str:
    return stage.partition(" of ")[0]
