"""Several requests at once: each prompt is prefilled by itself, then all answers grow together.

Decoding one sequence reads every weight for one row of work; a batch reads them once for all of its rows.
Only decoders with a cache of kind `shared` do that; with the others, requests are answered one after the
other.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from runtime import contract
from runtime.backend import Backend, View
from runtime.decoder import DecoderGraph, DecoderRun, Room
from runtime.errors import RequestError
from runtime.kv_cache import BatchCache, cache_bytes
from runtime.manifest import DecoderInfo
from runtime.result import Result, Stopwatch
from runtime.rows import Mirror, Rows

if TYPE_CHECKING:
    from runtime.answer import AnswerRun
    from runtime.generator import Generator

__all__ = ["BatchRun", "answer_together"]


class BatchRun:
    """Prefill one by one and decode together, several sequences with a cache of kind `shared`.

    Owns the cache and the small buffers; a step allocates no tensor. Not to be used from two threads at once.
    """

    def __init__(
        self, backend: Backend, graph: DecoderGraph, info: DecoderInfo, rooms: Sequence[Room]
    ) -> None:
        """Allocate everything for one prompt per room."""
        self._backend, self._axes = backend, info.position_axes
        batch, capacity = len(rooms), max(room.capacity for room in rooms)
        self.cache = BatchCache(backend, info, batch, capacity)
        self._graph, self._info, self._rooms = graph, info, list(rooms)
        self._tokens = Mirror(backend, np.zeros((batch, 1), np.int64))
        self._mask = Mirror(backend, np.zeros((batch, capacity), np.int64))
        self._positions = Mirror(backend, np.zeros((self._axes, batch, 1), np.int64))
        embeds = View(backend.allocate(batch * info.hidden_size, "float32"), (batch, 1, info.hidden_size))
        self._logits = View(backend.allocate(batch * info.vocab_size, "float32"), (batch, 1, info.vocab_size))
        past, present = self.cache.views()
        self._embed = graph.embed.bind(
            {contract.INPUT_IDS: self._tokens.view}, {contract.INPUTS_EMBEDS: embeds}
        )
        position_shape = (batch, 1) if self._axes == 1 else self._positions.array.shape
        inputs = {
            contract.INPUTS_EMBEDS: embeds,
            contract.ATTENTION_MASK: self._mask.view,
            contract.POSITION_IDS: View(self._positions.view.buffer, position_shape),
            contract.NUM_LOGITS_TO_KEEP: View(backend.upload(np.ones(1, np.int64)).buffer, ()),
            **past,
        }
        self._decoder = graph.decoder.bind(inputs, {contract.LOGITS: self._logits, **present})

    def prefill(self, row: int, inputs_embeds: Rows) -> npt.NDArray[np.float32]:
        """Run the whole prompt [1, L, D] of a row; returns the last position's logits [V]."""
        room = self._rooms[row]
        run = DecoderRun(self._backend, self._graph, self._info, room, self.cache.rows[row])
        logits = run.prefill(inputs_embeds)
        self._mask.array[row, : self.cache.rows[row].length] = 1
        return logits

    def step(self, tokens: Sequence[int | None]) -> npt.NDArray[np.float32]:
        """Run one more token of each row, None for those that have ended; logits [batch, V], valid until the
        next call, without meaning in rows that have ended.

        Raises:
            RequestError: a row is full.
        """
        for row, token in enumerate(tokens):
            cache = self.cache.rows[row]
            if token is None:
                continue  # its last row is run over: nobody reads it any more
            if cache.length == self.cache.capacity:
                raise RequestError(
                    f"the KV cache holds {cache.capacity} positions, but {cache.length + 1} are needed: "
                    "make the cache for the prompt plus max_new_tokens - 1"
                )
            positions = self._rooms[row].positions
            self._positions.array[:, row] = positions.next + cache.length - positions.ids.shape[1]
            self._tokens.array[row] = token
            cache.advance(1)
            self._mask.array[row, cache.length - 1] = 1
        for mirror in (self._tokens, self._mask, self._positions):
            mirror.push()
        self._embed.run()
        self._decoder.run()
        logits: npt.NDArray[np.float32] = self._backend.download(self._logits)[:, 0]
        return logits


def answer_together(generator: Generator, runs: Sequence[AnswerRun]) -> list[Result]:
    """The results of answers that have begun, in order; their time of decoding is that of the whole batch."""
    with runs[0].watch.stage("load"):
        generator.session(contract.EMBED_TOKENS)
        generator.session(generator.decoder_graph)
    made = [run.prompt() for run in runs]
    rooms = [Room(run.capacity, prompt.positions) for run, (prompt, _, _) in zip(runs, made, strict=True)]
    loops = [loop for _, _, loop in made]
    batch = generator.batch_run(rooms)
    for row, (run, (_, embeds, loop)) in enumerate(zip(runs, made, strict=True)):
        with run.watch.stage("prefill"):
            loop.push(batch.prefill(row, embeds))
    shared = Stopwatch()
    with shared.stage("decode"):
        while not all(loop.finished for loop in loops):
            logits = batch.step([None if loop.finished else loop.token_ids[-1] for loop in loops])
            for row, loop in enumerate(loops):
                if not loop.finished:
                    loop.push(logits[row])
    for run in runs:
        run.watch.seconds |= shared.seconds
        run.kv_allocated = cache_bytes(generator.manifest.decoder, batch.cache.capacity)
    return [run.result() for run in runs]
