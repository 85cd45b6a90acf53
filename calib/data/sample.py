"""A sample: pictures, a question, and maybe the right answer."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Data", "Sample", "Skipped"]


@dataclass(frozen=True)
class Sample:
    """One question.

    Attributes:
        name: unique in the data and the same in every run, as `photo.jpg`, `photo.jpg#2` (second prompt) or
            `rows.jsonl:17`.
        images: files, or the bytes of encoded pictures.
        prompt: what is asked.
        answer: the right answer; None: not known.
        digest: SHA-256 of pictures, prompt and answer.
        group: SHA-256 of the pictures alone: samples of one picture are not independent.
    """

    name: str
    images: tuple[Path | bytes, ...]
    prompt: str
    answer: str | None
    digest: str
    group: str


@dataclass(frozen=True)
class Skipped:
    """A row or file that cannot be used: where it is, and why, in a sentence."""

    where: str
    reason: str


@dataclass(frozen=True)
class Data:
    """Samples in a fixed order, and what was left out.

    Attributes:
        source: where they come from, as the user wrote it.
        samples: at least one.
        skipped: rows that cannot be used.
        notes: sentences on how the samples were chosen, as which split of several.
    """

    source: str
    samples: tuple[Sample, ...]
    skipped: tuple[Skipped, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def digest(self) -> str:
        """SHA-256 of all samples, in order."""
        return hashlib.sha256("\n".join(sample.digest for sample in self.samples).encode()).hexdigest()

    @property
    def labelled(self) -> bool:
        """Whether some samples have a right answer."""
        return any(sample.answer is not None for sample in self.samples)
