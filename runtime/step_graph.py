"""One decoding step with shapes that stay, so that a device may record it and replay it for less.

The past grows with every token, and a recorded run has fixed shapes. So the past is bound longer than it is,
in blocks of 256 rows, and the mask is zero behind its valid rows: the decoder gives these the weight 0, which
leaves the logits as they are but for the order of sums (1e-6 of 4.5 on the toys, in ONNX Runtime). The new
rows come out beside the cache and are copied into it after the step: one copy for all layers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from runtime import contract
from runtime.backend import CapturingBackend, Session, View
from runtime.kv_cache import BLOCK_ROWS, StackedCache
from runtime.rows import Mirror

__all__ = ["PaddedStep", "StepTensors", "longest_past"]


@dataclass(frozen=True)
class StepTensors:
    """What a step reads and writes besides its cache: token id int64 [1, 1], its embedding [1, 1, D], logits
    [1, 1, V], and the number of logits int64 []."""

    token: Mirror
    embedding: View
    logits: View
    count: View


def longest_past(decoder: Session) -> int:
    """Rows of the longest past that a decoder takes, where it says so."""
    limits: dict[str, tuple[int, ...]] = getattr(decoder, "greatest", {})
    return limits.get(contract.past_name(0, "key"), (1, 1 << 62))[1]


class PaddedStep:
    """Runs steps of one cache. Owns mask and positions; the sessions must outlive it."""

    def __init__(
        self,
        backend: CapturingBackend,
        sessions: tuple[Session, Session],
        cache: StackedCache,
        tensors: StepTensors,
        axes: int,
    ) -> None:
        """Allocate; nothing is recorded yet. `sessions` look up a token and decode it, `axes` is that of the
        positions."""
        self._backend, self._cache, self._tensors = backend, cache, tensors
        self._embed, self._decoder = sessions
        self._position = Mirror(backend, np.zeros((1, 1) if axes == 1 else (axes, 1, 1), np.int64))
        self._limit = longest_past(self._decoder)
        self._renew()

    def prepare(self, length: int, capacity: int) -> None:
        """Record the steps from a past of `length` rows up to `capacity`."""
        self._renew()
        while length < capacity:
            block = self._block(length)
            self._step(block)
            length = block + 1

    def run(self, position: int) -> None:
        """Run the step of the token that was written, at this position on every axis; the cache has one row
        more afterwards.

        Raises:
            RequestError: the cache is full.
        """
        self._cache.present(1)  # refuses before anything runs
        self._renew()
        length = self._cache.length
        block = self._block(length)
        self._show(length, block)
        self._position.array[...] = position
        self._position.push()
        self._step(block)()
        self._cache.take_row()

    def _renew(self) -> None:
        """Begin anew with a cache that has grown, whose buffer is another one."""
        if self._cache.capacity == getattr(self, "_capacity", None):
            return
        self._capacity = self._cache.capacity
        self._mask = Mirror(self._backend, np.zeros(self._capacity + 1, np.int64))
        self._shown = (-1, -1)
        self._steps: dict[int, Callable[[], None]] = {}

    def _block(self, length: int) -> int:
        """The past that is bound for one of `length` rows; what is too long, the engine refuses."""
        rows = -(-max(length, 1) // BLOCK_ROWS) * BLOCK_ROWS
        return max(length, min(rows, self._limit))

    def _show(self, length: int, block: int) -> None:
        """Let the mask show so many rows of a past of `block`, and the new one."""
        mask = self._mask.array
        if self._shown == (length - 1, block):
            mask[length - 1] = 1
            self._mask.push(length - 1, 1)
        elif self._shown != (length, block):
            mask[:length], mask[length:block], mask[block] = 1, 0, 1
            self._mask.push(0, block + 1)
        self._shown = length, block

    def _step(self, block: int) -> Callable[[], None]:
        if block not in self._steps:
            tensors = self._tensors
            embed = self._embed.bind(
                {contract.INPUT_IDS: tensors.token.view}, {contract.INPUTS_EMBEDS: tensors.embedding}
            )
            inputs = {
                contract.INPUTS_EMBEDS: tensors.embedding,
                contract.ATTENTION_MASK: View(self._mask.view.buffer, (1, block + 1)),
                contract.POSITION_IDS: self._position.view,
                contract.NUM_LOGITS_TO_KEEP: tensors.count,
                **self._cache.padded(block),
            }
            outputs = {contract.LOGITS: tensors.logits, **self._cache.beside()}
            self._steps[block] = self._backend.capture((embed, self._decoder.bind(inputs, outputs)))
        return self._steps[block]
