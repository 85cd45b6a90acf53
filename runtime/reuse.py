"""What a generator keeps from one request for the next."""

from __future__ import annotations

from dataclasses import dataclass

from runtime.errors import RequestError

__all__ = ["NO_REUSE", "Reuse"]


@dataclass(frozen=True)
class Reuse:
    """What is kept between requests: up to `features` bytes of visual tokens (0: none), and with `prefix`
    the KV cache of the last answer.

    Neither changes an answer but by the order of sums: a prompt prefilled in two parts is added up in
    another order than one prefilled whole (below 1e-6 of the largest logit of the toys).
    """

    features: int = 256 << 20
    prefix: bool = True

    def __post_init__(self) -> None:
        whole = isinstance(self.features, int) and not isinstance(self.features, bool)
        if not whole or self.features < 0:
            raise RequestError(f"reuse.features is {self.features!r}, expected bytes, or 0 to keep none")
        if not isinstance(self.prefix, bool):
            raise RequestError(f"reuse.prefix is {self.prefix!r}, expected True or False")


NO_REUSE = Reuse(features=0, prefix=False)
"""Every request from nothing: for measuring, and where memory is short."""
