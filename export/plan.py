"""Everything about a build that is known before weights are loaded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from export.checkpoint import Checkpoint, load_config, load_processor
from export.families import VisionLayout
from export.golden import DEFAULT_PROMPT
from export.image_config import preprocess_from_processor
from export.options import BuildOptions, kept_tokens
from export.prompt_template import PromptInfo, prompt_from_processor
from runtime.manifest import Preprocess

__all__ = ["Plan", "plan_build"]


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
        return DEFAULT_PROMPT if self.options.prompt is None else self.options.prompt

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
    return Plan(
        options=options,
        checkpoint=checkpoint,
        config=config,
        processor=processor,
        layout=layout,
        preprocess=preprocess_from_processor(processor.image_processor, layout.image_size),
        prompt=prompt_from_processor(processor, config.image_token_id, layout.prefix_tokens + layout.tokens),
    )
