"""One answer's run through the decoder: prefill in chunks, then token by token, tensors made beforehand."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from runtime import contract
from runtime.backend import Array, Backend, Binding, CapturingBackend, Session, View
from runtime.errors import RequestError
from runtime.kv_cache import KVCache, StackedCache, make_cache
from runtime.manifest import DecoderInfo
from runtime.positions import Positions
from runtime.rows import Mirror, Rows, fetch, view_of
from runtime.step_graph import PaddedStep, StepTensors, longest_past

__all__ = ["PREFILL_ROWS", "DecoderGraph", "DecoderRun", "Room"]

PREFILL_ROWS = 512
"""Rows of a prompt that go through the decoder at once: attention holds heads x rows x length scores of a
layer (see docs/decisions)."""


@dataclass(frozen=True)
class Room:
    """What a run is made for: a KV cache of `capacity` rows, and the positions of its prompt."""

    capacity: int
    positions: Positions


@dataclass(frozen=True)
class DecoderGraph:
    """The opened graphs of the language model and how the cache of the decoder grows."""

    embed: Session
    decoder: Session
    cache: str


class DecoderRun:
    """Prefill and decode of one sequence.

    Owns the KV cache and the small buffers, all made on construction: a step allocates no tensor, and binds
    only what changes. The sessions must outlive it. Not to be used from two threads at once.
    """

    def __init__(
        self,
        backend: Backend,
        graph: DecoderGraph,
        info: DecoderInfo,
        room: Room,
        cache: KVCache | None = None,
    ) -> None:
        """Allocate everything; `cache` is an empty one of at least that capacity, None a new one.

        Raises:
            RequestError: the decoder was built for less.
        """
        self._backend, self._graph, self._info = backend, graph.decoder, info
        self._check_room(room)
        self.cache = make_cache(backend, info, graph.cache, room.capacity) if cache is None else cache
        self._token = Mirror(backend, np.zeros((1, 1), np.int64))
        self._embedding = View(backend.allocate(info.hidden_size, "float32"), (1, 1, info.hidden_size))
        self._logits = View(backend.allocate(info.vocab_size, "float32"), (1, 1, info.vocab_size))
        self._count = View(backend.upload(np.ones(1, np.int64)).buffer, ())
        self._embed = graph.embed.bind(
            {contract.INPUT_IDS: self._token.view}, {contract.INPUTS_EMBEDS: self._embedding}
        )
        self._decoder = self._bind()
        self._padded: PaddedStep | None = None
        if isinstance(self.cache, StackedCache) and isinstance(backend, CapturingBackend):
            tensors = StepTensors(self._token, self._embedding, self._logits, self._count)
            sessions = graph.embed, graph.decoder
            self._padded = PaddedStep(backend, sessions, self.cache, tensors, info.position_axes)
        self._make_room(room)

    def rewind(self, length: int, room: Room) -> None:
        """Keep the first `length` rows of the cache and go on with another prompt, which begins with them.

        The cache grows to `room.capacity` if it is smaller.

        Raises:
            RequestError: the cache has no `length` rows, or the prompt leaves none to compute; or the decoder
            was built for less.
        """
        self._check_room(room)
        if not 0 <= length <= min(self.cache.length, room.positions.ids.shape[1] - 1):
            raise RequestError(
                f"cannot keep {length} rows of a cache of {self.cache.length} for a prompt of "
                f"{room.positions.ids.shape[1]}: keep at most all cached rows, and fewer than the prompt has"
            )
        self.cache.cut(length)
        if room.capacity > self.cache.capacity:
            self._decoder = self._bind()  # the old one keeps the buffers alive that make way
            self.cache.grow(room.capacity)
        self._make_room(room)

    def warm(self) -> None:
        """After `prefill`: record the steps of an answer, where the backend can."""
        if self._padded is not None:
            self._padded.prepare(self.cache.length, self.cache.capacity)

    def prefill(self, inputs_embeds: Rows) -> npt.NDArray[np.float32]:
        """Run the rest of the prompt [1, L, D], as `Generator.embed` returns it or in numpy; returns the last
        position's logits [V], valid until the next call.

        Raises:
            RequestError: cached rows and these are not the prompt that the positions were made for.
        """
        first, rows, width = self.cache.length, inputs_embeds.shape[1], inputs_embeds.shape[2]
        if first + rows != self._prompt.shape[1]:
            raise RequestError(
                f"got {rows} rows after {first}, but the positions were made for a prompt of "
                f"{self._prompt.shape[1]}: prefill exactly what the cache lacks"
            )
        whole = view_of(self._backend, inputs_embeds)
        for start in range(0, rows, PREFILL_ROWS):
            new = min(PREFILL_ROWS, rows - start)
            positions = np.ascontiguousarray(self._prompt[:, first + start : first + start + new])
            self._run(
                View(whole.buffer, (1, new, width), offset=whole.offset + start * width),
                View(self._backend.upload(positions).buffer, self._position_shape(new)),
            )
        # The binding would keep the embeddings of the whole prompt.
        self._decoder.update({contract.INPUTS_EMBEDS: self._embedding}, {})
        return self._result()

    def step(self, token: int) -> npt.NDArray[np.float32]:
        """Run one more token; returns the logits [V] for the next, valid until the next call."""
        generated = self.cache.length - self._prompt.shape[1]
        if generated < 0:
            raise RequestError(
                f"the cache has {self.cache.length} rows of a prompt of {len(self._prompt[0])}: prefill first"
            )
        self._token.array[...] = token
        self._token.push()
        if self._padded is not None:
            self._padded.run(self._first + generated)
            return self._result()
        self._embed.run()
        self._run(
            self._embedding,
            View(self._later, self._position_shape(1), offset=generated * len(self._prompt)),
        )
        return self._result()

    def _check_room(self, room: Room) -> None:
        """Now, not in the middle of an answer: an engine takes a past of so many rows."""
        limit, rows = longest_past(self._graph), room.positions.ids.shape[1]
        if room.capacity - 1 > limit:
            raise RequestError(
                f"a prompt of {rows} rows and its answer need {room.capacity - 1} rows of KV cache, but the "
                f"engine takes {limit}: lower the ratio or max_new_tokens, or build engines for more with "
                "`python -m runtime.engine`"
            )

    def _bind(self) -> Binding:
        """The decoder with what never changes."""
        return self._graph.bind({contract.NUM_LOGITS_TO_KEEP: self._count}, {contract.LOGITS: self._logits})

    def _make_room(self, room: Room) -> None:
        """Positions, mask and cache of a prompt."""
        axes, length = room.positions.ids.shape
        if axes != self._info.position_axes:
            raise RequestError(
                f"the positions have {axes} axes, but the decoder takes {self._info.position_axes}: "
                "make them with Generator.prompt"
            )
        backend, steps = self._backend, max(0, room.capacity - length)
        self._prompt = room.positions.ids
        self._first = room.positions.next
        later = self._first + np.arange(steps, dtype=np.int64)
        self._later = backend.upload(np.repeat(later, axes)).buffer  # a step has the same on every axis
        self._mask = backend.upload(np.ones(self.cache.capacity, np.int64)).buffer
        if self.cache.fixed:
            self._decoder.update(self.cache.past(), self.cache.present(0))

    def _run(self, embeds: View, positions: View) -> None:
        new = embeds.shape[1]
        inputs = {
            contract.INPUTS_EMBEDS: embeds,
            contract.ATTENTION_MASK: View(self._mask, (1, self.cache.length + new)),
            contract.POSITION_IDS: positions,
        }
        present = self.cache.present(new)  # refuses what does not fit
        if self.cache.fixed:
            self._decoder.update(inputs, {})
        else:
            self._decoder.update({**inputs, **self.cache.past()}, present)
        self._decoder.run()
        self.cache.advance(new)

    def _result(self) -> Array:
        logits: Array = fetch(self._backend, self._logits).result()[0, 0]
        return logits

    def _position_shape(self, new: int) -> tuple[int, ...]:
        return (1, new) if len(self._prompt) == 1 else (len(self._prompt), 1, new)
