"""Everything about a build that is known before weights are loaded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from export.checkpoint import Checkpoint, load_config, load_processor
from export.errors import OptionError
from export.families import VisionLayout
from export.golden import DEFAULT_PROMPT, NEW_TOKENS
from export.image_config import preprocess_from_processor
from export.options import BuildOptions, kept_tokens
from export.prompt_template import PromptInfo, prompt_from_processor
from runtime.manifest import Preprocess

__all__ = ["Plan", "check_question", "plan_build"]


@dataclass(frozen=True)
class Plan:
    """What will be built, checked as far as configuration, processor and options allow."""

    options: BuildOptions
    checkpoint: Checkpoint
    config: Any
    processor: Any
    layout: VisionLayout
    preprocess: Preprocess
    prompt: PromptInfo

    @property
    def question(self) -> str:
        """Prompt of the golden tensors."""
        # Many chat templates trim; without outer blanks all of them write the same.
        return DEFAULT_PROMPT if self.options.prompt is None else self.options.prompt.strip()

    @property
    def notes(self) -> tuple[str, ...]:
        """What was done differently from what was asked."""
        asked = self.options.tokens
        if asked is None or asked == self.keep:
            return ()
        return (
            f"{asked} tokens were asked for; strategy 'row' keeps {self.keep}, the most whole rows in it",
        )

    @property
    def keep(self) -> int:
        """K of the golden tensors and of the default request."""
        return kept_tokens(self.layout, self.options.strategy, self.options.keep_ratio, self.options.tokens)


def plan_build(options: BuildOptions, checkpoint: Checkpoint) -> Plan:
    """Read and check everything but the weights.

    Raises:
        CheckpointError: configuration, tower, language model, image processor or tokenizer that cannot be
        exported.
        OptionError: options that this model cannot have.
        PromptError: a chat template that cannot be expressed.
    """
    config = load_config(checkpoint)
    layout = checkpoint.family.layout(config)
    options.check(layout)
    processor = load_processor(checkpoint)
    plan = Plan(
        options=options,
        checkpoint=checkpoint,
        config=config,
        processor=processor,
        layout=layout,
        preprocess=preprocess_from_processor(processor.image_processor, layout.image_size),
        prompt=prompt_from_processor(processor, config.image_token_id, layout.prefix_tokens + layout.tokens),
    )
    check_question(plan.question, processor)
    _check_length(plan)
    return plan


def check_question(question: str, processor: Any) -> None:
    """Refuse a prompt that the processor would count an image in.

    Raises:
        OptionError: it holds the image token.
    """
    if processor.image_token in question:
        raise OptionError(
            f"the prompt contains the image token {processor.image_token!r}: leave it out, the template adds "
            "one for every image"
        )


def _check_length(plan: Plan) -> None:
    """The golden request, which the finished bundle must answer, has to fit into the model."""
    images = max(1, len(plan.options.images))
    visual = images * (plan.layout.prefix_tokens + plan.keep)
    text = len(plan.processor.tokenizer(plan.question).input_ids)
    most = plan.config.text_config.max_position_embeddings
    if visual + text + NEW_TOKENS > most:
        raise OptionError(
            f"{visual} visual tokens, {text} of the prompt and {NEW_TOKENS} of the answer are more than the "
            f"{most} positions of this language model: give a smaller --ratio, a shorter --prompt or fewer "
            "--image"
        )
