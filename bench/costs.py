"""Multiply-adds of a request, counted from the configuration: what times are predicted from, stage by stage.

What is counted and what is left out: `export.costs`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from export.costs import DecoderShape, VisionShape, decoder_shape, mlp_projector_macs

__all__ = ["DecoderShape", "ModelShape", "VisionShape", "gmac", "model_shape"]


@dataclass(frozen=True)
class ModelShape:
    """Tower, two-layer projector from `projector_inputs` to the decoder's width, and decoder."""

    vision: VisionShape
    projector_inputs: int
    decoder: DecoderShape

    def vision_stage(self, keep: int | None = None) -> int:
        """Multiply-adds of the vision graph: the tower, and the projector on what is kept."""
        rows = (self.vision.patches if keep is None else keep) + self.vision.prefix
        projector = mlp_projector_macs(rows, self.projector_inputs, self.decoder.width)
        return self.vision.encoder(keep) + projector

    def prefill_stage(self, text_tokens: int, keep: int | None = None) -> int:
        """Multiply-adds of the prefill of `text_tokens` and the kept visual tokens of one image."""
        rows = (self.vision.patches if keep is None else keep) + self.vision.prefix
        return self.decoder.prefill(text_tokens + rows)


def model_shape(config: Any) -> ModelShape:
    """Shape of a `LlavaConfig` with a CLIP or SigLIP tower."""
    vision, text = config.vision_config, config.text_config
    wanted = config.vision_feature_layer
    chosen = [wanted] if isinstance(wanted, int) else list(wanted)
    # hidden_states has one entry more than there are layers: entry i is the output of the first i layers.
    depths = [index if index >= 0 else vision.num_hidden_layers + 1 + index for index in chosen]
    special = 1 if "clip" in vision.model_type else 0
    return ModelShape(
        vision=VisionShape(
            width=vision.hidden_size,
            mlp=vision.intermediate_size,
            layers=max(depths),
            patches=(vision.image_size // vision.patch_size) ** 2,
            patch_inputs=vision.num_channels * vision.patch_size**2,
            special=special,
            prefix=special if config.vision_feature_select_strategy == "full" else 0,
        ),
        projector_inputs=vision.hidden_size * len(chosen),
        decoder=decoder_shape(text),
    )


def gmac(multiply_adds: int) -> float:
    """Multiply-adds in billions."""
    return multiply_adds / 1e9
