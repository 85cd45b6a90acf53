"""The interactive loop: turns from a stream of lines, with history, images and ratio kept between them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from runtime.errors import FopruError
from runtime.generator import Generator
from runtime.preprocess import ImageSource, load_image
from runtime.request import Request, Turn
from runtime.result import Result
from runtime.vision import EncodedImage

__all__ = ["HELP", "Chat"]

HELP = "commands: /image FILE, /ratio R (fraction of tokens kept), /clear (history, images), /help, /quit"


@dataclass
class Chat:
    """One conversation.

    `settings` holds what every turn has in common (its prompt, images and history are not used); `write`
    takes text as it comes, `warn` errors and why nothing was pruned, `failures` counts the errors.

    The generator goes on from the KV cache of the turn before. The chat holds the visual tokens of its images
    as long as the ratio stays the same: a file that changes meanwhile does not change what was talked about.
    """

    generator: Generator
    settings: Request
    write: Callable[[str], object]
    warn: Callable[[str], object]
    pending: list[ImageSource] = field(default_factory=list)
    history: tuple[Turn, ...] = ()
    last: Result | None = None
    failures: int = 0
    _encoded: tuple[EncodedImage, ...] = ()

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
                self.failures += 1
                self.warn(f"error: {error}{self._way_out(text)}\n")

    def add_image(self, path: str) -> None:
        """Let an image go with the next question.

        Raises:
            ImageError: it cannot be read, or used; it is not added then.
        """
        image = load_image(path)
        self.generator.preprocess([image])
        # What is no plain file (a pipe) can be read only once.
        self.pending.append(path if Path(path).is_file() else image)

    def _way_out(self, text: str) -> str:
        """What to do about a failed question that images or history would make fail again."""
        if text.startswith("/") or not (self.pending or self.history):
            return ""
        return " (/clear forgets the history and the images that wait for the next question)"

    def _command(self, text: str) -> None:
        name, _, value = text.partition(" ")
        value = value.strip()
        if name == "/image" and value:
            self.add_image(value)  # an unreadable file is refused now, not with the next question
            self.write(f"image {value} goes with the next question\n")
        elif name == "/ratio" and _is_number(value):
            self.settings = replace(self.settings, ratio=float(value), tokens=None)
            self._encoded = ()  # all images of the chat keep the same part of their tokens
            self.write(f"keeping {value} of the visual tokens from now on\n")
        elif name == "/clear":
            self.history, self.pending, self._encoded = (), [], ()
            self.write("history and images forgotten\n")
        else:
            self.write(HELP + "\n")

    def _turn(self, prompt: str) -> None:
        request = replace(self.settings, prompt=prompt, images=tuple(self.pending), history=self.history)
        stream = self.generator.stream(request, self._encoded)
        answer, stopped = "", False
        try:
            for piece in stream:
                answer += piece
                self.write(piece)
        except KeyboardInterrupt:  # stops the answer; what was said stays in the history
            stopped = True
            stream.cancel()
            with suppress(FopruError):  # stopped inside a step, which leaves nothing to go on from
                _ = stream.result  # ends the answer in order: the next turn goes on from its KV cache
            self.write(" [stopped]")
        self.write("\n")
        if not answer and stopped:
            return  # the question and its images are still to be asked
        if not stopped:
            self._finish(stream.result)
        # Templates put their own space before and after an answer.
        self.history = (*self.history, Turn(prompt, request.images, answer.strip()))
        self.pending = []
        self._encoded = stream.encoded

    def _finish(self, result: Result) -> None:
        """Keep the figures, and say why nothing was pruned, unless the last answer had the same reason."""
        before = None if self.last is None else self.last.reason
        if result.reason is not None and result.reason != before:
            self.warn(f"not pruned: {result.reason}\n")
        self.last = result


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
