"""Position ids of a pruned prompt, computed on the host; the graphs only take them.

Policies (FoPru spec, section 8): `renumber` counts the pruned prompt 0, 1, 2, …; `original` gives each kept
token the position that it has in the unpruned prompt, and text goes on after the unpruned image. For M-RoPE
this is `get_rope_index` of transformers' Qwen2.5-VL on the unpruned prompt, gathered by the kept
placeholders.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from runtime.assemble import Assembly
from runtime.layouts import ImagePlan

__all__ = ["Positions", "prompt_positions", "unpruned_end"]


@dataclass(frozen=True)
class Positions:
    """`ids` int64 [axes, L]; generated tokens get `next`, `next` + 1, … on every axis."""

    ids: npt.NDArray[np.int64]
    next: int


def prompt_positions(
    plain: npt.NDArray[np.int64],
    image: int,
    images: Sequence[tuple[ImagePlan, Assembly]],
    policy: str,
    axes: int = 1,
) -> Positions:
    """Positions of a prompt.

    Args:
        plain: token ids [P] with one `image` id per run of placeholders.
        image: id of the image token.
        images: plan and assembly of each image, in the order of the prompt.
        policy: `renumber` or `original`.
        axes: rows of the position ids.
    """
    runs = [part for plan, assembly in images for part in _runs(plan, assembly)]
    if policy == "renumber":
        length = plain.size - len(runs) + sum(offsets.shape[1] for offsets, _ in runs)
        return Positions(np.tile(np.arange(length, dtype=np.int64), (axes, 1)), length)
    parts, start, done = [], 0, 0
    for place, (offsets, span) in zip(np.flatnonzero(plain == image), runs, strict=True):
        text = int(place) - done
        parts += [np.tile(np.arange(start, start + text), (axes, 1)), start + text + offsets]
        start, done = start + text + span, int(place) + 1
    rest = plain.size - done
    parts.append(np.tile(np.arange(start, start + rest), (axes, 1)))
    return Positions(np.concatenate(parts, axis=1).astype(np.int64), start + rest)


def unpruned_end(plain_size: int, plans: Sequence[ImagePlan]) -> int:
    """The position after an unpruned prompt of `plain_size` ids, one of them per run."""
    spans = [span for plan in plans for span in plan.spans]
    return plain_size - len(spans) + sum(spans)


def _runs(plan: ImagePlan, assembly: Assembly) -> list[tuple[npt.NDArray[np.int64], int]]:
    """(offsets of the kept placeholders, span) of each run."""
    ends = np.cumsum(assembly.runs)[:-1]
    kept = np.split(plan.offsets[:, assembly.places], ends, axis=1)
    return list(zip(kept, plan.spans, strict=True))
