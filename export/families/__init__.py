"""Model families by `model_type`. To add one: write `families/<name>.py`, add its instance to `FAMILIES`."""

from __future__ import annotations

from typing import Any

from export.errors import CheckpointError
from export.families.base import EncoderInfo, Family, ImageUnits, Reference, Subgraph
from export.families.internvl import InternVLFamily
from export.families.llava import LlavaFamily
from export.families.llava_next import LlavaNextFamily
from export.families.qwen2_5_vl import Qwen25VLFamily
from export.families.smolvlm import Idefics3Family, SmolVLMFamily

__all__ = ["FAMILIES", "EncoderInfo", "Family", "ImageUnits", "Reference", "Subgraph", "family_for"]

# How configurations name an image encoder: vision_config, mm_vision_tower, img_processor, visual …
_VISION_KEYS = ("vision", "visual", "mm_", "img_", "image_")

_REGISTERED: tuple[Family, ...] = (
    LlavaFamily(),
    LlavaNextFamily(),
    SmolVLMFamily(),
    Idefics3Family(),
    Qwen25VLFamily(),
    InternVLFamily(),
)

FAMILIES: dict[str, Family] = {family.model_type: family for family in _REGISTERED}


def family_for(config: dict[str, Any]) -> Family:
    """The family of a parsed `config.json`.

    Raises:
        CheckpointError: a text-only model, or a model type that nobody registered.
    """
    model_type = config.get("model_type")
    if isinstance(model_type, str) and model_type in FAMILIES:
        return FAMILIES[model_type]
    supported = ", ".join(sorted(FAMILIES))
    architecture = next(iter(config.get("architectures") or ["an unnamed architecture"]))
    if str(model_type).startswith("llava") and "mm_vision_tower" in config:
        raise CheckpointError(
            f"the checkpoint is {architecture} (model_type {model_type!r}) in the format of the original "
            "LLaVA code: convert it to the Hugging Face format, or give the `-hf` version of it"
        )
    if not any(key.startswith(_VISION_KEYS) for key in config):
        raise CheckpointError(
            f"the checkpoint is {architecture} (model_type {model_type!r}), which has no image encoder, so "
            "there are no visual tokens to prune: give a vision-language model of a supported family "
            f"({supported})"
        )
    raise CheckpointError(
        f"the checkpoint is {architecture} (model_type {model_type!r}), and the supported families are: "
        f"{supported}; CONTRIBUTING.md says how to add one"
    )
