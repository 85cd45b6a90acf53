"""Device memory that is asked for once and used again: flat buffers, pinned host memory, one scratch block.

What a request frees, the next one takes. There is one stream, so a block may be given on as soon as its last
user has been enqueued.
"""

from __future__ import annotations

import ctypes
import weakref
from contextlib import suppress
from typing import Any

import numpy as np

from runtime.backend import Array, View
from runtime.dtypes import storage_dtype
from runtime.errors import BackendError
from runtime.tensorrt.cuda import Cuda

__all__ = ["Buffer", "Pending", "Pool", "address_of", "elements_of"]

_SMALL, _MEDIUM = 64 << 10, 4 << 20
_STEPS = (512, 64 << 10, 2 << 20)
_SPARE = 1.25  # a block this much larger than asked for may serve
_LEAST_IDLE = 64 << 20

_Block = tuple[int, int]  # address, bytes


class Buffer:
    """Flat device memory of `size` values, which goes back to the pool with the object.

    `host` are the values as they were uploaded, where they are few: TensorRT reads shape tensors there.
    """

    def __init__(self, pool: Pool, block: _Block, size: int, dtype: str) -> None:
        """Own a block of a pool."""
        self._pool, self._block = pool, block
        self.size, self.dtype = size, storage_dtype(dtype)
        self.host: Array | None = None

    @property
    def address(self) -> int:
        """Of the first value."""
        return self._block[0]

    def __del__(self) -> None:
        """Give the block back."""
        self._pool.give(self._block)


class Pool:
    """Blocks of device memory and of pinned host memory.

    `give` keeps a block for the next who asks for about that size. What is idle is freed, the largest first,
    when the device runs out, or when all blocks would be a quarter (or 64 MiB, if that is more) above what
    was ever in use at once: CPU and GPU of a Jetson share memory, and Linux may end the process before
    `cudaMalloc` says no. Frees everything with itself, after the last buffer.
    """

    def __init__(self, cuda: Cuda) -> None:
        """Start with nothing."""
        self._cuda = cuda
        self._idle: list[_Block] = []
        self._idle_pinned: list[_Block] = []
        self.allocated = 0
        """Bytes of device memory that are held, idle ones included."""
        self._most_used = 0
        weakref.finalize(self, _free_all, cuda, self._idle, self._idle_pinned)

    def allocate(self, size: int, dtype: str) -> Buffer:
        """A buffer of zeros.

        Rows behind the valid ones of a cache are read under a mask, and 0 x NaN would be NaN.

        Raises:
            BackendError: the device has not enough memory.
        """
        buffer = self.take_buffer(size, dtype)
        self._cuda.clear(buffer.address, max(size, 1) * buffer.dtype.itemsize)
        return buffer

    def take_buffer(self, size: int, dtype: str) -> Buffer:
        """A buffer of anything, to be written whole."""
        return Buffer(self, self.take(max(size, 1) * storage_dtype(dtype).itemsize), size, dtype)

    def take(self, nbytes: int) -> _Block:
        """A block of at least so many bytes, 512 of them aligned."""
        wanted = _rounded(nbytes)
        block = _best(self._idle, wanted)
        if block is None:
            block = self._new(wanted)
        used = self.allocated - sum(nbytes for _, nbytes in self._idle)
        self._most_used = max(self._most_used, used)
        return block

    def _new(self, wanted: int) -> _Block:
        used = self.allocated - sum(nbytes for _, nbytes in self._idle)
        most = max(self._most_used, used + wanted)
        limit = max(int(_SPARE * most), most + _LEAST_IDLE)
        self._idle.sort(key=lambda block: block[1])
        while self._idle and self.allocated + wanted > limit:
            self._free_one()
        address = self._cuda.malloc(wanted)
        if address is None and self._idle:
            self.trim()
            address = self._cuda.malloc(wanted)
        if address is None:
            free, total = self._cuda.memory()
            raise BackendError(
                f"the device has {free >> 20} of {total >> 20} MiB free, but {wanted >> 20} MiB are needed "
                "in one piece: lower the ratio or max_new_tokens, or keep less between requests"
            )
        self.allocated += wanted
        return address, wanted

    def give(self, block: _Block) -> None:
        """Take a block back."""
        self._idle.append(block)

    def trim(self) -> None:
        """Free what is idle."""
        while self._idle:
            self._free_one()

    def _free_one(self) -> None:
        address, nbytes = self._idle.pop()
        self._cuda.free(address)
        self.allocated -= nbytes

    def fetch(self, view: View) -> Pending:
        """Start to copy the values of a view to the host."""
        array = np.empty(view.shape, view.buffer.dtype)
        pinned = self._take_pinned(max(array.nbytes, 1))
        if array.nbytes:
            self._cuda.to_host(pinned[0], address_of(view), array.nbytes)
        return Pending(self, self._cuda, pinned, array)

    def give_pinned(self, block: _Block) -> None:
        """Take pinned memory back."""
        self._idle_pinned.append(block)

    def _take_pinned(self, nbytes: int) -> _Block:
        wanted = _rounded(nbytes)
        return _best(self._idle_pinned, wanted) or (self._cuda.malloc_host(wanted), wanted)


class Pending:
    """Values on their way to the host."""

    def __init__(self, pool: Pool, cuda: Cuda, pinned: _Block, array: Array) -> None:
        """Wait for what was enqueued up to now; `array` will hold the values."""
        self._pool, self._cuda, self._pinned, self._array = pool, cuda, pinned, array
        self._mark: Any = cuda.mark()

    def result(self) -> Array:
        """The values, once they are there."""
        if self._mark is not None:
            self._cuda.wait(self._mark)
            self._mark = None
            ctypes.memmove(self._array.ctypes.data, self._pinned[0], self._array.nbytes)
            self._pool.give_pinned(self._pinned)
        return self._array

    def __del__(self) -> None:
        """Nobody wants the values: the pinned memory may still be written to."""
        if self._mark is not None:
            with suppress(BackendError):  # a device that has failed says so elsewhere
                self._cuda.wait(self._mark)
            self._pool.give_pinned(self._pinned)


def address_of(view: View) -> int:
    """The address of a view's first value.

    Raises:
        BackendError: the view goes past the end of its buffer.
    """
    buffer, size = view.buffer, elements_of(view.shape)
    if view.offset < 0 or view.offset + size > buffer.size:
        raise BackendError(
            f"a view of {size} values from {view.offset} on does not fit its buffer of {buffer.size}"
        )
    return int(buffer.address) + view.offset * int(buffer.dtype.itemsize)


def elements_of(shape: tuple[int, ...]) -> int:
    """Number of values in a shape."""
    size = 1
    for dim in shape:
        size *= dim
    return size


def _rounded(nbytes: int) -> int:
    step = _STEPS[(nbytes >= _SMALL) + (nbytes >= _MEDIUM)]
    return -(-nbytes // step) * step


def _best(idle: list[_Block], wanted: int) -> _Block | None:
    """The smallest idle block that serves, no longer idle."""
    fitting = [block for block in idle if wanted <= block[1] <= wanted * _SPARE]
    if not fitting:
        return None
    block = min(fitting, key=lambda own: (own[1], own[0]))  # the same one for the same requests
    idle.remove(block)
    return block


def _free_all(cuda: Cuda, idle: list[_Block], pinned: list[_Block]) -> None:
    with suppress(BackendError):
        for address, _ in idle:
            cuda.free(address)
        for address, _ in pinned:
            cuda.free_host(address)
