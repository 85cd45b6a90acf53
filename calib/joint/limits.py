"""What the joint choice must meet: the limits of a ratio, and of what precision changes."""

from __future__ import annotations

from dataclasses import dataclass

from calib.constraints import Constraint, bytes_text
from calib.errors import OptionError
from calib.pick import Check
from calib.settings import Setting
from calib.statistics import METRICS, Results

__all__ = ["Limits"]


@dataclass(frozen=True)
class Limits:
    """Limits; at least one is set.

    Attributes:
        constraint: of agreement, time and KV cache; None: none of these.
        metric: what is agreed upon, also where no agreement is asked for.
        max_weights: bytes of the graphs and weight files that run.
        max_memory: the same and the largest KV cache.
    """

    constraint: Constraint | None
    metric: str = "first"
    max_weights: int | None = None
    max_memory: int | None = None

    def __post_init__(self) -> None:
        if self.metric not in METRICS:
            raise OptionError(f"metric is {self.metric!r}, expected one of {', '.join(METRICS)}")
        if not self.limits:
            raise OptionError(
                "there is no limit: give --min-agreement, --max-ttft, --max-kv, --max-weights or --max-memory"
            )

    @property
    def keeps_agreement(self) -> bool:
        """Whether agreement is asked for, so that the cheapest is wanted; else the most faithful."""
        return self.constraint is not None and self.constraint.keeps_agreement

    @property
    def limits(self) -> dict[str, float]:
        """What is set, by `Check.name`."""
        sizes = {"weights": self.max_weights, "memory": self.max_memory}
        own = {} if self.constraint is None else self.constraint.limits
        return own | {name: size for name, size in sizes.items() if size is not None}

    def __str__(self) -> str:
        parts = [] if self.constraint is None else [str(self.constraint)]
        if self.max_weights is not None:
            parts.append(f"at most {bytes_text(self.max_weights)} of weights")
        if self.max_memory is not None:
            parts.append(f"at most {bytes_text(self.max_memory)} of weights and KV cache")
        return ", ".join(parts)

    def checks(self, results: Results, setting: Setting, weights: int, memory: float) -> tuple[Check, ...]:
        """Every limit beside what was measured; one that cannot be told (NaN) is not met.

        Args:
            results: with the setting.
            setting: what is checked.
            weights: bytes of its graphs and weight files.
            memory: the same and the largest KV cache; NaN: not measured.
        """
        checks = [] if self.constraint is None else [*self.constraint.checks(results, setting)]
        if self.max_weights is not None:
            limit = self.max_weights
            text = f"its weights take {bytes_text(weights)} (limit {bytes_text(limit)})"
            checks.append(Check("weights", limit, weights, weights <= limit, text))
        if self.max_memory is not None:
            limit = self.max_memory
            text = f"weights and the largest KV cache take {bytes_text(memory)} (limit {bytes_text(limit)})"
            checks.append(Check("memory", limit, memory, memory <= limit, text))
        return tuple(checks)
