"""One quantisation, from an opened task to a finished bundle and all that is known about it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from calib.quantize.bundle import Written, part_bytes, write_bundle
from calib.quantize.decoder import plan_decoder
from calib.quantize.graphs import Recipe
from calib.quantize.targets import target_notes
from calib.quantize.task import Task
from calib.quantize.vision import VisionPlan, plan_vision

if TYPE_CHECKING:
    from calib.awq import AwqScales

__all__ = ["Outcome", "quantise"]

_ONE_PICTURE = "the data is of one picture, which is judged by too: give more for a fair number"


@dataclass(frozen=True)
class Outcome:
    """What came out; `before` and `after` are bytes by part. None: that part stays as it was."""

    task: Task
    written: Written
    vision: VisionPlan | None
    awq: AwqScales | None
    before: dict[str, int]
    after: dict[str, int]
    notes: tuple[str, ...]

    @property
    def failures(self) -> tuple[str, ...]:
        """What is below what was asked for, in sentences."""
        found = []
        if self.vision is not None and not self.vision.choice.holds:
            fidelity = self.vision.choice.fidelity
            chosen = "" if fidelity.chosen is None else f" and kept tokens worth {fidelity.chosen:.3f}"
            found.append(
                f"vision has the cosine {fidelity.cosine:.5f}{chosen}, below --min-cosine "
                f"{self.task.options.min_cosine:g} and 0.98: give --keep-float auto, or ask for less"
            )
        parity = self.written.parity or {}
        found += [each["failure"] for each in parity.get("components", ()) if each["failure"]]
        if not parity.get("ok", True):
            found.append(f"parity with the golden tensors ends at {parity['first_divergence']}")
        return tuple(found)


def quantise(
    task: Task, command: str, say: Callable[[str], None], progress: Callable[[str, int, int], None]
) -> Outcome:
    """Do it; what needs samples is kept in the work folder and found again.

    Raises:
        CalibError, FopruError: it cannot be finished; the output is as it was.
    """
    vision = plan_vision(task, say, progress) if task.calibrated else None
    awq = plan_decoder(task, say, progress)
    recipe = Recipe(
        {} if vision is None else vision.scales,
        {} if awq is None else dict.fromkeys(task.decoder.caches, awq.apply),
    )
    say(f"writing {task.options.output}")
    written = write_bundle(task, recipe, command)
    notes = [
        *task.data.notes,
        *([_ONE_PICTURE] if task.split.shared else []),
        *(() if vision is None else vision.notes),
        *(() if awq is None else awq.notes),
        *written.notes,
        *target_notes(task.options.target, task.options.precisions),
    ]
    if written.loss is not None and written.loss.warning:
        notes.append(written.loss.warning)
    before, after = part_bytes(task.bundle.path), part_bytes(written.path)
    return Outcome(task, written, vision, awq, before, after, tuple(dict.fromkeys(notes)))
