"""What quantised vision encoders make of pictures that their ranges do not come from."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from calib.data.sample import Sample
from calib.errors import DataError
from calib.precision import graph_file_of
from calib.quantize.encode import Encoding, SampleVision
from calib.quantize.graphs import Recipe, write_graphs
from calib.quantize.memory import key_of
from calib.quantize.options import MIN_CHOSEN
from calib.quantize.split import pictures_of
from calib.quantize.task import VISION, Task
from runtime.backend import BackendOptions, Session, create_backend
from runtime.errors import ImageError, RequestError
from runtime.parity import UnitScores, compare, row_cosine

__all__ = ["VisionFidelity", "float_encodings", "judge_vision"]


@dataclass(frozen=True)
class VisionFidelity:
    """Quantised encoders beside those of float32, over some pictures.

    Attributes:
        pictures: how many.
        cosine, least_cosine: of rows of the unpruned encoder's features: mean, and that of the worst picture.
        chosen, least_chosen: how good the kept tokens are by float32's scores, see
            `runtime.parity.StageResult`; None where that is not defined.
        same_kept: fraction of pictures of which exactly the same tokens are kept.
        overlap: mean fraction of the kept tokens that float32 keeps too.
    """

    pictures: int
    cosine: float
    least_cosine: float
    chosen: float | None
    least_chosen: float | None
    same_kept: float
    overlap: float

    def holds(self, min_cosine: float) -> bool:
        """Whether features and kept tokens are good enough."""
        return self.cosine >= min_cosine and (self.chosen is None or self.chosen >= MIN_CHOSEN)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def float_encodings(task: Task, samples: Sequence[Sample]) -> list[tuple[Sample, Encoding]]:
    """The pictures of samples through the bundle as it is; those that cannot be used are left out, and noted.

    Raises:
        DataError: none can be used.
    """
    vision = SampleVision(task.bundle, task.ratio, _sessions(task, task.bundle.graph))
    source, found = task.source(VISION), []
    for sample in pictures_of(samples):
        key = key_of("encoding", source, sample.group, task.ratio)

        def encode(sample: Sample = sample) -> dict[str, Any]:
            return dict(vars(vision.encoding(sample)))

        try:
            found.append((sample, Encoding(**task.memory.arrays("encodings", key, encode))))
        except (ImageError, RequestError) as error:
            task.skipped[sample.name] = str(error)
    if not found:
        raise DataError(
            f"none of {len(samples)} samples of {task.data.source} that 8 bits are judged by can be encoded: "
            "check --data and --ratio"
        )
    return found


def judge_vision(
    task: Task, recipe: Recipe, key: str, references: Sequence[tuple[Sample, Encoding]]
) -> VisionFidelity:
    """Convert both encoders, run them, compare.

    Args:
        recipe: how they are converted.
        key: hash of all that the recipe depends on.
        references: from `float_encodings`.
    """
    samples = [sample.group for sample, _ in references]
    full = key_of("vision", key, samples, task.ratio, task.options.tensorrt)
    found = task.memory.answer("trials", full, lambda: _judge(task, recipe, references).to_dict())
    return VisionFidelity(**found)


def _judge(task: Task, recipe: Recipe, references: Sequence[tuple[Sample, Encoding]]) -> VisionFidelity:
    folder = task.memory.folder / f"trial-{os.getpid()}"
    shutil.rmtree(folder, ignore_errors=True)
    try:
        write_graphs(task, folder, VISION, recipe)

        def graph(name: str) -> Path:
            return folder / graph_file_of(name, task.change[name])

        vision = SampleVision(task.bundle, task.ratio, _sessions(task, graph))
        return _mean([(wanted, vision.encoding(sample)) for sample, wanted in references])
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _sessions(task: Task, graph: Callable[[str], Path]) -> Callable[[str], Session]:
    """Opens each graph when it is first needed."""
    opened: dict[str, Session] = {}
    backend = create_backend("onnxruntime", BackendOptions(task.options.threads))

    def session(name: str) -> Session:
        if name not in opened:
            opened[name] = backend.open(graph(name))
        return opened[name]

    return session


def _mean(pairs: Sequence[tuple[Encoding, Encoding]]) -> VisionFidelity:
    cosines = [row_cosine(wanted.features, got.features) or 0.0 for wanted, got in pairs]
    chosen = [found for wanted, got in pairs if (found := _chosen(wanted, got)) is not None]
    same = [np.array_equal(wanted.kept, got.kept) for wanted, got in pairs]
    return VisionFidelity(
        pictures=len(pairs),
        cosine=float(np.mean(cosines)),
        least_cosine=float(np.min(cosines)),
        chosen=float(np.mean(chosen)) if chosen else None,
        least_chosen=float(np.min(chosen)) if chosen else None,
        same_kept=float(np.mean(same)),
        overlap=float(np.mean([_overlap(wanted, got) for wanted, got in pairs])),
    )


def _chosen(wanted: Encoding, got: Encoding) -> float | None:
    arrays: list[dict[str, Any]] = [
        {"token_scores": each.scores, "kept_indices": each.kept, "kept_counts": each.counts}
        for each in (wanted, got)
    ]
    report = compare(arrays[0], arrays[1], UnitScores(tuple(int(count) for count in wanted.tokens)))
    return next(stage.chosen for stage in report.stages if stage.name == "kept_indices")


def _overlap(wanted: Encoding, got: Encoding) -> float:
    one, other = _places(wanted), _places(got)
    return len(one & other) / max(1, len(one))


def _places(encoding: Encoding) -> set[tuple[int, int]]:
    """Kept tokens as (unit, position)."""
    units = np.repeat(np.arange(len(encoding.counts)), encoding.counts)
    return set(zip(units.tolist(), encoding.kept.tolist(), strict=True))
