"""One answer's run through the decoder: prefill, then token by token, all tensors made beforehand."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from runtime import contract
from runtime.backend import Array, Backend, Session, View
from runtime.errors import RequestError
from runtime.kv_cache import KVCache
from runtime.manifest import DecoderInfo
from runtime.positions import Positions

__all__ = ["DecoderRun", "Room"]


@dataclass(frozen=True)
class Room:
    """What a run is made for: a KV cache of `capacity` rows, and the positions of its prompt."""

    capacity: int
    positions: Positions


class DecoderRun:
    """Prefill and decode of one sequence.

    Owns the KV cache and the small buffers, all made on construction: a call allocates no tensor, only the
    names, views and bindings that it hands to the engine. The sessions must outlive it. Not to
    be used from two threads at once.
    """

    def __init__(
        self, backend: Backend, sessions: tuple[Session, Session], info: DecoderInfo, room: Room
    ) -> None:
        """Allocate everything; `sessions` are (embed_tokens, decoder)."""
        self.cache = KVCache(backend, info, room.capacity)
        self._backend = backend
        self._embed, self._decoder = sessions
        self._token: Any = np.zeros(1, np.int64)
        self._mask = backend.upload(np.ones(room.capacity, np.int64)).buffer
        self._axes, self._prompt = room.positions.ids.shape
        if self._axes != info.position_axes:
            raise RequestError(
                f"the positions have {self._axes} axes, but the decoder takes {info.position_axes}: "
                "make them with Generator.prompt"
            )
        later = room.positions.next + np.arange(max(0, room.capacity - self._prompt), dtype=np.int64)
        # The prompt's [axes, L], then one row of `axes` equal numbers for each step.
        flat = np.concatenate([room.positions.ids.reshape(-1), np.repeat(later, self._axes)])
        self._positions = backend.upload(flat).buffer
        self._count = View(backend.upload(np.ones(1, np.int64)).buffer, ())
        self._logits = View(backend.allocate(info.vocab_size, "float32"), (1, 1, info.vocab_size))
        self._embedding = View(backend.allocate(info.hidden_size, "float32"), (1, 1, info.hidden_size))

    def prefill(self, inputs_embeds: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Run the prompt [1, L, D]; returns the last position's logits [V], valid until the next call."""
        return self._run(self._backend.upload(inputs_embeds))

    def step(self, token: int) -> npt.NDArray[np.float32]:
        """Run one more token; returns the logits [V] for the next, valid until the next call."""
        self._token[0] = token
        ids = self._backend.upload(self._token)
        self._embed.run_bound(
            {contract.INPUT_IDS: View(ids.buffer, (1, 1))}, {contract.INPUTS_EMBEDS: self._embedding}
        )
        return self._run(self._embedding)

    def _run(self, embeds: View) -> Array:
        new = embeds.shape[1]
        total = self.cache.length + new
        self._decoder.run_bound(
            {
                contract.INPUTS_EMBEDS: embeds,
                contract.ATTENTION_MASK: View(self._mask, (1, total)),
                contract.POSITION_IDS: self._position_view(new),
                contract.NUM_LOGITS_TO_KEEP: self._count,
                **self.cache.past(),
            },
            {contract.LOGITS: self._logits, **self.cache.present(new)},
        )
        self.cache.advance(new)
        logits: Array = self._backend.download(self._logits)[0, 0]
        return logits

    def _position_view(self, new: int) -> View:
        """Positions of the next `new` rows; with several axes they are the whole prompt or a step."""
        start = self.cache.length
        if self._axes == 1:
            return View(self._positions, (1, new), offset=start)
        whole = start == 0 and new == self._prompt
        if not whole and (start < self._prompt or new != 1):
            raise RequestError(
                f"got {new} rows after {start}, but positions of {self._axes} axes were made for a prompt of "
                f"{self._prompt}: give it whole, then token by token"
            )
        return View(self._positions, (self._axes, 1, new), offset=self._axes * start)
