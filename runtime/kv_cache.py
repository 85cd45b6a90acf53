"""The decoder's key/value cache, allocated once per answer for the pruned prompt plus the answer.

The exported decoder returns `present` = concat(past, new), so it cannot write in place: each tensor has two
flat buffers that take turns as past and present, both bound by address, and nothing is allocated while
decoding. Writing in place (one buffer, a scatter inside the graph) halves the memory and saves the copy; it
is a later change of the decoder graph.
"""

from __future__ import annotations

from runtime import contract
from runtime.backend import Backend, View
from runtime.errors import RequestError
from runtime.manifest import DecoderInfo

__all__ = ["KVCache", "cache_bytes"]

_DTYPE, _ITEM = "float32", 4


def cache_bytes(info: DecoderInfo, positions: int) -> int:
    """Bytes of one copy of the cache for `positions` tokens."""
    return 2 * info.layers * info.kv_heads * info.head_dim * positions * _ITEM


class KVCache:
    """Keys and values of up to `capacity` positions, float32 [1, kv_heads, length, head_dim] per layer.

    `length` positions are valid. Use: bind `past()` and `present(new)`, run the decoder, then `advance(new)`.
    Owns its buffers; not to be used from two threads at once.
    """

    def __init__(self, backend: Backend, info: DecoderInfo, capacity: int) -> None:
        """Allocate both buffers of every tensor."""
        self.capacity = capacity
        self.length = 0
        self._info = info
        self._names = [(layer, part) for layer in range(info.layers) for part in ("key", "value")]
        elements = info.kv_heads * info.head_dim * capacity
        self._past = [backend.allocate(elements, _DTYPE) for _ in self._names]
        self._present = [backend.allocate(elements, _DTYPE) for _ in self._names]

    @property
    def nbytes(self) -> int:
        """Bytes of one copy at full length: what the cache holds."""
        return cache_bytes(self._info, self.capacity)

    @property
    def allocated_bytes(self) -> int:
        """Bytes really allocated: two copies, see the module docstring."""
        return 2 * self.nbytes

    def past(self) -> dict[str, View]:
        """Decoder inputs by name: the valid positions, shape [1, kv_heads, length, head_dim]."""
        shape = self._shape(self.length)
        return {
            contract.past_name(*name): View(buffer, shape)
            for name, buffer in zip(self._names, self._past, strict=True)
        }

    def present(self, new: int) -> dict[str, View]:
        """Decoder outputs by name: room for `length` + `new` positions.

        Raises:
            RequestError: that is more than the capacity.
        """
        if self.length + new > self.capacity:
            raise RequestError(
                f"the KV cache holds {self.capacity} positions, but {self.length + new} are needed: "
                "make the cache for the prompt plus max_new_tokens - 1"
            )
        shape = self._shape(self.length + new)
        return {
            contract.present_name(*name): View(buffer, shape)
            for name, buffer in zip(self._names, self._present, strict=True)
        }

    def advance(self, new: int) -> None:
        """Make the present the past: `new` more positions are valid."""
        self._past, self._present = self._present, self._past
        self.length += new

    def _shape(self, length: int) -> tuple[int, ...]:
        return (1, self._info.kv_heads, length, self._info.head_dim)
