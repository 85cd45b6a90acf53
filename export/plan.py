"""Everything about a build that is known before weights are loaded."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from export.checkpoint import Checkpoint, load_config, load_processor
from export.errors import OptionError
from export.families import EncoderInfo
from export.golden import DEFAULT_PROMPT, NEW_TOKENS, open_images
from export.options import BuildOptions
from export.prompt_template import PromptInfo, prompt_from_processor
from runtime.errors import ImageError, RequestError
from runtime.layouts import ImageLayout, ImagePlan
from runtime.manifest import Preprocess
from runtime.plan import Amount, kept_placeholders, stitched_counts, unit_counts

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["Plan", "check_question", "kept_of", "placeholders_of", "plan_build"]


@dataclass(frozen=True)
class Plan:
    """What will be built, checked as far as configuration, processor and options allow."""

    options: BuildOptions
    checkpoint: Checkpoint
    config: Any
    processor: Any
    encoder: EncoderInfo
    layout: ImageLayout
    preprocess: Preprocess
    prompt: PromptInfo
    images: tuple[Image.Image, ...]

    @property
    def question(self) -> str:
        """Prompt of the golden tensors."""
        # Many chat templates trim; without outer blanks all of them write the same.
        return DEFAULT_PROMPT if self.options.prompt is None else self.options.prompt.strip()

    @property
    def position_ids(self) -> str:
        """Position policy in force."""
        return self.options.position_ids or self.checkpoint.family.position_ids

    @property
    def grid_input(self) -> bool:
        """Whether the pruned encoder takes `grid`: whole rows are kept, and their length varies."""
        return self.options.strategy == "row" and self.layout.unit_grid is None

    @cached_property
    def image_plans(self) -> tuple[ImagePlan, ...]:
        """Of the golden images."""
        try:
            return tuple(self.layout.plan(image.height, image.width) for image in self.images)
        except ImageError as error:
            raise OptionError(str(error)) from error

    @cached_property
    def kept(self) -> tuple[int, ...]:
        """Tokens of each golden image that are kept, newlines and prefix rows not counted."""
        return tuple(kept_of(plan, self.options) for plan in self.image_plans)

    @property
    def placeholders(self) -> tuple[int, ...]:
        """Placeholders of each golden image once it is pruned; the most, with policy `keep_nonempty`."""
        return tuple(
            placeholders_of(plan, kept, self.layout, self.options)
            for plan, kept in zip(self.image_plans, self.kept, strict=True)
        )

    @property
    def notes(self) -> tuple[str, ...]:
        """What was done differently from what was asked."""
        asked = self.options.tokens
        kept = tuple(dict.fromkeys(self.kept))
        if asked is None or kept == (asked,):
            return ()
        most = f"strategy {self.options.strategy!r} keeps {' and '.join(map(str, kept))}"
        rows = ", the most whole rows in it" if self.options.strategy == "row" else ""
        return (f"{asked} tokens were asked for; {most}{rows}",)


def plan_build(options: BuildOptions, checkpoint: Checkpoint) -> Plan:
    """Read and check everything but the weights.

    Raises:
        CheckpointError: configuration, tower, language model, image processor or tokenizer that cannot be
        exported.
        OptionError: options that this model cannot have, or an image that cannot be read.
        PromptError: a chat template that cannot be expressed.
    """
    config, family = load_config(checkpoint), checkpoint.family
    encoder = family.encoder_info(config)
    processor = load_processor(checkpoint)
    layout = family.layout(config, processor)
    options.check(encoder, layout)
    plan = Plan(
        options=options,
        checkpoint=checkpoint,
        config=config,
        processor=processor,
        encoder=encoder,
        layout=layout,
        preprocess=family.preprocess(processor),
        prompt=prompt_from_processor(processor, config.image_token_id, layout),
        images=tuple(open_images(options.images)),
    )
    check_question(plan.question, processor)
    _check_length(plan)
    return plan


def kept_of(plan: ImagePlan, options: BuildOptions) -> int:
    """Tokens kept of one image.

    Raises:
        OptionError: more tokens than the image has, or less than a row for `row`.
    """
    amount = Amount(options.keep_ratio, options.tokens)
    try:
        if options.row_scope == "stitched":
            return sum(stitched_counts(plan, amount))
        return sum(unit_counts(plan, amount, options.strategy))
    except RequestError as error:
        raise OptionError(str(error)) from error


def placeholders_of(plan: ImagePlan, kept: int, layout: ImageLayout, options: BuildOptions) -> int:
    """Placeholders of an image of which `kept` tokens go on; the most, with policy `keep_nonempty`."""
    # As in the runtime: what is not pruned keeps its newlines.
    newline = options.newline_policy if kept < plan.prunable else "keep_all"
    return kept_placeholders(plan, kept, layout.prefix_tokens, newline)


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
    original = plan.position_ids == "original"  # of the unpruned images; with M-RoPE fewer than their tokens
    visual = sum(sum(image.spans) for image in plan.image_plans) if original else sum(plan.placeholders)
    text = len(plan.processor.tokenizer(plan.question).input_ids)
    most = plan.config.text_config.max_position_embeddings
    if visual + text + NEW_TOKENS > most:
        raise OptionError(
            f"{visual} positions of visual tokens, {text} of the prompt and {NEW_TOKENS} of the answer are "
            f"more than the {most} positions of this language model: give a smaller "
            f"{'--image' if original else '--ratio'}, a shorter --prompt or fewer --image"
        )
