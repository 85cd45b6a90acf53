"""What the decoder is judged and scaled on: prompts of the data with pruned visual tokens, and the bundle's
own answers behind them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from calib.data.sample import Sample
from calib.errors import DataError
from calib.measure.pictures import open_picture
from calib.precision.loss import LossCase
from calib.quantize.memory import key_of
from calib.quantize.task import Task
from runtime import contract
from runtime.errors import ImageError, RequestError
from runtime.generator import Generator
from runtime.plan import plan_pruning
from runtime.request import Request
from runtime.reuse import NO_REUSE
from runtime.vision import Selection

__all__ = ["decoder_cases"]


def decoder_cases(task: Task, samples: Sequence[Sample]) -> tuple[LossCase, ...]:
    """A case for each sample that can be used; the others are noted.

    Raises:
        DataError: none can.
    """
    source = task.source([contract.VISION_ENCODER_FOPRU, contract.EMBED_TOKENS, *_decoders(task)])
    maker = _Maker(task)
    cases = []
    for sample in samples:
        key = key_of("case", source, sample.digest, task.ratio, task.options.max_new_tokens)

        def make(sample: Sample = sample) -> dict[str, Any]:
            return maker.make(sample)

        try:
            cases.append(LossCase(**task.memory.arrays("cases", key, make)))
        except (ImageError, RequestError) as error:
            task.skipped[sample.name] = str(error)
    if not cases:
        raise DataError(
            f"none of {len(samples)} samples of {task.data.source} can be answered: check --data and --ratio"
        )
    return tuple(cases)


def _decoders(task: Task) -> tuple[str, ...]:
    return tuple(task.bundle.manifest.decoder.caches)


@dataclass
class _Maker:
    """Runs the float bundle; opened for the first sample that is not known."""

    task: Task
    generator: Generator | None = None

    def make(self, sample: Sample) -> dict[str, Any]:
        task = self.task
        if self.generator is None:
            self.generator = Generator(task.bundle, "onnxruntime", task.options.threads, NO_REUSE)
        generator = self.generator
        pictures = tuple(open_picture(image) for image in sample.images)
        request = Request(
            sample.prompt, pictures, ratio=task.ratio, max_new_tokens=task.options.max_new_tokens
        )
        prepared = generator.preprocess(pictures)
        plans = [image.plan for image in prepared]
        counts = plan_pruning(request, generator.manifest, plans).counts
        encoded = generator.encode_images(prepared, Selection(counts))
        prompt = generator.prompt(generator.tokenize(request, plans), encoded)
        answer = np.asarray(generator.generate(request, encoded).token_ids, np.int64)
        ids = np.concatenate([prompt.ids[0], answer])
        visual = ids == generator.manifest.tokens.image
        visual[prompt.ids.shape[1] :] = False  # a token that happens to be a placeholder is read as a token
        places = prompt.positions.ids.reshape(-1, prompt.ids.shape[1])
        after = places.max() + 1 + np.arange(len(answer))
        return {
            "ids": ids,
            "visual": visual,
            "features": np.concatenate([np.asarray(image.features) for image in encoded]),
            "positions": np.concatenate([places, np.tile(after, (len(places), 1))], axis=1).astype(np.int64),
        }
