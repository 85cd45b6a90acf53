"""One quantisation, from an opened task to a finished bundle and all that is known about it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from calib.precision.listing import some_of
from calib.quantize.bundle import Written, part_bytes, write_bundle
from calib.quantize.decoder import plan_decoder
from calib.quantize.graphs import Recipe
from calib.quantize.options import AUTO, MIN_CHOSEN
from calib.quantize.targets import target_notes
from calib.quantize.task import Task
from calib.quantize.vision import VisionPlan, plan_vision

if TYPE_CHECKING:
    from calib.awq import AwqScales

__all__ = ["Outcome", "quantise"]

_ONE_PICTURE = "the data is of one picture, which is judged by too: give more for a fair number"
_NAMED = 3  # of samples that were skipped


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
        options = self.task.options
        if self.vision is not None and not self.vision.fidelity.holds(options.min_cosine):
            fidelity = self.vision.fidelity
            chosen = "" if fidelity.chosen is None else f" and kept tokens worth {fidelity.chosen:.3f}"
            # What auto leaves in float32 is enough for the pictures it was found on.
            way = "more pictures with --samples" if options.keep_float == (AUTO,) else "--keep-float auto"
            found.append(
                f"vision has the cosine {fidelity.cosine:.5f}{chosen}, below --min-cosine "
                f"{options.min_cosine} or {MIN_CHOSEN}, on pictures held out: give {way}, or ask for less"
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
    written = write_bundle(task, recipe, command, say)
    notes = [
        *task.data.notes,
        *([_ONE_PICTURE] if task.split.shared else []),
        *(() if vision is None else vision.notes),
        *(() if awq is None else _by_reason(awq.notes)),
        *written.notes,
        *_skipped({**task.skipped, **written.whole.skipped}),
        *target_notes(task.options.target, task.options.precisions),
    ]
    if written.loss is not None and written.loss.warning:
        notes.append(written.loss.warning)
    before, after = part_bytes(task.bundle.path), part_bytes(written.path)
    return Outcome(task, written, vision, awq, before, after, tuple(dict.fromkeys(notes)))


def _skipped(reasons: Mapping[str, str]) -> list[str]:
    """All of them counted, some of them named."""
    if not reasons:
        return []
    named = [f"{name} ({reason})" for name, reason in list(reasons.items())[:_NAMED]]
    more = [f"and {len(reasons) - _NAMED} more"] if len(reasons) > _NAMED else []
    return [f"{len(reasons)} samples could not be run and are left out: {', '.join([*named, *more])}"]


def _by_reason(notes: Sequence[str]) -> list[str]:
    """`a is not scaled: why` of many layers, once for each why; other notes as they are."""
    named: dict[str, list[str]] = {}
    for note in notes:
        name, is_one, reason = note.partition(" is not scaled: ")
        named.setdefault(reason if is_one else note, []).append(name)
    found = []
    for reason, names in named.items():
        if len(names) == 1:
            found.append(f"{names[0]} is not scaled: {reason}" if names[0] != reason else reason)
            continue
        found.append(f"{some_of(names)} are not scaled: {reason}")
    return found
