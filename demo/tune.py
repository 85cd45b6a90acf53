"""Stage two: projector and language model on the frozen tower, with a random kept fraction in every batch.

The language model sees pruned images from the start, because one that never saw fewer tokens reads them
badly.
"""

from __future__ import annotations

from collections.abc import Callable

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

__all__ = ["answer_logits", "exact_answers", "tune"]

PEAK_RATE = 1e-3
EASY_STEPS = 0.1  # fraction of the steps on few, large digits
MIXED_STEPS = 0.3  # fraction after which small digits are in
CHAIN_SHARE = 0.2  # batches that are conversations
FULL_SHARE = 0.25  # batches with every token kept
MIN_RATIO = 0.12
_PRESENCE: tuple[Kind, ...] = ("presence",) * 5  # the slowest to be learned
ASKED: tuple[Kind, ...] = ("count", "read", *_PRESENCE, "edge")
Report = Callable[[int, dict[str, float]], None]


def tune(
    model: LlavaForConditionalGeneration, tokenizer: PreTrainedTokenizerBase, options: Options, report: Report
) -> None:
    """Trains projector and language model in place; continues from the stored state where there is one."""
    model.requires_grad_(False)
    trained = nn.ModuleDict(
        {"projector": model.model.multi_modal_projector, "decoder": model.model.language_model}
    ).requires_grad_(True)
    parameters = list(trained.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=PEAK_RATE, betas=(0.9, 0.98), weight_decay=0.05)
    state = State("tune", {"trained": trained}, optimizer)
    restore(state, options)

    def make(step: int) -> Batch:
        seed = options.seed * 2_000_003 + step
        return draw_batch("train", _layout(step, options), seed, options.batch_size)

    for step, batch in one_ahead(make, range(state.step, options.tune_steps)):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, options.tune_steps, PEAK_RATE)
        rng = np.random.default_rng([options.seed, step])
        chained = bool(rng.random() < CHAIN_SHARE)
        ratio = 1.0 if rng.random() < FULL_SHARE else float(rng.uniform(MIN_RATIO, 1.0))
        questions = [_questions(scene.digits, rng) for scene in batch.scenes]
        with autocast(options):
            with torch.no_grad():
                vision = encode(model, batch.pixel_values.to(options.device))
                kept = select(vision.scores, ratio, "rank", ())
                features = gather_tokens(vision.features, kept)
            sequences = build_sequences(tokenizer, questions, kept.shape[1], chained)
            logits = answer_logits(model, features, sequences)
        targets = sequences.answer_ids.to(options.device)
        loss = functional.cross_entropy(logits.float(), targets)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        state.step = step + 1
        if state.step % options.store_every == 0 or state.step == options.tune_steps:
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


def _questions(digits: tuple[int, ...], rng: np.random.Generator) -> list[Question]:
    return [ask(ASKED[index], digits, rng) for index in rng.permutation(len(ASKED))]


def _layout(step: int, options: Options) -> Layout:
    """Few large digits first, then more, then small ones."""
    if step < EASY_STEPS * options.tune_steps:
        return Layout(1, 2, 22, 28)
    if step < MIXED_STEPS * options.tune_steps:
        return Layout(1, 4, 20, 28)
    return Layout(1, 4, 16, 28)
