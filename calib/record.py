"""One measurement: what a setting made of a sample, beside what the unpruned model makes of it."""

from __future__ import annotations

from dataclasses import dataclass

from calib.settings import Setting

__all__ = ["Record"]


@dataclass(frozen=True)
class Record:
    """A row of the results.

    Attributes:
        sample: its name, unique in the data of one run; another run's data may give it another one.
        setting: what was measured. The row of `REFERENCE` holds the unpruned model's own answer.
        before, after: visual tokens without and with pruning, as they go into the prompt.
        kept: kept positions as `Result.kept_indices` has them, all images one behind the other; empty where
            the setting does not select (`none`, `resize`).
        tokens: ids of the answer, greedy.
        text: the answer.
        same_first: the first token is the unpruned model's.
        same_answer: all tokens are.
        divergence: KL divergence of the first token's probabilities from the unpruned model's, in nats.
        correct: the text is the sample's answer, blanks at its ends aside; None where the sample has none.
        vision, prefill: seconds.
        ttft: seconds from opened pictures to the first token, graphs loaded.
        kv_bytes: rows of the KV cache that the answer used.
        error: why there is no measurement: a sentence; the other fields are zeros then. None: there is one.
        digest: `Sample.digest`, by which it is known in every run; a sweep writes it, "" before that.
    """

    sample: str
    setting: Setting
    before: int = 0
    after: int = 0
    kept: tuple[int, ...] = ()
    tokens: tuple[int, ...] = ()
    text: str = ""
    same_first: bool = False
    same_answer: bool = False
    divergence: float = 0.0
    correct: bool | None = None
    vision: float = 0.0
    prefill: float = 0.0
    ttft: float = 0.0
    kv_bytes: int = 0
    error: str | None = None
    digest: str = ""
