"""Token ids to text, piece by piece, never showing half a character, nor the beginning of a stop string."""

from __future__ import annotations

from collections.abc import Callable, Sequence

__all__ = ["StopStrings", "TextPieces"]

_BROKEN = "\ufffd"


class TextPieces:
    """Turns a growing list of token ids into pieces whose concatenation is the decoded text.

    A character may take several tokens (UTF-8 bytes); until they are complete, the decoded text ends in
    U+FFFD and is held back. Each piece is the difference of two decodings that start at the same earlier
    token, because decoders treat the first token of a text specially (leading space). Bytes that never
    become a character are shown as U+FFFD; decoders with byte fallback would also take back the characters
    before them, which a stream cannot. Not thread-safe; one object per answer.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str]) -> None:
        """Take the tokenizer's decode function, special tokens left out."""
        self._decode = decode
        self._ids: list[int] = []
        self._start = 0  # decoding starts here: one shown piece back, as context
        self._shown = 0  # tokens before this have been shown

    def push(self, token: int) -> str:
        """Add a token; returns the text that became complete, often empty."""
        self._ids.append(token)
        return self._advance(final=False)

    def flush(self) -> str:
        """The rest at the end of the answer, U+FFFD included if the answer stops inside a character."""
        return self._advance(final=True)

    def _advance(self, final: bool) -> str:
        before = self._decode(self._ids[self._start : self._shown])
        after = self._decode(self._ids[self._start :])
        if len(after) <= len(before) or (after.endswith(_BROKEN) and not final):
            return ""
        self._start, self._shown = self._shown, len(self._ids)
        return after[len(before) :]


class StopStrings:
    """Passes text on up to the first stop string in it.

    The end of the text is held back as long as it is the beginning of a stop string, and no longer, however
    the text is cut into pieces. Not thread-safe; one object per answer.
    """

    def __init__(self, strings: Sequence[str]) -> None:
        """Take the strings, none of them empty; without any, all text passes."""
        self._strings = tuple(strings)
        self._longest = max(map(len, self._strings), default=1) - 1  # that may be held back
        self._held = ""
        self.found = False

    def push(self, text: str) -> str:
        """Add text; returns what is certain to be before any stop string, nothing once one was found."""
        if self.found or not self._strings:
            return "" if self.found else text
        text = self._held + text
        places = [place for string in self._strings if (place := text.find(string)) >= 0]
        self.found = bool(places)
        end = min(places) if places else len(text) - self._beginning(text)
        self._held = "" if places else text[end:]
        return text[:end]

    def flush(self) -> str:
        """What is held back, at the end of the text."""
        held, self._held = self._held, ""
        return held

    def _beginning(self, text: str) -> int:
        """Length of the longest end of the text with which a stop string begins."""
        for length in range(min(self._longest, len(text)), 0, -1):
            if any(string.startswith(text[-length:]) for string in self._strings):
                return length
        return 0
