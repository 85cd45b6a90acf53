"""The interactive loop: turns from a stream of lines, with history, images and ratio kept between them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace

from runtime.errors import FopruError
from runtime.generator import Generator
from runtime.preprocess import ImageSource
from runtime.request import Request, Turn
from runtime.result import Result
from runtime.vision import EncodedImages

__all__ = ["HELP", "Chat", "visible"]

HELP = "commands: /image FILE (add an image), /ratio R (fraction of visual tokens kept), /clear, /help, /quit"


@dataclass
class Chat:
    """One conversation.

    `settings` holds what every turn has in common (its prompt, images and history are not used); `write`
    takes text as it comes. Images are encoded once and their visual tokens kept as long as the number of
    them stays the same.
    """

    generator: Generator
    settings: Request
    write: Callable[[str], object]
    pending: list[ImageSource] = field(default_factory=list)
    history: tuple[Turn, ...] = ()
    last: Result | None = None
    _encoded: EncodedImages | None = None

    def run(self, lines: Iterable[str]) -> None:
        """Answer every line until the lines end or one is /quit; an error ends the turn, not the chat."""
        for line in lines:
            text = line.strip()
            if text == "/quit":
                return
            if not text:
                continue
            try:
                if text.startswith("/"):
                    self._command(text)
                else:
                    self._turn(text)
            except FopruError as error:
                self.write(f"error: {error}\n")

    def _command(self, text: str) -> None:
        name, _, value = text.partition(" ")
        value = value.strip()
        if name == "/image" and value:
            self.generator.preprocess(
                [value]
            )  # an unreadable file is refused now, not with the next question
            self.pending.append(value)
            self.write(f"image {value} goes with the next question\n")
        elif name == "/ratio" and _is_number(value):
            self.settings = replace(self.settings, ratio=float(value), tokens=None)
            self._encoded = None  # all images of the chat keep the same number of tokens
            self.write(f"keeping {value} of the visual tokens from now on\n")
        elif name == "/clear":
            self.history, self._encoded = (), None
            self.write("history forgotten\n")
        else:
            self.write(HELP + "\n")

    def _turn(self, prompt: str) -> None:
        request = replace(self.settings, prompt=prompt, images=tuple(self.pending), history=self.history)
        stream = self.generator.stream(request, self._encoded)
        answer = ""
        try:
            for piece in visible(stream):
                answer += piece
                self.write(piece)
            self.last = stream.result
        except KeyboardInterrupt:  # stops the answer; what was said stays in the history
            self.write(" [stopped]")
        self.write("\n")
        # Templates put their own space before and after an answer.
        self.history = (*self.history, Turn(prompt, request.images, answer.strip()))
        self.pending = []
        self._encoded = stream.encoded


def visible(pieces: Iterable[str]) -> Iterator[str]:
    """The pieces without the white space that models put before an answer."""
    started = False
    for piece in pieces:
        shown = piece if started else piece.lstrip()
        if shown:
            started = True
            yield shown


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
