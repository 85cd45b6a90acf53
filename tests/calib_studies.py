"""Studies with made-up results, for the tests of the report."""

from __future__ import annotations

import hashlib
import io
from dataclasses import replace
from typing import Any

import numpy as np
from PIL import Image

from calib.data.sample import Data, Sample
from calib.pick import Check, Pick
from calib.record import Record
from calib.settings import REFERENCE, SELECTORS, Setting
from calib.study import Study
from calib.summary import Interval, Summary
from runtime.counts import kept_count

PICKED = Setting("rank", 0.5)
TOKENS = 16  # of a picture of the toy bundle


def picture(seed: int, size: tuple[int, int] = (20, 30)) -> bytes:
    """PNG of noise, height x width."""
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def sample(number: int, **changes: Any) -> Sample:
    """A sample with one picture of its own."""
    content = picture(number)
    digest = hashlib.sha256(content).hexdigest()
    made = Sample(f"photo_{number}.png", (content,), f"How many are there on {number}?", "4", digest, digest)
    return replace(made, **changes)


def summary(mean: float, ratio: float, **changes: Any) -> Summary:
    """Of 500 samples, of which the fraction `mean` agrees; time and memory go down with the ratio."""
    around = Interval(mean, max(mean - 0.02, 0.0), min(mean + 0.01, 1.0))
    seconds = 0.05 + 0.1 * ratio
    made = Summary(
        samples=500,
        failed=0,
        first=around,
        answer=around,
        accuracy=around,
        divergence=Interval(1 - mean, 0.0, 1.0),
        first_bound=mean - 0.01,
        answer_bound=mean - 0.01,
        ttft=Interval(seconds, seconds * 0.99, seconds * 1.01),
        ttft_quartiles=(seconds * 0.9, seconds * 1.2),
        kv_bytes=2**20 * (0.1 + ratio),
        kv_most=2**21,
        before=TOKENS,
        after=max(1, round(TOKENS * ratio)),
    )
    return replace(made, **changes)


def summaries(selectors: tuple[str, ...] = SELECTORS) -> dict[Setting, Summary]:
    """Of some selectors at four ratios: the later in the list, the worse."""
    found = {REFERENCE: summary(1.0, 1.0)}
    for place, selector in enumerate(selectors):
        for ratio in (0.79, 0.5, 0.25, 0.1):
            found[Setting(selector, ratio)] = summary(1 - 0.02 * (place + 1) / ratio, ratio)
    return found


def record(of: Sample, setting: Setting, **changes: Any) -> Record:
    """A measurement that agrees with the unpruned model; the first tokens are kept."""
    keeps = setting.selector not in ("none", "resize")
    kept = tuple(range(kept_count(TOKENS, setting.ratio))) if keeps else ()
    made = Record(of.name, setting, TOKENS, len(kept) or TOKENS, kept, (7, 2), "4", True, True)
    return replace(made, **changes)


def study(count: int = 3, samples: tuple[Sample, ...] = (), **changes: Any) -> Study:
    """A study of all selectors that picked `PICKED`."""
    shown = samples or tuple(sample(number) for number in range(count))
    checks = (Check("agreement", 0.9, 0.94, True, "first-token agreement is 0.960, at least 0.940"),)
    made = Study(
        data=Data("photos", shown),
        records=tuple(record(each, setting) for each in shown for setting in (REFERENCE, PICKED)),
        summaries=summaries(),
        pick=Pick(PICKED, ("at the next lower ratio, 0.25, it is 0.920",), checks),
        constraint="first-token agreement of at least 0.9",
        metric="first",
        command="python -m calib.ratio bundle --data photos",
        versions={"numpy": "2.0"},
        facts={"name": "toy", "machine": "Linux x86_64", "tokens": TOKENS},
        seed=0,
        limits={"agreement": 0.9},
    )
    return replace(made, **changes)
