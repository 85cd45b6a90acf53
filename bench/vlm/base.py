"""What an engine is asked here: to answer one picture and one prompt at a ratio."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bench.images import Picture, noise_images

__all__ = ["DECODE", "EMBED", "PREFILL", "PREPROCESS", "RATIOS", "TTFT", "VISION", "Answer", "Engine", "Task"]

RATIOS = (1.0, 0.5, 0.3, 0.1)
TTFT, VISION, EMBED, PREFILL = "ttft", "vision", "embed", "prefill"
DECODE, PREPROCESS = "decode", "preprocess"
Logits = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Task:
    """What an engine is opened for: a checkpoint, its bundle in some precision, threads, size of the picture.

    `bundle` is None for an engine that reads the checkpoint.
    """

    checkpoint: Path
    bundle: Path | None
    threads: int
    side: int

    @property
    def picture(self) -> Picture:
        """The picture of every request, uint8 [side, side, 3]."""
        return noise_images(1, self.side, seed=0)[0]


@dataclass(frozen=True)
class Answer:
    """Seconds of a greedy answer, and its counts.

    `embed` is None where an engine does not tell it from prefill, `decode` is per token and 0 for an answer
    of one, preprocessing of the picture is in none but its own. `kv_bytes` is the KV cache at full length,
    `kv_allocated` what was allocated for it.
    """

    vision: float
    embed: float | None
    prefill: float
    decode: float
    preprocess: float | None
    visual_tokens: int
    prompt_tokens: int
    kv_bytes: int
    kv_allocated: int
    tokens: tuple[int, ...]

    def to_dict(self) -> dict[str, Any]:
        """For JSON, with the time to first token: vision, embedding, prefill and choice of the token."""
        return asdict(self) | {TTFT: self.vision + (self.embed or 0.0) + self.prefill}


class Engine(ABC):
    """An opened model. Not to be used from two threads at once."""

    @abstractmethod
    def answer(self, ratio: float, new: int) -> Answer:
        """Answer with `new` tokens, greedily and past any end; nothing is kept between calls."""

    @abstractmethod
    def logits(self) -> Logits:
        """float32 [V]: of the last position of the unpruned prompt."""


Opener = Callable[[Task], Engine]
