"""What an answer comes with: text, token counts, seconds per stage and bytes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, TypeAlias

__all__ = ["FinishReason", "Result", "Stopwatch", "Timings", "peak_rss_bytes"]

FinishReason: TypeAlias = Literal["eos", "stop", "length", "cancelled"]
"""Why an answer ended: with an end token, with a stop string, at `max_new_tokens`, or when it was told to."""


@dataclass(frozen=True)
class Timings:
    """Wall-clock seconds per stage; the time a consumer spends between two pieces of a stream is in none.

    `load` is the opening of graphs, and the import of Pillow, that this request was the first to need.
    `embed` is tokenizing, embedding and merging; `prefill` includes the allocation of the KV cache and the
    first token, chosen and made text; `decode` is all later tokens.
    """

    load: float = 0.0
    preprocess: float = 0.0
    vision: float = 0.0
    embed: float = 0.0
    prefill: float = 0.0
    decode: float = 0.0

    @property
    def ttft(self) -> float:
        """Time to first token, without `load`."""
        return self.preprocess + self.vision + self.embed + self.prefill

    @property
    def total(self) -> float:
        """Everything, `load` included."""
        return self.load + self.ttft + self.decode

    def to_dict(self) -> dict[str, float]:
        """All stages with `ttft` and `total`, for JSON."""
        return {**asdict(self), "ttft": self.ttft, "total": self.total}


@dataclass
class Stopwatch:
    """Adds up seconds per stage name."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Count the time inside the `with` block to a field of `Timings`."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start

    def timings(self) -> Timings:
        """What was measured so far."""
        return Timings(**self.seconds)


@dataclass(frozen=True)
class Result:
    """An answer.

    `token_ids` are all generated ids, also those that `text` does not show: the end token, a stop string and
    what the last token had behind it. `visual_tokens_before` and `visual_tokens_after` hold the visual tokens
    per image, newline vectors included; `kept_indices` the kept positions per image, counted through all its
    units (tiles), N of each; prefix rows (CLS) are in none of them, but in `prompt_tokens`. `pruned` is False
    exactly when every visual token went on, and `reason` then says why.

    `text` starts with its first visible character, the white space that models put before an answer left
    out, and ends before the first stop string: here and in the pieces of a stream. `kv_bytes` is one copy of
    the KV cache at full length, `kv_bytes_unpruned` the same for this request without pruning,
    `kv_bytes_allocated` what was really allocated: two copies where the decoder does not write in place, the
    larger cache of an earlier answer where that was used, nothing where the answer was cancelled before it
    began.

    `reused_tokens` of the prompt's tokens were in the KV cache of an earlier answer, and the visual tokens of
    `reused_images` images were there already: neither was computed again.
    """

    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    prompt_tokens: int
    visual_tokens_before: tuple[int, ...]
    visual_tokens_after: tuple[int, ...]
    kept_indices: tuple[tuple[int, ...], ...]
    pruned: bool
    reason: str | None
    timings: Timings
    kv_bytes: int
    kv_bytes_unpruned: int
    kv_bytes_allocated: int
    peak_rss_bytes: int
    reused_tokens: int = 0
    reused_images: int = 0

    @property
    def tokens_per_second(self) -> float | None:
        """Speed of decoding, the first token not counted; None for an answer of one token."""
        steps = len(self.token_ids) - 1
        return steps / self.timings.decode if steps > 0 and self.timings.decode > 0.0 else None

    def to_dict(self) -> dict[str, Any]:
        """Every field and `tokens_per_second`, ready for JSON."""
        record = asdict(self)
        record["timings"] = self.timings.to_dict()
        record["tokens_per_second"] = self.tokens_per_second
        return record


def peak_rss_bytes() -> int:
    """Peak resident memory of this process so far."""
    import resource
    import sys

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # kilobytes everywhere but on macOS
