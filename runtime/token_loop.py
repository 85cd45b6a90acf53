"""The course of one answer, token by token: from logits to the next token, its text, and the end."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from runtime.detokenize import StopStrings, TextPieces
from runtime.errors import RequestError
from runtime.request import Request
from runtime.result import FinishReason
from runtime.sampling import Sampler

__all__ = ["TokenLoop", "Vocabulary"]


@dataclass(frozen=True)
class Vocabulary:
    """What an answer needs to know of its model: the number of logits V, the ids that end an answer, and the
    text of ids, special tokens left out."""

    size: int
    eos: Collection[int]
    decode: Callable[[Sequence[int]], str]


class TokenLoop:
    """One answer: `push` the logits of each position until it has `finished`.

    Nothing in it knows the decoder, so several can share one that runs a batch. `token_ids` are all that were
    generated, also those whose text is not shown: the end token, a stop string and what follows it.

    `text` is what the pieces add up to. It starts with its first visible character, because models put white
    space before an answer, and ends before the first stop string in it; while its end may still become one,
    it is held back. Not to be used from two threads at once.
    """

    def __init__(self, request: Request, vocabulary: Vocabulary, prompt_ids: npt.NDArray[np.int64]) -> None:
        """Start an answer to a prompt of ids [L], image placeholders included."""
        self._request, self._eos = request, () if request.ignore_eos else vocabulary.eos
        self._sampler = Sampler(request, vocabulary.size, prompt_ids)
        self._decoded = TextPieces(vocabulary.decode)
        self._stop = StopStrings(request.stop)
        self._begun = False  # with a visible character
        self._shown: list[str] = []
        self.token_ids: list[int] = []
        self.finish_reason: FinishReason | None = None

    @property
    def finished(self) -> bool:
        """Whether there is nothing more to push; `finish_reason` then says why."""
        return self.finish_reason is not None

    @property
    def text(self) -> str:
        """All pieces so far."""
        return "".join(self._shown)

    def push(self, logits: npt.NDArray[np.float32]) -> str:
        """Choose a token from logits [V]; returns the text that became certain, often empty.

        Raises:
            RequestError: the answer has ended.
            BackendError: the logits are not numbers.
        """
        if self.finish_reason is not None:
            raise RequestError(f"the answer has ended ({self.finish_reason}): begin another one")
        token = self._sampler.pick(logits)
        self.token_ids.append(token)
        if token in self._eos:
            return self._end("eos")
        piece = self._show(self._decoded.push(token))
        if self._stop.found:
            self.finish_reason = "stop"
        elif len(self.token_ids) == self._request.max_new_tokens:
            piece += self._end("length")
        return piece

    def cancel(self) -> str:
        """End the answer here, unless it has ended; returns the text that was held back."""
        return "" if self.finished else self._end("cancelled")

    def _end(self, reason: FinishReason) -> str:
        piece = self._show(self._decoded.flush(), final=True)
        # The rest of the text, too, may hold a stop string.
        self.finish_reason = "stop" if self._stop.found else reason
        return piece

    def _show(self, text: str, final: bool = False) -> str:
        """What of the next decoded text belongs to the answer and is certain."""
        if not self._begun:
            text = text.lstrip()
            self._begun = bool(text)
        piece = self._stop.push(text)
        if final:
            piece += self._stop.flush()
        if piece:
            self._shown.append(piece)
        return piece
