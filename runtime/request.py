"""What a caller asks for: one frozen record, checked on construction as far as it can be without a bundle."""

from __future__ import annotations

import math
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


@dataclass(frozen=True)
class Request:
    """A question about zero or more images.

    Pruning: `ratio` is the fraction of visual tokens KEPT, in (0, 1]; `tokens` is the number kept per image,
    1..N; at most one of the two, and with neither the bundle's default. `selector` says who chooses the
    tokens: "graph" (the bundle's own strategy, inside the encoder) or a host selector of `runtime.selectors`.

    Sampling: `temperature` 0 is greedy; otherwise the token is drawn from the smallest set of tokens whose
    probability reaches `top_p`, with a generator seeded by `seed` (which also seeds the selector "random").

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
    top_p: float = 1.0
    seed: int = 0
    ignore_eos: bool = False
    history: tuple[Turn, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "images", _as_tuple(self.images))
        turns = (Turn(*turn) for turn in self.history)
        object.__setattr__(
            self, "history", tuple(turn._replace(images=_as_tuple(turn.images)) for turn in turns)
        )
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
        if not (math.isfinite(self.temperature) and self.temperature >= 0.0):
            raise RequestError(f"temperature is {self.temperature}, expected 0 (greedy) or a positive number")
        if not 0.0 < self.top_p <= 1.0:
            raise RequestError(f"top_p is {self.top_p}, expected a number in (0, 1]")
        if self.seed < 0:
            raise RequestError(f"seed is {self.seed}, expected 0 or a positive integer")

    @property
    def all_images(self) -> tuple[ImageSource, ...]:
        """Images of the history and of this turn, in the order in which the prompt shows them."""
        return (*(image for turn in self.history for image in turn.images), *self.images)


def _as_tuple(images: object) -> tuple[ImageSource, ...]:
    if isinstance(images, (str, Path)) or not isinstance(images, (tuple, list)):
        raise RequestError(
            f"images is a {type(images).__name__}, expected a tuple or list of images: write (image,)"
        )
    return tuple(images)
