"""A checkpoint in PyTorch: the pruning reference of `export.oracle`, and transformers' own `generate`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy.typing as npt
from PIL import Image

from export.checkpoint import load_model, load_processor, open_checkpoint
from export.oracle import Oracle, PruningChoice
from export.prompt_template import conversation
from runtime.bundle import Bundle
from runtime.plan import Amount

__all__ = ["TorchReference", "load_reference"]

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class TorchReference:
    """A loaded model with what compares a bundle with it."""

    model: Any
    processor: Any
    oracle: Oracle

    def arrays(
        self, bundle: Bundle, question: tuple[Image.Image, str], amount: Amount, new_tokens: int
    ) -> dict[str, Array]:
        """Every stage of `runtime.parity` for one picture and prompt, pruned as the bundle prunes."""
        rules = bundle.manifest.pruning
        choice = PruningChoice(
            layer=rules.layer,
            ratio=amount.ratio,
            tokens=amount.tokens,
            strategy=rules.strategy,
            aggregation=rules.aggregation,
            row_scope=rules.row_scope,
            newline=rules.newline,
            position_ids=rules.position_ids,
        )
        picture, prompt = question
        return self.oracle.run([picture], prompt, choice, new_tokens)

    def generated(self, picture: Image.Image, prompt: str, new_tokens: int) -> Array:
        """int64 [1, new_tokens]: what plain `generate` answers, greedily and past the end of the answer."""
        import torch

        inputs = self.processor.apply_chat_template(
            conversation([(prompt, [picture], "")]),
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        )
        self.model.generation_config.eos_token_id = None  # as with `ignore_eos`
        with torch.inference_mode():
            made = self.model.generate(**inputs, max_new_tokens=new_tokens, do_sample=False)
        answer: Array = made[:, inputs["input_ids"].shape[1] :].numpy()
        return answer


def load_reference(directory: Path) -> TorchReference:
    """Load a checkpoint in float32."""
    checkpoint = open_checkpoint(str(directory))
    model, processor = load_model(checkpoint), load_processor(checkpoint)
    reference = checkpoint.family.reference(model, processor)
    return TorchReference(model, processor, Oracle(reference, model, processor))
