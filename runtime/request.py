"""What a caller asks for: one frozen record, checked on construction as far as it can be without a bundle."""

from __future__ import annotations

import math
import numbers
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from runtime.counts import kept_count
from runtime.errors import RequestError
from runtime.selectors import GRAPH, allowed_selectors

if TYPE_CHECKING:
    from runtime.preprocess import ImageSource

__all__ = ["Request", "Turn"]


class Turn(NamedTuple):
    """One earlier turn of a chat; its images are pruned like those of the current turn."""

    prompt: str
    images: tuple[ImageSource, ...]
    answer: str


_NUMBER, _WHOLE = (int, float, numbers.Real), (int, numbers.Integral)
_PLAIN: tuple[type, ...] = (bool, int, float)
_PENALTIES = (0.01, 100)  # wide of what makes sense, and no logit overflows
_TYPES: dict[str, tuple[tuple[type, ...], str]] = {
    "prompt": ((str,), "a string"),
    "ratio": ((*_NUMBER, type(None)), "a number in (0, 1] or None"),
    "tokens": ((*_WHOLE, type(None)), "a whole number or None"),
    "selector": ((str,), f"one of {', '.join(allowed_selectors())}"),
    "max_new_tokens": (_WHOLE, "a whole number"),
    "temperature": (_NUMBER, "a number"),
    "top_k": (_WHOLE, "a whole number, 0 is off"),
    "top_p": (_NUMBER, "a number in (0, 1]"),
    "min_p": (_NUMBER, "a number in [0, 1]"),
    "repetition_penalty": (_NUMBER, "a number"),
    "seed": (_WHOLE, "a whole number"),
    "stop": ((tuple, list), "a tuple or list of strings: write (text,)"),
    "ignore_eos": ((bool,), "True or False"),
    "history": ((tuple, list), "a tuple or list of turns"),
}


@dataclass(frozen=True)
class Request:
    """A question about zero or more images.

    Pruning: `ratio` is the fraction of visual tokens KEPT, in (0, 1]; `tokens` is the number kept per image,
    1..N; at most one of the two, and with neither the bundle's default. `selector` says who chooses the
    tokens: "graph" (the bundle's own strategy, inside the encoder) or a host selector of `runtime.selectors`.

    Sampling, with the rules and in the order of transformers' `generate`: the logits of tokens that prompt or
    answer already have are divided by `repetition_penalty` (multiplied where negative; 1 is off).
    `temperature` 0 then takes the likeliest token. Otherwise one is drawn from what is left: the `top_k`
    likeliest and their ties (0 is off), of these the smallest set whose probability reaches `top_p` (1 is
    off), of these the ones at least `min_p` times as likely as the likeliest (0 is off). `seed` seeds the
    draws, and the selector "random".

    The answer ends with the token that completes one of the strings `stop` in its text, which is then cut
    before it; the text of special tokens is not looked at.

    `ignore_eos` goes on past the end of the answer, for measuring. `history` holds earlier turns, oldest
    first; a plain (prompt, images, answer) tuple will do.
    """

    prompt: str
    images: tuple[ImageSource, ...] = ()
    ratio: float | None = None
    tokens: int | None = None
    selector: str = GRAPH
    max_new_tokens: int = 64
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    stop: tuple[str, ...] = ()
    seed: int = 0
    ignore_eos: bool = False
    history: tuple[Turn, ...] = ()

    def __post_init__(self) -> None:
        for name, (kind, expected) in _TYPES.items():
            value = getattr(self, name)
            _check_type(name, value, kind, expected)
            if isinstance(value, numbers.Real) and type(value) not in _PLAIN:
                # Counts of tokens and bytes would overflow, or round, in NumPy's short types.
                plain = int(value) if isinstance(value, numbers.Integral) else float(value)
                object.__setattr__(self, name, plain)
        object.__setattr__(self, "stop", tuple(self.stop))
        object.__setattr__(self, "images", _as_tuple(self.images))
        object.__setattr__(self, "history", tuple(_as_turn(turn) for turn in self.history))
        for text in (self.prompt, *(part for turn in self.history for part in (turn.prompt, turn.answer))):
            _check_encodable("the prompt", text)
        if self.ratio is not None and self.tokens is not None:
            raise RequestError(f"got both ratio {self.ratio} and tokens {self.tokens}: give one of the two")
        if self.ratio is not None:
            kept_count(1, self.ratio)  # refuses a ratio outside (0, 1]
        if self.selector not in allowed_selectors():
            raise RequestError(
                f'selector is "{self.selector}", expected one of {", ".join(allowed_selectors())}'
            )
        if self.max_new_tokens < 1:
            raise RequestError(f"max_new_tokens is {self.max_new_tokens}, expected at least 1")
        if self.seed < 0:
            raise RequestError(f"seed is {self.seed}, expected 0 or a positive integer")
        self._check_sampling()
        for text in self.stop:
            _check_type("a string of stop", text, (str,), "a string")
            _check_encodable("the stop string", text)
            if not text:
                raise RequestError("a string of stop is empty, expected text: leave it out")

    def _check_sampling(self) -> None:
        if not (math.isfinite(self.temperature) and self.temperature >= 0.0):
            raise RequestError(f"temperature is {self.temperature}, expected 0 (greedy) or a positive number")
        if not 0.0 < self.top_p <= 1.0:
            raise RequestError(f"top_p is {self.top_p}, expected a number in (0, 1]")
        if self.top_k < 0:
            raise RequestError(f"top_k is {self.top_k}, expected 0 (off) or a positive integer")
        if not 0.0 <= self.min_p <= 1.0:
            raise RequestError(f"min_p is {self.min_p}, expected a number in [0, 1], where 0 is off")
        if not _PENALTIES[0] <= self.repetition_penalty <= _PENALTIES[1]:
            raise RequestError(
                f"repetition_penalty is {self.repetition_penalty}, expected a number from {_PENALTIES[0]} to "
                f"{_PENALTIES[1]}, where 1 is off and 1.1 discourages repetition"
            )

    @property
    def all_images(self) -> tuple[ImageSource, ...]:
        """Images of the history and of this turn, in the order in which the prompt shows them."""
        return (*(image for turn in self.history for image in turn.images), *self.images)


def _check_type(name: str, value: object, kind: tuple[type, ...], expected: str) -> None:
    if not isinstance(value, kind) or (isinstance(value, bool) and bool not in kind):
        raise RequestError(f"{name} is {_short(value)}, expected {expected}")


def _check_encodable(name: str, text: str) -> None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise RequestError(
            f"{name} {_short(text)} is not valid Unicode at character {error.start}: write it in UTF-8"
        ) from None


def _as_turn(turn: object) -> Turn:
    if not isinstance(turn, (tuple, list)) or len(turn) != len(Turn._fields):
        raise RequestError(f"a turn of history is {_short(turn)}, expected (prompt, images, answer)")
    prompt, images, answer = turn
    for name, text in (("prompt", prompt), ("answer", answer)):
        _check_type(f"the {name} of a turn of history", text, (str,), "a string")
    return Turn(prompt, _as_tuple(images), answer)


def _short(value: object) -> str:
    shown = repr(value)
    return shown if len(shown) <= 60 else shown[:57] + "..."


def _as_tuple(images: object) -> tuple[ImageSource, ...]:
    if isinstance(images, (str, Path)) or not isinstance(images, (tuple, list)):
        raise RequestError(
            f"images is a {type(images).__name__}, expected a tuple or list of images: write (image,)"
        )
    return tuple(images)
