"""What is compared: one way to choose tokens, at one ratio, of one bundle."""

from __future__ import annotations

from dataclasses import dataclass

from calib.errors import OptionError

__all__ = ["BASELINES", "LADDER", "METHODS", "REFERENCE", "SELECTORS", "Setting"]

METHODS = ("rank", "row", "cls")
BASELINES = ("random", "uniform", "resize")
SELECTORS = (*METHODS, *BASELINES)

LADDER = (0.79, 0.63, 0.5, 0.4, 0.32, 0.25, 0.2, 0.16, 0.126, 0.1, 0.079, 0.063, 0.05)
"""Ratios that a search may try, high to low, 1 / 1.26 apart (ten steps are one order of magnitude)."""


@dataclass(frozen=True, order=True)
class Setting:
    """One point of a comparison.

    Attributes:
        selector: one of `SELECTORS`, or "none", which keeps every token. `rank`, `row` and `cls` are FoPru
            (`cls`: rank by the attention of the class token); `resize` makes the picture smaller instead.
        ratio: fraction of the visual tokens that is KEPT, in (0, 1].
        layer: 0-based encoder layer that scores; None: the bundle's.
        aggregation: how attention becomes a score; None: the bundle's (`cls` for selector `cls`).
        precision: which bundle: "" is the one that is calibrated, others are named by the caller.
    """

    selector: str
    ratio: float
    layer: int | None = None
    aggregation: str | None = None
    precision: str = ""

    def __post_init__(self) -> None:
        if self.selector not in (*SELECTORS, "none"):
            raise OptionError(f"selector is {self.selector!r}, expected one of {', '.join(SELECTORS)}")
        if not 0.0 < self.ratio <= 1.0:  # also true for NaN
            raise OptionError(
                f"ratio is {self.ratio}, but it is the fraction of tokens kept: give a number in "
                "(0, 1], e.g. 0.3"
            )
        if self.selector == "none" and self.ratio != 1.0:
            raise OptionError(f"selector 'none' keeps every token, but ratio is {self.ratio}: give 1")


REFERENCE = Setting("none", 1.0)
"""What every other setting is compared with: the unpruned model of the bundle that is calibrated."""
