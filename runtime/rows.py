"""Rows of numbers where they are: in numpy on the CPU, in a buffer of the backend on a device.

On a device the visual tokens go from the vision encoder into the prompt's embeddings by copies inside the
device, one for each run of neighbouring rows, and are never on the host.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from runtime.backend import Array, Backend, CapturingBackend, DeviceBackend, Fetched, Session, View

__all__ = [
    "DeviceRows",
    "DeviceSpace",
    "HostSpace",
    "Mirror",
    "Output",
    "Part",
    "Rows",
    "Space",
    "copy_view",
    "fetch",
    "runs_of",
    "space_of",
    "view_of",
]

Rows: TypeAlias = Any
"""A numpy array, or `DeviceRows`: both have `shape`, `len`, `nbytes` and slices; `np.asarray` brings either
to the host."""

Part: TypeAlias = "tuple[Rows, npt.NDArray[np.int64] | None]"
"""Rows and which of them, None for all."""

_Index: TypeAlias = "int | slice | tuple[int | slice, ...]"


class DeviceRows:
    """An array in a buffer of a device backend, C-contiguous.

    `digest` tells it apart where the numbers cannot be read: equal digests, equal numbers.
    """

    def __init__(self, backend: DeviceBackend, view: View, digest: bytes = b"") -> None:
        """Take a view, whose buffer lives as long as this."""
        self.backend = backend
        self.view, self.digest = view, digest

    @property
    def shape(self) -> tuple[int, ...]:
        """As of a numpy array."""
        return self.view.shape

    @property
    def nbytes(self) -> int:
        """Bytes on the device."""
        return math.prod(self.view.shape) * int(self.view.buffer.dtype.itemsize)

    def __len__(self) -> int:
        return self.view.shape[0]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        """A copy on the host, for checks."""
        array: Array = np.array(self.backend.download(self.view))
        return array if dtype is None else array.astype(dtype)

    def __getitem__(self, index: _Index) -> DeviceRows:
        """A part that is contiguous too, without a copy.

        Raises:
            IndexError: it is cut along an axis that comes after one of more than one.
        """
        keys = index if isinstance(index, tuple) else (index,)
        offset, shape, before = self.view.offset, [], 1
        for axis, dim in enumerate(self.view.shape):
            key = keys[axis] if axis < len(keys) else slice(None)
            start, stop, _ = (slice(key, key + 1) if isinstance(key, int) else key).indices(dim)
            taken = max(0, stop - start)
            if taken != dim and before != 1:
                raise IndexError(
                    f"{index} of {list(self.view.shape)} is not contiguous: cut its first long axis only"
                )
            offset += start * math.prod(self.view.shape[axis + 1 :])
            before *= taken
            if not isinstance(key, int):
                shape.append(taken)
        return DeviceRows(self.backend, View(self.view.buffer, tuple(shape), offset))


class Output(NamedTuple):
    """An output of a graph: whether it `stays` in its space, or is wanted on the host."""

    shape: tuple[int, ...]
    dtype: str
    stays: bool


class Space(Protocol):
    """Where rows are, and what is done with them there."""

    def run(
        self, session: Session, feeds: Mapping[str, Array], outputs: Mapping[str, Output]
    ) -> Callable[[], dict[str, Rows]]:
        """Run a graph whose outputs have known sizes; call the result for them, after starting all runs."""
        ...

    def rows(self, array: Rows) -> Rows:
        """Rows as they are in this space, copied there if they are not."""
        ...

    def gather(
        self, parts: Sequence[Part], source: npt.NDArray[np.int64], digest: Callable[[], bytes]
    ) -> Rows:
        """New rows: those of all parts one behind the other, of which `source` are taken; -1 is the last."""
        ...

    def embed(
        self,
        session: Session,
        feeds: Mapping[str, Array],
        name: str,
        rows: tuple[npt.NDArray[np.bool_], Sequence[Rows], int],
    ) -> Rows:
        """Output `name` [1, L, D] of a graph, with rows put over some places: (places [1, L], rows, D)."""
        ...


class HostSpace:
    """Numpy arrays, for backends that compute in the host's memory."""

    def run(
        self,
        session: Session,
        feeds: Mapping[str, Array],
        outputs: Mapping[str, Output],  # noqa: ARG002 - the engine allocates them
    ) -> Callable[[], dict[str, Rows]]:
        """Run at once."""
        made = session.run(feeds)
        return lambda: made

    def rows(self, array: Rows) -> Rows:
        """The array itself."""
        return np.asarray(array)

    def gather(
        self,
        parts: Sequence[Part],
        source: npt.NDArray[np.int64],
        digest: Callable[[], bytes],  # noqa: ARG002 - the numbers can be read
    ) -> Rows:
        """By numpy."""
        return np.concatenate([rows if index is None else rows[index] for rows, index in parts])[source]

    def embed(
        self,
        session: Session,
        feeds: Mapping[str, Array],
        name: str,
        rows: tuple[npt.NDArray[np.bool_], Sequence[Rows], int],
    ) -> Rows:
        """By numpy."""
        embeds, (places, parts, _) = session.run(feeds)[name], rows
        if parts:
            embeds[places] = np.concatenate(list(parts))
        return embeds


class DeviceSpace:
    """Buffers of a device backend."""

    def __init__(self, backend: DeviceBackend) -> None:
        """Allocate there."""
        self._backend = backend

    def run(
        self, session: Session, feeds: Mapping[str, Array], outputs: Mapping[str, Output]
    ) -> Callable[[], dict[str, Rows]]:
        """Enqueue the run, and the copies of what is wanted on the host."""
        backend = self._backend
        views = {
            name: View(backend.allocate(math.prod(shape), dtype), shape)
            for name, (shape, dtype, _) in outputs.items()
        }
        session.bind({name: backend.upload(array) for name, array in feeds.items()}, views).run()
        made = {
            name: DeviceRows(backend, view) if outputs[name].stays else fetch(backend, view)
            for name, view in views.items()
        }
        return lambda: {
            name: value if isinstance(value, DeviceRows) else value.result() for name, value in made.items()
        }

    def rows(self, array: Rows) -> Rows:
        """Of numpy arrays, and of rows of another device, a copy."""
        if isinstance(array, DeviceRows) and array.backend is self._backend:
            return array
        return DeviceRows(self._backend, self._backend.upload(np.ascontiguousarray(array)))

    def gather(
        self, parts: Sequence[Part], source: npt.NDArray[np.int64], digest: Callable[[], bytes]
    ) -> Rows:
        """One copy for each run of neighbours."""
        own = [(self.rows(rows), index) for rows, index in parts]
        width = own[0][0].shape[1]
        lengths = [len(rows) for rows, _ in own]
        starts = np.cumsum([0, *lengths])
        # Numbers of rows as if all parts were one array, but with a gap between two parts.
        numbers = np.concatenate(
            [
                start + at + (np.arange(length) if index is None else index)
                for at, (start, length, (_, index)) in enumerate(zip(starts, lengths, own, strict=False))
            ]
        )[source]
        view = View(self._backend.allocate(len(source) * width, "float32"), (len(source), width))
        made = DeviceRows(self._backend, view, digest())
        firsts = starts[:-1] + np.arange(len(own))
        for first, last in runs_of(numbers):
            part = int(np.searchsorted(firsts, numbers[first], side="right")) - 1
            begin = int(numbers[first] - firsts[part])
            source_rows = own[part][0][begin : begin + last - first]
            self._backend.copy(made[first:last].view, source_rows.view)
        return made

    def embed(
        self,
        session: Session,
        feeds: Mapping[str, Array],
        name: str,
        rows: tuple[npt.NDArray[np.bool_], Sequence[Rows], int],
    ) -> Rows:
        """The graph writes all rows, and copies go over the places."""
        backend, (places, parts, width) = self._backend, rows
        shape = (1, places.shape[1], width)
        made = DeviceRows(backend, View(backend.allocate(math.prod(shape), "float32"), shape))
        session.bind({key: backend.upload(array) for key, array in feeds.items()}, {name: made.view}).run()
        free, done = np.flatnonzero(places[0]), 0
        for part in map(self.rows, parts):
            own = free[done : done + len(part)]
            done += len(part)
            for first, last in runs_of(own):
                target = made[:, int(own[first]) : int(own[first]) + last - first]
                backend.copy(target.view, part[first:last].view)
        return made


class Mirror:
    """A small host array that a graph reads: write to `array`, then `push`; `view` is the device's form."""

    def __init__(self, backend: Backend, array: Array) -> None:
        """On the CPU the view is the array itself."""
        self._device = backend if isinstance(backend, DeviceBackend) else None
        self.array, self.view = array, backend.upload(array)

    def push(self, first: int = 0, count: int | None = None) -> None:
        """Let the graph see what was written, of a flat array `count` values from `first` on."""
        if self._device is None:
            return
        if count is None:
            self._device.write(self.view, self.array)
        else:
            self._device.write(
                View(self.view.buffer, (count,), offset=first), self.array[first : first + count]
            )


def space_of(backend: Backend) -> Space:
    """Where a backend's rows are."""
    return DeviceSpace(backend) if isinstance(backend, DeviceBackend) else HostSpace()


def copy_view(backend: Backend, target: View, source: View) -> None:
    """Copy a view into another of the same size and dtype."""
    if isinstance(backend, DeviceBackend):
        backend.copy(target, source)
    else:
        backend.download(target)[...] = backend.download(source)


def view_of(backend: Backend, rows: Rows) -> View:
    """Rows as a graph reads them, copied to the device where they are not there."""
    if isinstance(rows, DeviceRows) and rows.backend is backend:
        return rows.view
    return backend.upload(np.asarray(rows))


def runs_of(numbers: npt.NDArray[np.int64]) -> Iterator[tuple[int, int]]:
    """Places [first, last) at which numbers rise by one."""
    ends = np.flatnonzero(np.diff(numbers) != 1) + 1
    bounds: list[int] = [0, *ends.tolist(), len(numbers)]
    return ((first, last) for first, last in pairwise(bounds) if first < last)


def fetch(backend: Backend, view: View) -> Fetched:
    """Start to copy a view to the host, where the backend can do that beside other work."""
    if isinstance(backend, CapturingBackend):
        return backend.fetch(view)
    return _Here(backend.download(view))


class _Here:
    def __init__(self, array: Array) -> None:
        self._array = array

    def result(self) -> Array:
        return self._array
