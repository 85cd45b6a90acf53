"""The decoder's key/value cache, allocated once per answer for the pruned prompt plus the answer.

One class for each way in which decoder graphs grow their cache (`contract.CACHES`). With `shared` and
`append` the new rows are written behind the old ones, in place; `concat`, of older bundles, needs two
buffers that take turns.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, TypeAlias

from runtime import contract
from runtime.backend import Backend, CapturingBackend, View
from runtime.dtypes import storage_dtype
from runtime.errors import RequestError
from runtime.manifest import DecoderInfo
from runtime.rows import copy_view

__all__ = [
    "ALIGNMENT",
    "BLOCK_ROWS",
    "BatchCache",
    "KVCache",
    "StackedCache",
    "cache_bytes",
    "make_cache",
    "oversized",
]

ALIGNMENT = 256
"""Bytes that the address of a tensor is a multiple of where runs are recorded: what TensorRT documents."""

BLOCK_ROWS = 256
"""Rows by which the cache of a backend that records runs grows (see `runtime.step_graph`)."""


def cache_bytes(info: DecoderInfo, positions: int) -> int:
    """Bytes of one copy of the cache for `positions` tokens."""
    item = storage_dtype(info.cache_dtype).itemsize
    return 2 * info.layers * info.kv_heads * info.head_dim * positions * item


def make_cache(backend: Backend, info: DecoderInfo, kind: str, capacity: int) -> KVCache:
    """An empty cache of a kind (`contract.CACHES`) for `capacity` positions of one sequence."""
    if kind == contract.APPEND and isinstance(backend, CapturingBackend):
        return StackedCache(backend, info, capacity)
    kinds: dict[str, type[KVCache]] = {
        contract.SHARED: _SharedCache,
        contract.APPEND: _AppendCache,
        contract.CONCAT: _ConcatCache,
    }
    return kinds[kind](backend, info, capacity)


_Stored: TypeAlias = tuple[Any, int, int]
"""A buffer, the rows that it has room for, and those that it holds."""


def oversized(cache: KVCache, capacity: int) -> bool:
    """Whether a cache is of more than twice the size that a request needs."""
    wanted = 2 * capacity
    return cache.capacity > (_in_blocks(wanted) if isinstance(cache, StackedCache) else wanted)


class KVCache(ABC):
    """Keys and values of up to `capacity` positions of one sequence, of which `length` are valid.

    Use: bind `past()` and `present(new)`, run the decoder, then `advance(new)`. Owns its buffers; not to be
    used from two threads at once.
    """

    copies = 1
    """Buffers of `capacity` rows per tensor."""

    fixed = False
    """Whether past and present are the same views at every step."""

    row_step = 1
    """New rows of more than one step can only be written behind a multiple of so many."""

    def __init__(self, backend: Backend, info: DecoderInfo, capacity: int) -> None:
        """Allocate the buffers of every tensor."""
        self.capacity = capacity
        self.length = 0
        self._backend, self._info = backend, info
        self._names = [(layer, part) for layer in range(info.layers) for part in ("key", "value")]
        self._row = info.kv_heads * info.head_dim
        self._buffers = self._allocate()

    @property
    def nbytes(self) -> int:
        """Bytes of one copy at full length: what the cache holds."""
        return cache_bytes(self._info, self.capacity)

    @property
    def allocated_bytes(self) -> int:
        """Bytes really allocated."""
        return self.copies * self.nbytes

    def past(self) -> dict[str, View]:
        """Decoder inputs by name."""
        views = map(self._past_view, self._buffers)
        return {contract.past_name(*name): view for name, view in zip(self._names, views, strict=True)}

    def present(self, new: int) -> dict[str, View]:
        """Decoder outputs by name, with room for `new` more positions.

        Raises:
            RequestError: that is more than the capacity.
        """
        if self.length + new > self.capacity:
            raise RequestError(
                f"the KV cache holds {self.capacity} positions, but {self.length + new} are needed: "
                "make the cache for the prompt plus max_new_tokens - 1"
            )
        return self._present(new)

    def _present(self, new: int) -> dict[str, View]:
        views = (self._present_view(buffer, new) for buffer in self._targets())
        return {contract.present_name(*name): view for name, view in zip(self._names, views, strict=True)}

    def advance(self, new: int) -> None:
        """Make the present the past: `new` more positions are valid."""
        self.length += new

    def cut(self, length: int) -> None:
        """Forget all positions but the first `length` valid ones."""
        self.length = length

    def grow(self, capacity: int) -> None:
        """Make room for `capacity` positions; the valid ones are copied, once."""
        if capacity <= self.capacity:
            return
        before, self.capacity = self.capacity, capacity
        # One at a time: a cache is much of the memory there is.
        for place, buffer in enumerate(self._buffers):
            grown = self._new_buffer()
            self._move((buffer, before, self.length), (grown, capacity, self.length))
            self._buffers[place] = grown

    def _allocate(self) -> list[Any]:
        return [self._new_buffer() for _ in self._names]

    def _new_buffer(self) -> Any:
        return self._backend.allocate(self._row * self.capacity, self._info.cache_dtype)

    def _targets(self) -> list[Any]:
        """The buffers that the present is written to."""
        return self._buffers

    @abstractmethod
    def _past_view(self, buffer: Any) -> View: ...

    @abstractmethod
    def _present_view(self, buffer: Any, new: int) -> View: ...

    def _move(self, source: _Stored, target: _Stored) -> None:
        """Copy as many rows as the target has, which begin the source, to another buffer."""
        for old, new in zip(self._runs(source, target[2]), self._runs(target, target[2]), strict=True):
            copy_view(self._backend, new, old)

    @abstractmethod
    def _runs(self, stored: _Stored, rows: int) -> list[View]:
        """The first rows of a buffer as contiguous parts."""


class _SharedCache(KVCache):
    """[1, kv_heads, capacity, head_dim], past and present at once: the graph writes behind the valid rows."""

    fixed = True

    offset = 0
    """Elements before this sequence in its buffers, where it is one of a batch."""

    def _past_view(self, buffer: Any) -> View:
        shape = (1, self._info.kv_heads, self.capacity, self._info.head_dim)
        return View(buffer, shape, offset=self.offset)

    def _present_view(self, buffer: Any, new: int) -> View:  # noqa: ARG002 - the graph knows the length
        return self._past_view(buffer)

    def _runs(self, stored: _Stored, rows: int) -> list[View]:
        return _by_head(self._info, stored[0], (stored[1], rows), self.offset)


class _AppendCache(KVCache):
    """[1, length, kv_heads, head_dim], time-major: the graph's new rows are bound behind the old ones."""

    def _past_view(self, buffer: Any) -> View:
        return View(buffer, self._shape(self.length))

    def _present_view(self, buffer: Any, new: int) -> View:
        return View(buffer, self._shape(new), offset=self.length * self._row)

    def _shape(self, rows: int) -> tuple[int, ...]:
        return (1, rows, self._info.kv_heads, self._info.head_dim)

    def _runs(self, stored: _Stored, rows: int) -> list[View]:
        return [View(stored[0], self._shape(rows))]


class StackedCache(_AppendCache):
    """The same in one buffer for all tensors, [tensors, capacity, kv_heads, head_dim], of a backend that can
    copy a row into each of them at once; in whole blocks of rows, so that recorded runs serve again.

    Growing needs the old and the new buffer at once.
    """

    def __init__(self, backend: CapturingBackend, info: DecoderInfo, capacity: int) -> None:
        """Allocate the buffer."""
        self._copy_rows = backend.copy_rows
        super().__init__(backend, info, _in_blocks(capacity))
        item = storage_dtype(info.cache_dtype).itemsize
        self.row_step = ALIGNMENT // math.gcd(ALIGNMENT, self._row * item)
        self._pitch = -(-self._row * item // ALIGNMENT) * ALIGNMENT // item
        self._new = backend.allocate(len(self._names) * self._pitch, info.cache_dtype)

    def padded(self, rows: int) -> dict[str, View]:
        """Decoder inputs by name, of so many rows: behind the valid ones stands anything finite."""
        return self._views(contract.past_name, rows, 0)

    def beside(self) -> dict[str, View]:
        """Decoder outputs by name for one new row that does not go into the cache yet."""
        return {
            contract.present_name(*own): View(self._new, self._shape(1), offset=place * self._pitch)
            for place, own in enumerate(self._names)
        }

    def take_row(self) -> None:
        """Copy the row of `beside` behind the valid ones."""
        rows = View(self._new, (len(self._names), self._row))
        target = View(self._buffers[0], rows.shape, offset=self.length * self._row)
        self._copy_rows(target, rows, (self.capacity * self._row, self._pitch))
        self.advance(1)

    def past(self) -> dict[str, View]:
        return self._views(contract.past_name, self.length, 0)

    def grow(self, capacity: int) -> None:
        super().grow(_in_blocks(capacity))

    def _allocate(self) -> list[Any]:
        return [self._new_buffer()]

    def _new_buffer(self) -> Any:
        return self._backend.allocate(len(self._names) * self._row * self.capacity, self._info.cache_dtype)

    def _present(self, new: int) -> dict[str, View]:
        return self._views(contract.present_name, new, self.length)

    def _views(self, name: Callable[[int, str], str], rows: int, first: int) -> dict[str, View]:
        shape = self._shape(rows)
        return {
            name(*own): View(self._buffers[0], shape, offset=(place * self.capacity + first) * self._row)
            for place, own in enumerate(self._names)
        }

    def _move(self, source: _Stored, target: _Stored) -> None:
        shape = (len(self._names), target[2] * self._row)
        pitches = target[1] * self._row, source[1] * self._row
        self._copy_rows(View(target[0], shape), View(source[0], shape), pitches)


class _ConcatCache(KVCache):
    """[1, kv_heads, length, head_dim]: the graph returns past and new as one tensor, into a second buffer."""

    copies = 2

    def __init__(self, backend: Backend, info: DecoderInfo, capacity: int) -> None:
        super().__init__(backend, info, capacity)
        self._spare = self._allocate()

    def advance(self, new: int) -> None:
        self._buffers, self._spare = self._spare, self._buffers
        super().advance(new)

    def cut(self, length: int) -> None:
        # Heads lie one behind the other, each of `length` rows: shorter ones have to be moved together.
        for buffer, spare in zip(self._buffers, self._spare, strict=True):
            self._move((buffer, self.length, self.length), (spare, length, length))
        self._buffers, self._spare = self._spare, self._buffers
        super().cut(length)

    def grow(self, capacity: int) -> None:
        if capacity > self.capacity:
            super().grow(capacity)
            self._spare = self._allocate()

    def _runs(self, stored: _Stored, rows: int) -> list[View]:
        return _by_head(self._info, stored[0], (stored[2], rows), 0)

    def _targets(self) -> list[Any]:
        return self._spare

    def _past_view(self, buffer: Any) -> View:
        return View(buffer, self._shape(self.length))

    def _present_view(self, buffer: Any, new: int) -> View:
        return View(buffer, self._shape(self.length + new))

    def _shape(self, length: int) -> tuple[int, ...]:
        return (1, self._info.kv_heads, length, self._info.head_dim)


class _BatchRow(_SharedCache):
    """One sequence of a batch: a part of buffers that the batch owns, so it cannot grow."""

    def __init__(self, batch: BatchCache, row: int) -> None:
        self._own = batch.buffers
        super().__init__(batch.backend, batch.info, batch.capacity)
        self.offset = row * self._row * self.capacity

    def _allocate(self) -> list[Any]:
        return self._own

    def grow(self, capacity: int) -> None:
        if capacity > self.capacity:
            raise RequestError(
                f"a sequence of a batch has {self.capacity} rows, but {capacity} are needed: make a new batch"
            )


def _in_blocks(capacity: int) -> int:
    return -(-capacity // BLOCK_ROWS) * BLOCK_ROWS


def _by_head(info: DecoderInfo, buffer: Any, rows: tuple[int, int], offset: int) -> list[View]:
    """The first rows of every head of [kv_heads, rows, head_dim]: (rows of a head, rows wanted)."""
    apart, wanted = rows
    step = apart * info.head_dim
    return [View(buffer, (wanted, info.head_dim), offset + head * step) for head in range(info.kv_heads)]


class BatchCache:
    """Keys and values of several sequences side by side, [batch, kv_heads, capacity, head_dim], of kind
    `shared`.

    Each sequence is prefilled by itself into its `row`; then all are decoded together.
    """

    def __init__(self, backend: Backend, info: DecoderInfo, batch: int, capacity: int) -> None:
        """Allocate the buffers of every tensor."""
        self.backend, self.info, self.capacity = backend, info, capacity
        self._names = [(layer, part) for layer in range(info.layers) for part in ("key", "value")]
        elements = batch * info.kv_heads * info.head_dim * capacity
        self.buffers = [backend.allocate(elements, info.cache_dtype) for _ in self._names]
        self.rows = [_BatchRow(self, row) for row in range(batch)]

    def views(self) -> tuple[dict[str, View], dict[str, View]]:
        """Decoder inputs and outputs by name, for the whole batch: the same memory."""
        shape = (len(self.rows), self.info.kv_heads, self.capacity, self.info.head_dim)
        both = [View(buffer, shape) for buffer in self.buffers]
        past = {contract.past_name(*name): view for name, view in zip(self._names, both, strict=True)}
        present = {contract.present_name(*name): view for name, view in zip(self._names, both, strict=True)}
        return past, present
