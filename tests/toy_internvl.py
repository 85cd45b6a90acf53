"""InternVL checkpoints with random weights, written the way `save_pretrained` writes real ones: a tiny one,
and one with the published vision side of InternVL3-1B-hf.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.toy_llava import _spread

__all__ = [
    "INTERNVL_TEMPLATE",
    "internvl_processor",
    "published_internvl",
    "toy_internvl_model",
    "toy_internvl_tokenizer",
    "write_toy_internvl",
]

TILE = 32
PATCH = 4  # 8 x 8 patches per tile
MOST_TILES = 6

# ChatML as in OpenGVLab/InternVL3-1B-hf: no system line, a line feed after each image.
INTERNVL_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}{{ '<IMG_CONTEXT>\n' }}"
    "{% elif part['type'] == 'video' %}{{ '<video>\n' }}"
    "{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

_NAMED = {
    "start_image_token": "<img>",
    "end_image_token": "</img>",
    "context_image_token": "<IMG_CONTEXT>",
    "video_token": "<video>",
}
_SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", *_NAMED.values())


def toy_internvl_tokenizer() -> Any:
    """A byte-level tokenizer with InternVL's special tokens, of which none comes before a text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: index for index, token in enumerate((*_SPECIALS, *alphabet))}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(_SPECIALS))
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        extra_special_tokens=_NAMED,
    )


def internvl_processor(*, tokens: int = 16, **options: Any) -> Any:
    """The real processor over the real PIL image processor, which gets the `options`.

    Without its part for videos, which needs torchvision. `tokens` of a tile.
    """
    from transformers import InternVLProcessor
    from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil

    class WithoutVideos(InternVLProcessor):  # type: ignore[misc, unused-ignore]
        @classmethod
        def get_attributes(cls) -> list[str]:
            return ["image_processor", "tokenizer"]

    WithoutVideos.__name__ = InternVLProcessor.__name__  # what is written into a checkpoint
    size = {"height": TILE, "width": TILE}
    images = GotOcr2ImageProcessorPil(**{"size": size, "max_patches": MOST_TILES} | options)
    return WithoutVideos(
        images, toy_internvl_tokenizer(), image_seq_length=tokens, chat_template=INTERNVL_TEMPLATE
    )


def toy_internvl_model(
    seed: int = 0, *, vision: dict[str, Any] | None = None, layers: int = 3, **config: Any
) -> Any:
    """The HF model with random weights, float32, in eval mode: InternVL3 in small.

    `vision` overwrites settings of the tower, `config` those of the whole.
    """
    tower = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "attention_bias": True,
        "image_size": [TILE, TILE],
        "patch_size": [PATCH, PATCH],
    }
    text = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 4096,
    }
    return _model(tower | (vision or {}), text, seed, config)


def _model(vision: dict[str, Any], text: dict[str, Any], seed: int, config: dict[str, Any]) -> Any:
    import torch
    from transformers import InternVLConfig, InternVLForConditionalGeneration, Qwen2Config

    ids = {
        "bos_token_id": None,
        "eos_token_id": _SPECIALS.index("<|im_end|>"),
        "pad_token_id": _SPECIALS.index("<|endoftext|>"),
    }
    side = vision["image_size"][0] // vision["patch_size"][0]
    ratio = config.get("downsample_ratio", 0.5)
    made = InternVLConfig(
        vision_config=vision,
        text_config=Qwen2Config(vocab_size=len(toy_internvl_tokenizer()), **ids, **text),
        image_token_id=_SPECIALS.index("<IMG_CONTEXT>"),
        image_seq_length=int(side * ratio) ** 2,
        **{"tie_word_embeddings": False} | config,
    )
    model = InternVLForConditionalGeneration(made).eval()
    _spread(model, seed)
    with torch.no_grad():
        for layer in model.model.vision_tower.encoder.layer:
            for scale in (layer.lambda_1, layer.lambda_2):
                scale.add_(0.5)  # else a layer adds next to nothing to its input
    return model


def write_toy_internvl(
    path: Path, seed: int = 0, *, model: dict[str, Any] | None = None, **options: Any
) -> Path:
    """Write a tiny checkpoint to the directory `path`, and return it; for `model` see `toy_internvl_model`,
    `options` go to the image processor."""
    made = toy_internvl_model(seed, **model or {})
    made.save_pretrained(path)
    _save_processor(internvl_processor(tokens=made.config.image_seq_length, **options), path)
    return path


def _save_processor(processor: Any, path: Path) -> None:
    """Write it with the entry for videos that real checkpoints have."""
    processor.save_pretrained(path)
    file = path / "processor_config.json"
    data = json.loads(file.read_text(encoding="utf-8"))
    data["video_processor"] = {"video_processor_type": "InternVLVideoProcessor"}
    file.write_text(json.dumps(data, indent=2), encoding="utf-8")


def published_internvl(path: Path, depth: int = 24, text_layers: int = 1) -> Path:
    """Write a checkpoint with the vision side of InternVL3-1B-hf (InternViT-300M at 448 pixels, patches of
    14, 24 layers, pixel shuffle by 2: 256 tokens per tile, up to 12 tiles) and random weights, and return
    `path`.

    Narrowed: the language model has `text_layers` layers of the published width instead of 24, and a
    byte-level vocabulary.
    """
    vision = {
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": depth,
        "num_attention_heads": 16,
        "attention_bias": True,
        "image_size": [448, 448],
        "patch_size": [14, 14],
    }
    text = {
        "hidden_size": 896,
        "intermediate_size": 4864,
        "num_hidden_layers": text_layers,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
        "max_position_embeddings": 32768,
        "rms_norm_eps": 1e-6,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
    }
    _model(vision, text, 0, {}).save_pretrained(path)
    imagenet = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
    size = {"height": 448, "width": 448}
    _save_processor(internvl_processor(tokens=256, size=size, max_patches=12, **imagenet), path)
    return path
