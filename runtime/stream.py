"""An answer while it is being made."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterator
from typing import TYPE_CHECKING, Protocol

from runtime.errors import RequestError
from runtime.result import Result

if TYPE_CHECKING:
    from runtime.preprocess import PreparedImage
    from runtime.vision import EncodedImage

__all__ = ["AnswerPieces", "Stream"]


class AnswerPieces(Protocol):
    """What makes an answer: `runtime.answer.AnswerRun`, or its like in C++."""

    @property
    def prepared(self) -> tuple[PreparedImage, ...]:
        """The images that were opened."""
        ...

    @property
    def encoded(self) -> tuple[EncodedImage, ...]:
        """Their visual tokens, once there."""
        ...

    def pieces(self, cancelled: Callable[[], bool]) -> Generator[str, None, Result]:
        """Yield pieces of text, return the result; `cancelled` is asked before each token."""
        ...


class Stream:
    """Iterable over pieces of text; `result` afterwards.

    Work happens in the iterating thread, inside `next`; `cancel` may be called from any thread or between
    two pieces and takes effect before the next token. After `cancel`, the thread that iterates reads on to
    the end, or asks for `result`, which does so; other threads may ask once the end is reached. Pieces are
    never empty and never end inside a character; what may still become a stop string waits until it cannot.
    """

    def __init__(self, run: AnswerPieces) -> None:
        """Take the run that makes the pieces."""
        self._cancel = False
        self._run = run
        self._steps = run.pieces(lambda: self._cancel)
        self._result: Result | None = None
        self._error: BaseException | None = None
        self._thread: threading.Thread | None = None  # that works on the answer

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        self._thread = threading.current_thread()
        try:
            return next(self._steps)
        except StopIteration as stop:
            if stop.value is not None:
                self._result = stop.value
            raise StopIteration from None
        except BaseException as error:
            self._error = error
            raise

    def cancel(self) -> None:
        """Stop before the next token; `result` then has finish_reason "cancelled"."""
        self._cancel = True

    @property
    def encoded(self) -> tuple[EncodedImage, ...]:
        """Visual tokens of all images, once encoded: give them to the next request about the same images."""
        return self._run.encoded

    @property
    def prepared(self) -> tuple[PreparedImage, ...]:
        """The images that were opened for this answer: what the vision encoder looks at."""
        return self._run.prepared

    @property
    def result(self) -> Result:
        """The finished answer.

        Raises:
            RequestError: the stream was neither read to its end nor cancelled, it was interrupted, or another
            thread is reading it.
            FopruError: what the stream raised.
        """
        if self._result is None and self._error is None and self._cancel:
            if self._thread not in (None, threading.current_thread()) and self._thread.is_alive():
                raise RequestError(
                    "another thread is reading this answer: ask there for the result, or when it has the end"
                )
            for _ in self:  # ends at the next question, without a token more
                pass
        if isinstance(self._error, Exception):
            raise self._error
        if self._error is not None:
            raise RequestError("the answer was interrupted: ask again") from self._error
        if self._result is None:
            raise RequestError(
                "the answer is not finished: read the stream to its end, or cancel it, then ask again"
            )
        return self._result
