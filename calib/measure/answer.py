"""From visual tokens to an answer and the logits of its first token, by the stages of the runtime."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from calib.measure.whole import WARM_UPS
from runtime import contract
from runtime.answer import AnswerRun
from runtime.generator import Generator
from runtime.kv_cache import cache_bytes
from runtime.request import Request
from runtime.result import Result
from runtime.vision import EncodedImage

__all__ = ["Answer", "answer"]


@dataclass(frozen=True)
class Answer:
    """A greedy answer.

    `result` is the runtime's, `logits` float32 [V] of the first token, `embed` and `prefill` seconds as in
    `runtime.Timings`, `kv_bytes` of the rows of the cache that were used.
    """

    result: Result
    logits: npt.NDArray[np.float32]
    embed: float
    prefill: float
    kv_bytes: int


def answer(
    generator: Generator, request: Request, encoded: Sequence[EncodedImage], *, warm_up: bool
) -> Answer:
    """Answer a request whose images are all encoded; `warm_up`: untimed before, up to its first token.

    Raises:
        FopruError: something is wrong with the request or the bundle.
    """
    generator.session(contract.EMBED_TOKENS)
    generator.session(generator.decoder_graph)
    for _ in range(WARM_UPS if warm_up else 0):
        _answer(generator, replace(request, max_new_tokens=1), encoded)
    return _answer(generator, request, encoded)


def _answer(generator: Generator, request: Request, encoded: Sequence[EncodedImage]) -> Answer:
    course = AnswerRun(generator, request, tuple(encoded))
    course.begin(lambda: False)
    prompt, embeds, loop = course.prompt()
    start = time.perf_counter()
    decoder = generator.decoder_run(course.capacity, prompt.positions)
    first = decoder.prefill(embeds)
    loop.push(first)
    prefill = time.perf_counter() - start
    logits = np.array(first, np.float32)  # a copy: valid until the next step
    while not loop.finished:
        loop.push(decoder.step(loop.token_ids[-1]))
    result = course.result()
    used = cache_bytes(generator.manifest.decoder, decoder.cache.length)
    return Answer(result, logits, result.timings.embed, prefill, used)
