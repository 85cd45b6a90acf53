"""LLaVA-NeXT checkpoints with random weights, written the way `save_pretrained` writes real ones: a tiny one,
and one with the published vision side.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.toy_llava import LLAVA_TEMPLATE, ToySpec, _spread, toy_tokenizer

__all__ = [
    "PINPOINTS",
    "PUBLISHED_PINPOINTS",
    "published_llava_next",
    "toy_next_model",
    "toy_next_processor",
    "write_toy_llava_next",
]

IMAGE_SIZE = 32
PATCH = 8  # a 4 x 4 grid of 16 patches per tile
PINPOINTS = ((32, 64), (64, 32), (64, 64), (96, 32), (32, 96))
PUBLISHED_PINPOINTS = ((336, 672), (672, 336), (672, 672), (1008, 336), (336, 1008))


def toy_next_processor(
    *,
    tower: str = "clip",
    image_size: int = IMAGE_SIZE,
    patch: int = PATCH,
    pinpoints: tuple[tuple[int, int], ...] = PINPOINTS,
    **options: Any,
) -> Any:
    """The real processor over the real PIL image processor; `options` go to the image processor."""
    from transformers import LlavaNextProcessor
    from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil

    images = LlavaNextImageProcessorPil(
        **{
            "size": {"shortest_edge": image_size},
            "crop_size": {"height": image_size, "width": image_size},
            "image_grid_pinpoints": [list(canvas) for canvas in pinpoints],
        }
        | options
    )
    return LlavaNextProcessor(
        image_processor=images,
        tokenizer=toy_tokenizer(ToySpec()),
        patch_size=patch,
        vision_feature_select_strategy="default" if tower == "clip" else "full",
        num_additional_image_tokens=1 if tower == "clip" else 0,
        chat_template=LLAVA_TEMPLATE,
    )


def _tower(kind: str) -> Any:
    from transformers import AutoConfig

    return AutoConfig.for_model(
        f"{kind}_vision_model",
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=4,
        num_attention_heads=4,
        image_size=IMAGE_SIZE,
        patch_size=PATCH,
    )


def _text(vocab: int, layers: int, **options: Any) -> Any:
    from transformers import LlamaConfig

    return LlamaConfig(
        **{
            "vocab_size": vocab,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": layers,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 4096,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "pad_token_id": 0,
        }
        | options
    )


def toy_next_model(
    seed: int = 0,
    *,
    tower: str = "clip",
    pinpoints: tuple[tuple[int, int], ...] = PINPOINTS,
    feature_layer: int | list[int] = -2,
) -> Any:
    """The HF model with random weights, float32, in eval mode: LLaVA-1.6 in small."""
    from transformers import LlavaNextConfig, LlavaNextForConditionalGeneration

    tokenizer = toy_tokenizer(ToySpec())
    config = LlavaNextConfig(
        vision_config=_tower(tower),
        text_config=_text(len(tokenizer), 2),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        vision_feature_layer=feature_layer,
        vision_feature_select_strategy="default" if tower == "clip" else "full",
        image_grid_pinpoints=[list(canvas) for canvas in pinpoints],
    )
    return _random(LlavaNextForConditionalGeneration(config), seed)


def _random(model: Any, seed: int) -> Any:
    import torch

    _spread(model.eval(), seed)
    with torch.no_grad():  # `_spread` takes it for a bias; as small as that, it would hardly change an answer
        model.model.image_newline.mul_(10)
    return model


def write_toy_llava_next(path: Path, seed: int = 0, **options: Any) -> Path:
    """Write a tiny checkpoint to the directory `path`, and return it; for `options` see `toy_next_model`."""
    toy_next_model(seed, **options).save_pretrained(path)
    shared = {key: value for key, value in options.items() if key in ("tower", "pinpoints")}
    toy_next_processor(**shared).save_pretrained(path)
    return path


def published_llava_next(path: Path, text_layers: int = 1) -> Path:
    """Write a checkpoint with the vision side of llava-v1.6-vicuna-7b-hf (CLIP ViT-L/14-336, 24 layers, five
    pinpoints, feature layer -2) and random weights, and return `path`.

    Narrowed: the language model (hidden size 512 instead of 4096, `text_layers` instead of 32, a byte-level
    vocabulary), and with it the output of the projector. A decoder is a plain Llama at any size: 26 GB would
    test nothing more.
    """
    from transformers import CLIPVisionConfig, LlavaNextConfig, LlavaNextForConditionalGeneration

    tokenizer = toy_tokenizer(ToySpec())
    tower = CLIPVisionConfig(
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=24,
        num_attention_heads=16,
        image_size=336,
        patch_size=14,
        projection_dim=768,
    )
    narrow = {"hidden_size": 512, "intermediate_size": 1376, "num_key_value_heads": 4, "rms_norm_eps": 1e-5}
    config = LlavaNextConfig(
        vision_config=tower,
        text_config=_text(len(tokenizer), text_layers, **narrow),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        image_grid_pinpoints=[list(canvas) for canvas in PUBLISHED_PINPOINTS],
    )
    _random(LlavaNextForConditionalGeneration(config), 0).save_pretrained(path)
    toy_next_processor(image_size=336, patch=14, pinpoints=PUBLISHED_PINPOINTS).save_pretrained(path)
    return path
