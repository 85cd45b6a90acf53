"""Questions of a scene as one token sequence: the image prefix once, then every question and answer.

*Packed*: the questions do not see each other (block-diagonal mask, each one's positions start after the
prefix), so one pass over the image trains several first turns. *Chained*: they are the turns of one
conversation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from demo.questions import Question

__all__ = ["Sequences", "build_sequences"]

PREFIX = 0  # segment that everyone sees
PADDING = -1


@dataclass(frozen=True)
class Sequences:
    """A batch of sequences, without the rows of the image features: those go in at ``image_at``.

    ``L`` counts the image tokens: every tensor but ``input_ids`` is laid out with them in place.
    """

    input_ids: Tensor  # int64 [batch, L - image tokens]
    image_at: int  # index of the first image token
    position_ids: Tensor  # int64 [batch, L]
    attention_mask: Tensor  # bool [batch, 1, L, L], True where a query (dim 2) may look at a key (dim 3)
    answer_rows: Tensor  # int64 [answer tokens] sequence of each answer token (end-of-sequence included)
    answer_at: Tensor  # int64 [answer tokens] position whose logits predict it
    answer_ids: Tensor  # int64 [answer tokens]
    question_of: Tensor  # int64 [answer tokens] running number of its question over the whole batch


def build_sequences(
    tokenizer: PreTrainedTokenizerBase,
    questions: Sequence[Sequence[Question]],
    image_tokens: int,
    chained: bool,
) -> Sequences:
    """Lays out the questions of each scene after ``image_tokens`` image tokens."""
    before = [tokenizer.bos_token_id, *_encode(tokenizer, "USER: ")]
    after = _encode(tokenizer, "\n")
    prefix = len(before) + image_tokens + len(after)
    rows = [_Row(before + after, prefix) for _ in questions]
    answers: list[tuple[int, int, int, int]] = []
    number = 0
    for index, (row, scene_questions) in enumerate(zip(rows, questions, strict=True)):
        for turn, question in enumerate(scene_questions):
            opening = "USER: " if chained and turn else ""
            asked = _encode(tokenizer, f"{opening}{question.prompt} ASSISTANT:")
            answer = [*_encode(tokenizer, f" {question.answer}"), tokenizer.eos_token_id]
            start = image_tokens + len(row.ids) + len(asked) - 1
            answers += [(index, start + offset, token, number) for offset, token in enumerate(answer)]
            row.append(asked + answer, segment=PREFIX if chained else turn + 1)
            number += 1
    length = max(len(row.ids) for row in rows)
    ids = torch.tensor([row.ids + [tokenizer.pad_token_id] * (length - len(row.ids)) for row in rows])
    total = length + image_tokens
    positions = torch.tensor([row.positions + [0] * (total - len(row.positions)) for row in rows])
    segments = torch.tensor([row.segments + [PADDING] * (total - len(row.segments)) for row in rows])
    table = torch.tensor(answers).T.contiguous()
    return Sequences(ids, len(before), positions, _mask(segments), table[0], table[1], table[2], table[3])


class _Row:
    """One growing sequence; ``positions`` and ``segments`` count the image tokens, ``ids`` does not."""

    def __init__(self, ids: list[int], prefix: int) -> None:
        self.ids = list(ids)
        self.positions = list(range(prefix))
        self.segments = [PREFIX] * prefix
        self._prefix = prefix

    def append(self, ids: list[int], segment: int) -> None:
        start = self._prefix if segment != PREFIX else len(self.positions)
        self.ids += ids
        self.positions += range(start, start + len(ids))
        self.segments += [segment] * len(ids)


def _mask(segments: Tensor) -> Tensor:
    """Causal, within the own segment or the prefix; a padded query sees itself, so that no row is empty."""
    length = segments.shape[1]
    queries, keys = segments[:, :, None], segments[:, None, :]
    causal = torch.ones(length, length, dtype=torch.bool).tril()
    allowed = causal & ((keys == PREFIX) | (keys == queries)) | torch.eye(length, dtype=torch.bool)
    return allowed[:, None]


def _encode(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    ids: list[int] = tokenizer.encode(text, add_special_tokens=False)
    return ids
