"""The KV rows of the last answer, kept for a prompt that begins in the same way.

A row of the cache is a function of the rows before it and of its own: its input and its position. So two
prompts share their first rows exactly as far as these agree: the token id of text, the feature vector of a
visual token (a newline vector is one), and the position on every axis. Ratio, strategy, picture and system
prompt need no rule of their own: whatever they change in the prompt ends the common part there.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest

import numpy as np
import numpy.typing as npt

from runtime.decoder import DecoderRun, Room
from runtime.kv_cache import oversized
from runtime.positions import Positions
from runtime.rows import DeviceRows, Rows
from runtime.vision import EncodedImage

__all__ = ["PrefixCache", "PromptRows", "Start", "prompt_rows"]


@dataclass(frozen=True)
class PromptRows:
    """What decides each row of a KV cache.

    `ids` int64 [L] and their `positions`; `images` are (first row, digest of its features) in the order of
    the prompt, to tell apart the rows whose id is that of the image token.
    """

    ids: npt.NDArray[np.int64]
    positions: Positions
    images: tuple[tuple[int, bytes], ...]

    def common(self, other: PromptRows) -> int:
        """Number of first rows that are the same in both."""
        length = min(self.ids.size, other.ids.size)
        differ = self.ids[:length] != other.ids[:length]
        differ |= (self.positions.ids[:, :length] != other.positions.ids[:, :length]).any(axis=0)
        if differ.any():
            length = int(differ.argmax())
        for pair in zip_longest(self.images, other.images):
            # A generated image token has the id of a visual token, and no image: so unequal lengths count.
            if pair[0] != pair[1]:
                return min(length, *(image[0] for image in pair if image is not None))
        return length

    def followed_by(self, tokens: Sequence[int]) -> PromptRows:
        """With the rows of generated tokens, which go on at `positions.next`."""
        later = self.positions.next + np.arange(len(tokens), dtype=np.int64)
        ids = np.concatenate([self.positions.ids, np.tile(later, (len(self.positions.ids), 1))], axis=1)
        return replace(
            self,
            ids=np.concatenate([self.ids, np.asarray(tokens, np.int64)]),
            positions=Positions(ids, self.positions.next + len(tokens)),
        )


def prompt_rows(
    ids: npt.NDArray[np.int64], positions: Positions, images: Sequence[EncodedImage], image: int
) -> PromptRows:
    """The rows of a prompt: ids [1, L] with one id `image` per visual token."""
    places = np.flatnonzero(ids[0] == image)
    starts = np.cumsum([0, *(len(encoded.features) for encoded in images)])[:-1]
    return PromptRows(
        ids[0],
        positions,
        tuple(
            (int(places[start]), _digest(encoded.features))
            for start, encoded in zip(starts, images, strict=True)
        ),
    )


def _digest(features: Rows) -> bytes:
    """SHA-256 of the numbers; on a device of what they were made from."""
    if isinstance(features, DeviceRows):
        return features.digest
    return hashlib.sha256(np.ascontiguousarray(features).data).digest()


@dataclass(frozen=True)
class Start:
    """A run whose cache holds the first `reused` rows of a prompt: `run.prefill` wants the others.

    `rows` are those of the whole prompt; None where nothing is to be kept.
    """

    run: DecoderRun
    reused: int = 0
    rows: PromptRows | None = None
    epoch: int = 0


class PrefixCache:
    """Keeps the run of one answer, the last that ended in order. Not to be used from two threads at once.

    A run is taken out while it is used: an answer that fails leaves none behind, and an answer begun before
    another one has ended gets a run of its own.
    """

    def __init__(self, on: bool) -> None:
        """Start empty, and stay so where reuse is off."""
        self.on = on
        self._kept: tuple[DecoderRun, PromptRows] | None = None
        self._epoch = 0  # how often all was forgotten: an answer begun before leaves nothing

    def start(self, rows: PromptRows, room: Room, fresh: Callable[[], DecoderRun]) -> Start:
        """A run for a prompt: the kept one, rewound to the rows that the prompt shares with it, or a fresh
        one. What is kept and cannot serve is let go before the fresh one is made."""
        taken = self._take(rows, room.capacity)
        if taken is None:
            return Start(fresh(), 0, rows, self._epoch)
        run, reused = taken
        run.rewind(reused, room)
        return Start(run, reused, rows, self._epoch)

    def keep(self, start: Start, tokens: Sequence[int]) -> None:
        """Keep a run after its answer, in place of what was kept; `tokens` are those fed to it since."""
        if self.on and start.rows is not None and start.epoch == self._epoch:
            self._kept = start.run, start.rows.followed_by(tokens)

    def forget(self) -> None:
        """Let the kept run go, and do not keep those that are in use."""
        self._kept = None
        self._epoch += 1

    @property
    def nbytes(self) -> int:
        """Bytes of the KV cache that is kept."""
        return 0 if self._kept is None else self._kept[0].cache.allocated_bytes

    def _take(self, rows: PromptRows, capacity: int) -> tuple[DecoderRun, int] | None:
        """The kept run and the rows that serve; from now on it is not kept."""
        if self._kept is None:
            return None
        (run, old), self._kept = self._kept, None
        # The last row of the prompt is always run: its logits are wanted, and no cache has them.
        reused = min(old.common(rows), rows.ids.size - 1)
        reused -= reused % run.cache.row_step
        # A cache of twice the size would outlive the request that needed it, to save a short prefill.
        wasteful = oversized(run.cache, capacity) and 2 * reused < rows.ids.size
        return None if reused == 0 or wasteful else (run, reused)
