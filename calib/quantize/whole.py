"""Answers of the new bundle beside those of the float32 one, on samples held out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from calib.errors import RunError
from calib.measure.runner import RunnerSpec, SampleRunner
from calib.quantize.task import Task
from calib.record import Record
from calib.settings import REFERENCE, Setting

__all__ = ["WholeFidelity", "measure_whole"]

_LABEL = "quantised"


@dataclass(frozen=True)
class WholeFidelity:
    """Whole answers, vision and decoder together.

    Attributes:
        samples: how many.
        skipped: samples that one of the bundles cannot answer, with why.
        unpruned_first, unpruned_kl: with every token kept, how often the first token of the answer is that of
            float32, and the mean KL divergence of its probabilities, in nats.
        first, answer: at the ratio, how often the first token, and the whole answer, is that of float32 at
            the same ratio.
        overlap: mean fraction of the kept tokens that float32 keeps too.
        float_kl, kl: mean KL divergence from float32 unpruned, of float32 and of the new bundle pruned.
    """

    samples: int
    skipped: dict[str, str]
    unpruned_first: float
    unpruned_kl: float
    first: float
    answer: float
    overlap: float
    float_kl: float
    kl: float

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def measure_whole(task: Task, quantised: Path) -> WholeFidelity:
    """Run all held-out samples through both bundles.

    Raises:
        RunError: no sample can be answered by both.
    """
    spec = RunnerSpec(
        bundles=(("", task.bundle.path), (_LABEL, quantised)),
        backend="onnxruntime",
        threads=task.options.threads,
        max_new_tokens=task.options.max_new_tokens,
        seed=task.options.seed,
        work=task.memory.folder,
    )
    runner = SampleRunner(spec)
    own = task.bundle.manifest.pruning.strategy
    pruned = Setting(own, task.ratio) if task.ratio < 1.0 else REFERENCE
    settings = (
        Setting("none", 1.0, precision=_LABEL),
        pruned,
        Setting(pruned.selector, pruned.ratio, precision=_LABEL),
    )
    good, skipped = [], {}
    for sample in task.split.judge:
        row = runner.run(sample, settings)
        error = next((record.error for record in row if record.error is not None), None)
        if error is None:
            good.append(row)
        else:
            skipped[sample.name] = error
    if not good:
        error = next(iter(skipped.values()))
        raise RunError(f"no sample can be answered by the float32 and the new bundle ({error})")
    return _mean(good, skipped)


def _mean(rows: Sequence[Sequence[Record]], skipped: dict[str, str]) -> WholeFidelity:
    def mean(values: Sequence[float]) -> float:
        return float(np.mean(values))

    return WholeFidelity(
        samples=len(rows),
        skipped=skipped,
        unpruned_first=mean([whole.same_first for whole, _, _ in rows]),
        unpruned_kl=mean([whole.divergence for whole, _, _ in rows]),
        first=mean([wanted.tokens[:1] == got.tokens[:1] for _, wanted, got in rows]),
        answer=mean([wanted.tokens == got.tokens for _, wanted, got in rows]),
        overlap=mean([_overlap(wanted, got) for _, wanted, got in rows]),
        float_kl=mean([wanted.divergence for _, wanted, _ in rows]),
        kl=mean([got.divergence for _, _, got in rows]),
    )


def _overlap(wanted: Record, got: Record) -> float:
    """Positions start again with every image, so that they are counted one by one."""
    if wanted.kept == got.kept:
        return 1.0
    left, both = list(wanted.kept), 0
    for position in got.kept:
        if position in left:
            left.remove(position)
            both += 1
    return both / max(1, len(wanted.kept))
