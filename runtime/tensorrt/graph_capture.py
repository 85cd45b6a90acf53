"""Runs recorded as CUDA graphs: one launch instead of many, without TensorRT's work on the host."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from runtime.errors import BackendError
from runtime.tensorrt.cuda import Cuda, Launch
from runtime.tensorrt.session import Context, Scratch, TrtBinding

__all__ = ["CaptureError", "CapturedRun", "Replay"]

_MOST_RUNS = 32  # blocks of 256 rows of a few decoders


class CaptureError(BackendError):
    """A run that works cannot be recorded."""


class CapturedRun:
    """A recorded run: its contexts, which must keep their shapes, and what launches it."""

    def __init__(self, bindings: Sequence[TrtBinding], cuda: Cuda) -> None:
        """Record; runs once, as TensorRT finishes its preparations for a shape in a first run.

        Raises:
            CaptureError: TensorRT or CUDA cannot record it.
            BackendError: it cannot run at all.
        """
        for binding in bindings:
            binding.complete()
        # All first: the scratch block may grow for one of them, and a run before that would not count.
        self._contexts: list[Context] = [binding.session.own_context(binding.inputs) for binding in bindings]
        for context, binding in zip(self._contexts, bindings, strict=True):
            context.bind(binding.inputs, binding.outputs)
            context.enqueue()
        try:
            self._launch: Launch = cuda.capture(self._enqueue)
        except BackendError as error:
            raise CaptureError(str(error)) from error

    def __call__(self) -> None:
        """Enqueue the run."""
        self._launch()

    def _enqueue(self) -> None:
        for context in self._contexts:
            context.enqueue()


class Replay:
    """Runs bindings as they were when it was made, by a recorded run.

    Recorded runs are kept with the session of the last binding. Memory that went back to the pool and came
    again has the same address, so a later request finds the runs of an earlier one. A run that was recorded
    with another scratch block is not used.
    """

    def __init__(self, bindings: Sequence[TrtBinding], cuda: Cuda, scratch: Scratch) -> None:
        """Find the run, or record it."""
        self._bindings, self._cuda, self._scratch = tuple(bindings), cuda, scratch
        self._places = tuple(binding.places for binding in bindings)
        self._find()

    def __call__(self) -> None:
        """Enqueue the run."""
        if self._address != self._scratch.address:
            self._find()
        self._run()

    def _find(self) -> None:
        runs = self._bindings[-1].session.recorded
        found = runs.get((self._scratch.address, self._places))
        if found is None:
            found = CapturedRun(self._bindings, self._cuda)
        # The scratch block may have grown for this one.
        self._address = self._scratch.address
        key = self._address, self._places
        runs[key] = found
        runs.move_to_end(key)
        while len(runs) > _MOST_RUNS:
            runs.popitem(last=False)
        self._run: Callable[[], None] = found
