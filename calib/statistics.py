"""Records to estimates with confidence intervals: a paired bootstrap over pictures.

Samples of one picture (several prompts) are not independent, so pictures are drawn, each with all its
samples. Every setting sees the same draws: a difference of two settings is taken within a draw, where what
makes a picture hard for both cancels out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from calib.errors import OptionError
from calib.record import Record
from calib.settings import REFERENCE, Setting
from calib.summary import Interval, Summary

__all__ = [
    "CONFIDENCE",
    "METRICS",
    "RESAMPLES",
    "Interval",
    "Results",
    "Summary",
    "exact_bound",
    "field_of",
]

METRICS = ("first", "answer", "accuracy")
RESAMPLES = 2000
CONFIDENCE = 0.95
_PERCENTILES = (round(50 * (1 - CONFIDENCE), 9), round(50 * (1 + CONFIDENCE), 9))  # 2.5 and 97.5
_NOTHING = Interval(float("nan"), float("nan"), float("nan"))
_CELLS = 4_000_000  # weights of a block of resamples, at most: 32 MB of int64

Values: TypeAlias = npt.NDArray[np.float64]


def exact_bound(right: float, total: float, confidence: float = CONFIDENCE) -> float:
    """Exact (Clopper-Pearson) one-sided lower bound of a proportion of independent pictures; NaN of none.

    50 of 50 give 0.942 at 95 %: a bootstrap, which sees no picture that differs, would say 1. `right` and
    `total` need not be whole, as where a picture has several samples.

    Raises:
        BackendError: scipy is not installed.
    """
    from runtime.lazy import require

    if total == 0 or right <= 0:
        return float("nan") if total == 0 else 0.0
    stats = require("scipy.stats", "scipy", "calib")
    return float(stats.beta.ppf(1 - confidence, right, total - right + 1))


class Results:
    """Records as columns, with one set of resamples for all questions that are asked of them.

    Immutable. Records with an error count as failed and enter nothing else.
    """

    def __init__(
        self,
        records: Sequence[Record],
        groups: Mapping[str, str],
        *,
        seed: int = 0,
        resamples: int = RESAMPLES,
    ) -> None:
        """`groups`: picture of each sample, by its name; `resamples`: draws, at least 1.

        Raises:
            OptionError: a sample without a picture, less than one resample, a negative seed.
        """
        if resamples < 1:
            raise OptionError(f"resamples is {resamples}: give at least 1, usually {RESAMPLES}")
        if seed < 0:
            raise OptionError(f"seed is {seed}: give 0 or more")
        self._samples = sorted({record.sample for record in records})
        if missing := [name for name in self._samples if name not in groups]:
            raise OptionError(
                f"{len(missing)} samples have results but are not in the data, as {missing[0]}: give the "
                "data that was measured, or start again with --fresh"
            )
        self._places = {name: place for place, name in enumerate(self._samples)}
        self._rows: dict[Setting, dict[int, Record]] = {}
        for record in records:
            self._rows.setdefault(record.setting, {})[self._places[record.sample]] = record
        _, self._group = np.unique([groups[name] for name in self._samples], return_inverse=True)
        self._weights = _draws(int(self._group.max(initial=-1)) + 1, resamples, seed)

    @property
    def settings(self) -> tuple[Setting, ...]:
        """What was measured, in the order in which the records name it."""
        return tuple(self._rows)

    @property
    def pictures(self) -> int:
        """How many different pictures there are."""
        return int(self._weights.shape[1])

    def summary(self, setting: Setting) -> Summary:
        """All figures of a setting that was measured."""
        good = [record for record in self._rows[setting].values() if record.error is None]
        labelled = any(record.correct is not None for record in good)
        ttft = self.column(setting, "ttft")
        measured = ttft[~np.isnan(ttft)]
        quartiles = (np.percentile(measured, 25), np.percentile(measured, 75)) if good else (np.nan, np.nan)
        return Summary(
            samples=len(good),
            failed=len(self.failed(setting)),
            first=self.mean(setting, "same_first"),
            answer=self.mean(setting, "same_answer"),
            accuracy=self.mean(setting, "correct") if labelled else None,
            divergence=self.mean(setting, "divergence"),
            first_bound=self.bound(setting, "first"),
            answer_bound=self.bound(setting, "answer"),
            ttft=self.median(setting, "ttft"),
            ttft_quartiles=(float(quartiles[0]), float(quartiles[1])),
            kv_bytes=self.mean(setting, "kv_bytes").mean,
            kv_most=max((record.kv_bytes for record in good), default=0),
            before=self.mean(setting, "before").mean,
            after=self.mean(setting, "after").mean,
        )

    def first_error(self, setting: Setting) -> str | None:
        """Why the first sample, by name, that could not be measured could not; None: all could."""
        rows = sorted(self._rows[setting].items())
        return next((record.error for _, record in rows if record.error is not None), None)

    def fraction(self, setting: Setting, metric: str) -> Interval:
        """Mean of a metric of `METRICS`."""
        return self.mean(setting, field_of(metric))

    def mean(self, setting: Setting, field: str) -> Interval:
        """Mean of a number or yes/no of the records, over the samples that have it."""
        return self._mean(self.column(setting, field))

    def bound(self, setting: Setting, metric: str) -> float:
        """Exact one-sided lower bound of a metric, were all samples of a picture right or wrong together; of
        `accuracy`, of the fraction that is not wrong where the unpruned model is right: accuracy drops by no
        more than what is missing to 1."""
        values = self.column(setting, field_of(metric))
        if metric == "accuracy":
            values = np.where(np.isnan(values), np.nan, self.column(REFERENCE, "correct") <= values)
        known = ~np.isnan(values)
        if not known.any():
            return exact_bound(0.0, 0)
        # Pictures with many samples count for more: so many that all have the same tell as much (Kish, 1965).
        counts = np.bincount(self._group[known])
        effective = float(counts.sum() ** 2 / (counts**2).sum())
        return exact_bound(float(values[known].mean()) * effective, effective)

    def pictures_of(self, setting: Setting, metric: str) -> int:
        """On how many pictures a metric of a setting is known."""
        return len(np.unique(self._group[~np.isnan(self.column(setting, field_of(metric)))]))

    def failed(self, setting: Setting) -> list[Record]:
        """Of a setting that was measured, the records with an error, by name of the sample."""
        return [record for _, record in sorted(self._rows[setting].items()) if record.error is not None]

    def commonest_start(self, setting: Setting) -> tuple[int, int]:
        """How many answers begin with the commonest first token, and how many answers there are."""
        starts = Counter(record.tokens[0] for record in self._rows.get(setting, {}).values() if record.tokens)
        return max(starts.values(), default=0), starts.total()

    def differing(self, first: Setting, second: Setting, metric: str) -> int:
        """On how many pictures two settings differ."""
        field = field_of(metric)
        apart = np.nan_to_num(self.column(first, field) - self.column(second, field))
        return int(np.count_nonzero(np.bincount(self._group, weights=apart, minlength=self.pictures)))

    def difference(self, first: Setting, second: Setting, metric: str) -> Interval:
        """Mean of `first` - `second` over the samples that both have: paired, so that it is sharper than two
        intervals side by side."""
        field = field_of(metric)
        return self._mean(self.column(first, field) - self.column(second, field))

    def median(self, setting: Setting, field: str) -> Interval:
        """Median of a number of the records, and its interval."""
        values = self.column(setting, field)
        there = ~np.isnan(values)
        if not there.any():
            return _NOTHING
        kept, group = values[there], self._group[there]
        order = np.argsort(kept, kind="stable")
        kept, group = kept[order], group[order]
        block = max(1, _CELLS // kept.size)
        medians = [
            _weighted_medians(kept, self._weights[start : start + block][:, group])
            for start in range(0, len(self._weights), block)
        ]
        return _interval(float(np.median(kept)), np.concatenate(medians))

    def column(self, setting: Setting, field: str) -> Values:
        """float64 [samples], sorted by name; NaN where there is no measurement."""
        values = np.full(len(self._samples), np.nan)
        for place, record in self._rows.get(setting, {}).items():
            value = getattr(record, field)
            if record.error is None and value is not None:
                values[place] = value
        return values

    def _mean(self, values: Values) -> Interval:
        there = ~np.isnan(values)
        if not there.any():
            return _NOTHING
        pictures = self.pictures
        sums = np.bincount(self._group[there], weights=values[there], minlength=pictures)
        counts = np.bincount(self._group[there], minlength=pictures)
        drawn = self._weights @ counts
        some = drawn > 0  # a draw may hold only pictures that failed
        return _interval(float(values[there].mean()), (self._weights @ sums)[some] / drawn[some])


def field_of(metric: str) -> str:
    """The field of `Record` behind a metric.

    Raises:
        OptionError: an unknown metric.
    """
    fields = dict(zip(METRICS, ("same_first", "same_answer", "correct"), strict=True))
    if metric not in fields:
        raise OptionError(f"metric is {metric!r}, expected one of {', '.join(METRICS)}")
    return fields[metric]


def _draws(pictures: int, resamples: int, seed: int) -> npt.NDArray[np.int64]:
    """int64 [resamples, pictures]: how often each draw of as many pictures holds each of them."""
    if pictures == 0:
        return np.zeros((resamples, 0), np.int64)
    drawn = np.random.default_rng(seed).integers(pictures, size=(resamples, pictures))
    cells = drawn + pictures * np.arange(resamples)[:, None]
    return np.bincount(cells.reshape(-1), minlength=resamples * pictures).reshape(resamples, pictures)


def _weighted_medians(values: Values, weights: npt.NDArray[np.int64]) -> Values:
    """Of sorted `values` [N], each repeated as `weights` [draws, N] says: float64 [draws that hold any]."""
    reached = np.cumsum(weights, axis=1)
    reached = reached[reached[:, -1] > 0]
    total = reached[:, -1:]
    lower = np.argmax(2 * reached >= total, axis=1)
    upper = np.argmax(2 * reached > total, axis=1)
    medians: Values = (values[lower] + values[upper]) / 2
    return medians


def _interval(mean: float, drawn: Values) -> Interval:
    if drawn.size == 0:
        return _NOTHING
    low, high = np.percentile(drawn, _PERCENTILES)
    return Interval(mean, float(low), float(high))
