"""The decoder: scales for its weights, where a search finds some that round better."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from calib.precision import Precision, Precisions
from calib.quantize.cases import decoder_cases
from calib.quantize.memory import key_of
from calib.quantize.task import Task
from calib.ranges import Keep

if TYPE_CHECKING:
    from calib.awq import AwqScales

__all__ = ["plan_decoder"]


def plan_decoder(
    task: Task, say: Callable[[str], None], progress: Callable[[str, int, int], None]
) -> AwqScales | None:
    """Scales for weights in 8 or 4 bits; None: the weights are quantised as they are.

    Raises:
        DataError: no sample can be answered.
    """
    precision = task.options.precisions.decoder
    changes = any(name in task.change for name in task.decoder.caches)
    if not precision.weight_only or not changes or not task.options.awq:
        return None
    from calib.awq import DecoderSource, scale_decoder

    cases = decoder_cases(task, task.split.collect)
    graphs = task.bundle.manifest.graphs
    parts = {Precisions.part_of(name): Precision(info.precision) for name, info in graphs.items()}
    root: Path = task.bundle.path
    options = task.options
    source = DecoderSource(
        root, task.bundle.manifest.decoder, Precisions(**parts), options.tensorrt, options.threads
    )
    key = key_of(
        "awq",
        task.source(tuple(graphs)),
        [sample.digest for sample in task.split.collect],
        task.ratio,
        task.options.max_new_tokens,
        precision.text(),
        task.options.tensorrt,
    )
    keep = Keep(task.memory.folder / "awq" / f"{key}.jsonl", key)
    found = scale_decoder(
        source, precision, cases, keep, lambda done, total: progress("scales of the decoder", done, total)
    )
    scaled = sum(fold.alpha > 0 for fold in found.folds)
    say(f"decoder: {scaled} of {len(found.folds)} groups of products are scaled")
    return found
