"""What a ratio must meet: agreement with the unpruned model, time to first token, size of the KV cache."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from calib.errors import OptionError
from calib.pick import Check
from calib.settings import REFERENCE, Setting
from calib.statistics import METRICS, Results

__all__ = ["DEFAULT_AGREEMENT", "Constraint", "bytes_of", "bytes_text", "seconds_of", "seconds_text"]

DEFAULT_AGREEMENT = 0.98
_SECONDS = {"ms": 1e-3, "s": 1.0}
_BYTES = {
    "B": 1,
    "kB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "KiB": 1 << 10,
    "MiB": 1 << 20,
    "GiB": 1 << 30,
}
_ROUNDING = 1e-9  # 49 of 50 is meant to meet 0.98, whatever the last bit of a percentile says
_WORDS = {"first": "first-token agreement", "answer": "agreement of whole answers", "accuracy": "accuracy"}


@dataclass(frozen=True)
class Constraint:
    """Limits; at least one is set.

    Attributes:
        min_agreement: least fraction in (0, 1] at the lower confidence bound. With metric `accuracy`:
            accuracy may drop by 1 - `min_agreement` at most against the unpruned model on the same samples
            (0.98: by two points), at the lower bound of that paired difference.
        metric: `first`, `answer` or `accuracy`.
        max_ttft: seconds to the first token, the median at its upper confidence bound.
        max_kv: bytes of the KV cache, of the largest sample.
    """

    min_agreement: float | None = None
    metric: str = "first"
    max_ttft: float | None = None
    max_kv: int | None = None

    def __post_init__(self) -> None:
        if self.metric not in METRICS:
            raise OptionError(f"metric is {self.metric!r}, expected one of {', '.join(METRICS)}")
        least = self.min_agreement
        if least is not None and not 0.0 < least <= 1.0:
            raise OptionError(f"min-agreement is {least:g}: give a fraction in (0, 1], e.g. 0.98")
        if least is None and self.max_ttft is None and self.max_kv is None:
            raise OptionError("there is no constraint: give --min-agreement, --max-ttft or --max-kv")

    @property
    def keeps_agreement(self) -> bool:
        """Whether agreement is asked for, so that the lowest ratio is wanted; else the highest."""
        return self.min_agreement is not None

    @property
    def limits(self) -> dict[str, float]:
        """What is set, by `Check.name`."""
        limits = {"agreement": self.min_agreement, "ttft": self.max_ttft, "kv": self.max_kv}
        return {name: limit for name, limit in limits.items() if limit is not None}

    def __str__(self) -> str:
        parts = []
        if self.min_agreement is not None and self.metric == "accuracy":
            parts.append(f"accuracy at most {1 - self.min_agreement:.3g} below the unpruned model's")
        elif self.min_agreement is not None:
            parts.append(f"{_WORDS[self.metric]} of at least {self.min_agreement:g}")
        if self.max_ttft is not None:
            parts.append(f"at most {seconds_text(self.max_ttft)} to the first token")
        if self.max_kv is not None:
            parts.append(f"at most {bytes_text(self.max_kv)} of KV cache")
        return ", ".join(parts)

    def checks(self, results: Results, setting: Setting) -> tuple[Check, ...]:
        """Every limit beside what was measured; one that cannot be told (NaN) is not met."""
        checks = []
        if self.min_agreement is not None:
            checks.append(self.agreement(results, setting))
        if self.max_ttft is not None:
            high = results.median(setting, "ttft").high
            met = high <= self.max_ttft
            text = "the 95 % interval of the median time to the first token ends at "
            text += f"{seconds_text(high)} (limit {seconds_text(self.max_ttft)})"
            checks.append(Check("ttft", self.max_ttft, high, met, text))
        if self.max_kv is not None:
            sizes = results.column(setting, "kv_bytes")
            most = max((size for size in sizes.tolist() if not math.isnan(size)), default=math.nan)
            text = f"the largest KV cache is {bytes_text(most)} (limit {bytes_text(self.max_kv)})"
            checks.append(Check("kv", self.max_kv, most, most <= self.max_kv, text))
        return tuple(checks)

    def agreement(self, results: Results, setting: Setting) -> Check:
        """The check of `min_agreement`, which must be set."""
        least = self.min_agreement
        if least is None:
            raise OptionError("there is no limit of agreement to check: give --min-agreement")
        if self.metric == "accuracy":
            drop = results.difference(setting, REFERENCE, "accuracy")
            value = 1 + drop.low
            text = f"accuracy differs from the unpruned model's by {drop.mean:+.3f}, and the 95 % interval "
            text += f"begins at {drop.low:+.3f} (limit {least - 1:+.3g})"
        else:
            fraction = results.fraction(setting, self.metric)
            value = fraction.low
            text = f"{_WORDS[self.metric]} is {fraction.mean:.3f}, and its 95 % interval begins at "
            text += f"{fraction.low:.3f} (limit {least:g})"
        return Check("agreement", least, value, value >= least - _ROUNDING, text)


def seconds_of(text: str) -> float:
    """`150ms`, `1.5s`.

    Raises:
        OptionError: no number above 0 with one of these units.
    """
    return _quantity("max-ttft", text, _SECONDS, "150ms")


def bytes_of(text: str, option: str = "max-kv") -> int:
    """`64MiB`, `1.5GB`, `4096B`; `option` is named where it is something else.

    Raises:
        OptionError: no number above 0 with one of these units.
    """
    return math.ceil(_quantity(option, text, _BYTES, "64MiB"))


def seconds_text(seconds: float) -> str:
    """Milliseconds below one second."""
    if math.isnan(seconds):
        return "unknown"
    return f"{seconds:.3g} s" if seconds >= 1 else f"{1000 * seconds:.3g} ms"


def bytes_text(size: float) -> str:
    """In the largest binary unit that leaves a number of at least 1."""
    if math.isnan(size):
        return "unknown"
    for unit in ("GiB", "MiB", "KiB"):
        if size >= _BYTES[unit]:
            return f"{size / _BYTES[unit]:.3g} {unit}"
    return f"{size:.0f} B"


def _quantity(option: str, text: str, units: dict[str, float] | dict[str, int], example: str) -> float:
    found = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]*)?|\.[0-9]+)\s*([A-Za-z]+)\s*", text)
    if found and found[2] in units and (value := float(found[1]) * units[found[2]]) > 0:
        return value
    raise OptionError(
        f"{option} is {text!r}: give a number above 0 with a unit ({', '.join(units)}), as {example}"
    )
