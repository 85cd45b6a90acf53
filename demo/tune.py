"""Stages two and three: projector and language model on the frozen tower, then all of it at smaller rates.

Both draw a kept fraction for every batch: a language model that never saw fewer tokens reads them badly.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import LlavaForConditionalGeneration, PreTrainedTokenizerBase

from demo.batches import Batch, draw_batch, one_ahead
from demo.oracle import encode, gather_tokens, project, select
from demo.questions import Kind, Question, ask
from demo.scenes import Layout
from demo.sequences import Sequences, build_sequences
from demo.training import Options, State, autocast, learning_rate, restore, store

__all__ = ["JOINT", "TUNE", "Course", "answer_logits", "exact_answers", "tune"]

EASY_STEPS = 0.1  # fraction of the steps on few, large digits
MIXED_STEPS = 0.3  # fraction after which small digits are in
CHAIN_SHARE = 0.2  # batches that are conversations
FULL_SHARE = 0.25  # batches with every token kept
MIN_RATIO = 0.12
Report = Callable[[int, dict[str, float]], None]


@dataclass(frozen=True)
class Course:
    """What distinguishes the two stages."""

    name: Literal["tune", "joint"]  # of the stored state
    rate: float  # peak learning rate of projector and language model
    tower_rate: float  # peak learning rate of the tower; 0 leaves it frozen
    growing: bool  # few large digits first; otherwise scenes as the task has them from the first step
    asked: tuple[Kind, ...]  # questions about each scene


_PRESENCE: tuple[Kind, ...] = ("presence",) * 5  # the slowest to be learned
TUNE = Course("tune", 1e-3, 0.0, True, ("count", "read", *_PRESENCE, "edge"))
JOINT = Course("joint", 5e-4, 3e-4, False, ("count", "read", "read", "presence", "presence", "edge", "edge"))


def tune(
    model: LlavaForConditionalGeneration,
    tokenizer: PreTrainedTokenizerBase,
    options: Options,
    course: Course,
    report: Report,
) -> None:
    """Trains in place; continues from the stored state where there is one."""
    steps = options.steps_of(course.name)
    model.requires_grad_(False)
    rates: dict[str, float] = {"multi_modal_projector": course.rate, "language_model": course.rate}
    if course.tower_rate:
        rates["vision_tower"] = course.tower_rate
    trained = nn.ModuleDict({name: getattr(model.model, name) for name in rates}).requires_grad_(True)
    groups = [{"params": list(trained[name].parameters()), "peak": rate} for name, rate in rates.items()]
    optimizer = torch.optim.AdamW(groups, lr=course.rate, betas=(0.9, 0.98), weight_decay=0.05)
    state = State(course.name, {"trained": trained}, optimizer)
    restore(state, options)

    def make(step: int) -> Batch:
        layout = _layout(step, steps) if course.growing else Layout()
        return draw_batch("train", layout, _seed(options, course) * 2_000_003 + step, options.batch_size)

    for step, batch in one_ahead(make, range(state.step, steps)):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps, group["peak"])
        rng = np.random.default_rng([_seed(options, course), step])
        chained = bool(rng.random() < CHAIN_SHARE)
        ratio = 1.0 if rng.random() < FULL_SHARE else float(rng.uniform(MIN_RATIO, 1.0))
        questions = [_questions(course.asked, scene.digits, rng) for scene in batch.scenes]
        with autocast(options):
            with nullcontext() if course.tower_rate else torch.no_grad():
                vision = encode(model, batch.pixel_values.to(options.device))
                kept = select(vision.scores, ratio, "rank", ())
                features = gather_tokens(vision.features, kept)
            sequences = build_sequences(tokenizer, questions, kept.shape[1], chained)
            logits = answer_logits(model, features, sequences)
        targets = sequences.answer_ids.to(options.device)
        loss = functional.cross_entropy(logits.float(), targets)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(trained.parameters(), 1.0)
        optimizer.step()
        state.step = step + 1
        if state.step % options.store_every == 0 or state.step == steps:
            store(state, options)
        report(state.step, {"loss": float(loss.detach()), **_by_kind(logits, sequences, questions)})


def answer_logits(model: LlavaForConditionalGeneration, features: Tensor, sequences: Sequences) -> Tensor:
    """Logits [answer tokens, vocabulary] given tower features [batch, kept, width] of the kept tokens."""
    device = features.device
    embeds = model.get_input_embeddings()(sequences.input_ids.to(device))
    image = project(model, features).to(embeds.dtype)
    at = sequences.image_at
    hidden = model.model.language_model(
        inputs_embeds=torch.cat([embeds[:, :at], image, embeds[:, at:]], dim=1),
        position_ids=sequences.position_ids.to(device),
        attention_mask=sequences.attention_mask.to(device),
        use_cache=False,
    ).last_hidden_state
    logits: Tensor = model.lm_head(hidden[sequences.answer_rows.to(device), sequences.answer_at.to(device)])
    return logits


def exact_answers(logits: Tensor, sequences: Sequences) -> Tensor:
    """bool [questions]: every token of the answer, and its end, is the most likely one.

    That is exactly when greedy decoding gives the answer, so no decoding loop is needed to measure it.
    """
    right = logits.argmax(dim=-1).cpu() == sequences.answer_ids
    wrong = torch.zeros(int(sequences.question_of[-1]) + 1, dtype=torch.int64)
    wrong.index_add_(0, sequences.question_of, (~right).long())
    return wrong == 0


def _by_kind(logits: Tensor, sequences: Sequences, questions: list[list[Question]]) -> dict[str, float]:
    exact = exact_answers(logits.detach(), sequences).tolist()
    results: dict[str, list[bool]] = {}
    for question, right in zip((q for row in questions for q in row), exact, strict=True):
        results.setdefault(question.kind, []).append(right)
    return {kind: float(np.mean(values)) for kind, values in results.items()}


def _questions(asked: tuple[Kind, ...], digits: tuple[int, ...], rng: np.random.Generator) -> list[Question]:
    return [ask(asked[index], digits, rng) for index in rng.permutation(len(asked))]


def _seed(options: Options, course: Course) -> int:
    """Another one per stage, so that no scene comes back."""
    return options.seed + (1000 if course is JOINT else 0)


def _layout(step: int, steps: int) -> Layout:
    """Few large digits first, then more, then small ones."""
    if step < EASY_STEPS * steps:
        return Layout(1, 2, 22, 28)
    if step < MIXED_STEPS * steps:
        return Layout(1, 4, 20, 28)
    return Layout(1, 4, 16, 28)
