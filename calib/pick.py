"""What was chosen, and why."""

from __future__ import annotations

from dataclasses import dataclass

from calib.settings import Setting

__all__ = ["Check", "Pick"]


@dataclass(frozen=True)
class Check:
    """One limit beside what was measured, both in the limit's unit.

    Attributes:
        name: `agreement`, `ttft` or `kv`.
        limit: what was asked: a fraction, seconds or bytes.
        value: the bound that is compared with it.
        met: whether it holds.
        text: a sentence.
    """

    name: str
    limit: float
    value: float
    met: bool
    text: str


@dataclass(frozen=True)
class Pick:
    """The choice.

    Attributes:
        setting: what the bundle will do; `REFERENCE` where the whole model meets the constraint, too.
        reasons: sentences: why this ratio.
        checks: every limit at this setting; all are met.
        notes: sentences: baselines that do as well or better, other strategies that reach further.
        rebuild: command that builds a bundle with a better strategy, layer or aggregation; None: there is
            none.
    """

    setting: Setting
    reasons: tuple[str, ...]
    checks: tuple[Check, ...]
    notes: tuple[str, ...] = ()
    rebuild: str | None = None
