"""Which groups of layers stay float32: none, some by name, or as few as the fidelity needs."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from calib.errors import RunError
from calib.quantize.options import AUTO, MIN_CHOSEN, NONE
from calib.quantize.trial import VisionFidelity
from calib.sensitivity import GroupLoss, keep_float, weights_of

__all__ = ["choose_float"]


def choose_float(
    wanted: tuple[str, ...],
    losses: Sequence[GroupLoss],
    min_cosine: float,
    evaluate: Callable[[frozenset[str]], VisionFidelity],
) -> tuple[tuple[str, ...], frozenset[str]]:
    """Decide.

    Args:
        wanted: `--keep-float`.
        losses: of all groups.
        min_cosine: what `auto` keeps to, with `MIN_CHOSEN`.
        evaluate: fidelity with some weights in float32, on pictures that nothing is judged on.

    Returns:
        Names of groups, and their weights.

    Raises:
        OptionError: a name that is no group.
        RunError: nothing would be quantised.
    """
    groups = [loss.group for loss in losses]

    def cosine(weights: frozenset[str]) -> float:
        found = evaluate(weights)
        return found.cosine if found.chosen is None or found.chosen >= MIN_CHOSEN else 0.0

    if wanted == (AUTO,):
        names = keep_float(losses, cosine, min_cosine)
        why = f"the cosine {min_cosine} holds with all {len(groups)} groups in float32 alone"
    else:
        names = () if wanted == (NONE,) else wanted
        why = f"keep-float names all {len(groups)} groups"
    weights = weights_of(groups, names)
    if len(names) == len(groups):
        raise RunError(
            f"{why}, so that nothing of the vision encoder would be quantised: lower --min-cosine, try "
            "--ranges percentile, or leave vision out of --precision"
        )
    return names, weights
