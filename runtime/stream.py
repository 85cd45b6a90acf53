"""An answer while it is being made."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from runtime.errors import RequestError
from runtime.result import Result

if TYPE_CHECKING:
    from runtime.answer import AnswerRun
    from runtime.vision import EncodedImages

__all__ = ["Stream"]


class Stream:
    """Iterable over pieces of text; `result` afterwards.

    Work happens in the iterating thread, inside `next`; `cancel` may be called from any thread or between
    two pieces and takes effect before the next token. Pieces are never empty and never end inside a
    character.
    """

    def __init__(self, run: AnswerRun) -> None:
        """Take the run that makes the pieces."""
        self._cancel = False
        self._run = run
        self._steps = run.pieces(lambda: self._cancel)
        self._result: Result | None = None

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        try:
            return next(self._steps)
        except StopIteration as stop:
            if stop.value is not None:
                self._result = stop.value
            raise StopIteration from None

    def cancel(self) -> None:
        """Stop before the next token; `result` then has finish_reason "cancelled"."""
        self._cancel = True

    @property
    def encoded(self) -> EncodedImages | None:
        """Visual tokens of all images, once encoded: give them to the next request about the same images."""
        return self._run.encoded

    @property
    def result(self) -> Result:
        """The finished answer.

        Raises:
            RequestError: the stream was neither read to its end nor cancelled.
        """
        if self._result is None and self._cancel:
            for _ in self:  # ends at the next question, without a token more
                pass
        if self._result is None:
            raise RequestError(
                "the answer is not finished: read the stream to its end, or cancel it, then ask again"
            )
        return self._result
