"""Qwen2.5-VL checkpoints with random weights, written the way `save_pretrained` writes real ones: a tiny one,
and one with the published vision tower.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.toy_llava import _spread

__all__ = [
    "QWEN_TEMPLATE",
    "as_on_the_hub",
    "published_qwen2_5_vl",
    "toy_qwen_model",
    "toy_qwen_processor",
    "toy_qwen_tokenizer",
    "write_toy_qwen2_5_vl",
]

PATCH = 4  # a token is 2 x 2 of them, a window 2 x 2 tokens
SIZE = {"shortest_edge": 16 * 16, "longest_edge": 96 * 96}

# The template of Qwen/Qwen2.5-VL-3B-Instruct.
QWEN_TEMPLATE = (
    "{% set image_count = namespace(value=0) %}{% set video_count = namespace(value=0) %}{% for message in "
    "messages %}{% if loop.first and message['role'] != 'system' %}<|im_start|>system\nYou are a helpful "
    "assistant.<|im_end|>\n{% endif %}<|im_start|>{{ message['role'] }}\n{% if message['content'] is string "
    "%}{{ message['content'] }}<|im_end|>\n{% else %}{% for content in message['content'] %}{% if "
    "content['type'] == 'image' or 'image' in content or 'image_url' in content %}{% set image_count.value = "
    "image_count.value + 1 %}{% if add_vision_id %}Picture {{ image_count.value }}: {% endif %}"
    "<|vision_start|><|image_pad|><|vision_end|>{% elif content['type'] == 'video' or 'video' in content %}"
    "{% set video_count.value = video_count.value + 1 %}{% if add_vision_id %}Video {{ video_count.value }}: "
    "{% endif %}<|vision_start|><|video_pad|><|vision_end|>{% elif 'text' in content %}{{ content['text'] }}"
    "{% endif %}{% endfor %}<|im_end|>\n{% endif %}{% endfor %}{% if add_generation_prompt %}"
    "<|im_start|>assistant\n{% endif %}"
)


def toy_qwen_tokenizer() -> Any:
    """A byte-level tokenizer with Qwen's special tokens, of which none comes before a text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    specials = [
        *("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>"),
        *("<|image_pad|>", "<|video_pad|>"),
    ]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: index for index, token in enumerate(specials + alphabet)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(specials)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=specials,
    )


def toy_qwen_processor(**options: Any) -> Any:
    """The real processor over the real PIL image processor, which gets the `options`.

    Without its part for videos, which needs torchvision.
    """
    from transformers import Qwen2_5_VLProcessor
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    class WithoutVideos(Qwen2_5_VLProcessor):
        @classmethod
        def get_attributes(cls) -> list[str]:
            return ["image_processor", "tokenizer"]

    WithoutVideos.__name__ = Qwen2_5_VLProcessor.__name__  # what is written into a checkpoint
    images = Qwen2VLImageProcessorPil(**{"patch_size": PATCH, "size": SIZE} | options)
    return WithoutVideos(images, toy_qwen_tokenizer(), chat_template=QWEN_TEMPLATE)


def _config(vision: dict[str, Any], text: dict[str, Any], tied: bool) -> Any:
    from transformers import Qwen2_5_VLConfig

    tokenizer = toy_qwen_tokenizer()
    ids = {
        f"{name}_token_id": tokenizer.convert_tokens_to_ids(f"<|{token}|>")
        for name, token in (
            *(("image", "image_pad"), ("video", "video_pad")),
            *(("vision_start", "vision_start"), ("vision_end", "vision_end")),
        )
    }
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    shared = {"vocab_size": len(tokenizer), "bos_token_id": None, "eos_token_id": end, "pad_token_id": 0}
    return Qwen2_5_VLConfig(vision_config=vision, text_config=shared | text, tie_word_embeddings=tied, **ids)


def toy_qwen_model(
    seed: int = 0,
    *,
    vision: dict[str, Any] | None = None,
    text: dict[str, Any] | None = None,
    tied: bool = False,
) -> Any:
    """The HF model with random weights, float32, in eval mode: Qwen2.5-VL in small.

    `vision` and `text` overwrite settings of its towers; `tied`: the head is the embedding.
    """
    from transformers import Qwen2_5_VLForConditionalGeneration

    tower = {
        "depth": 4,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_heads": 4,
        "patch_size": PATCH,
        "window_size": 4 * PATCH,  # 2 x 2 tokens
        "fullatt_block_indexes": [1, 3],
        "out_hidden_size": 32,
    }
    language = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 2048,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]},
    }
    config = _config(tower | (vision or {}), language | (text or {}), tied)
    model = Qwen2_5_VLForConditionalGeneration(config).eval()
    _spread(model, seed)
    return model


def write_toy_qwen2_5_vl(path: Path, seed: int = 0, **options: Any) -> Path:
    """Write a tiny checkpoint to the directory `path`, and return it; for `options` see `toy_qwen_model`."""
    toy_qwen_model(seed, **options).save_pretrained(path)
    vision = options.get("vision") or {}
    sizes = {name: vision[name] for name in ("patch_size", "temporal_patch_size") if name in vision}
    toy_qwen_processor(**sizes).save_pretrained(path)
    return path


def as_on_the_hub(path: Path) -> Path:
    """Give a checkpoint the form of Qwen/Qwen2.5-VL-3B-Instruct, and return `path`.

    That was written by transformers 4: settings of the language model at the top, older names of weights, and
    a file for the image processor.
    """
    from safetensors.torch import load_file, save_file

    config = json.loads((path / "config.json").read_text())
    text, vision = config.pop("text_config"), config["vision_config"]
    rope = text.pop("rope_parameters")
    scaling = {"type": "mrope", "mrope_section": rope["mrope_section"]}
    del text["model_type"], text["layer_types"], vision["rope_parameters"]
    vision["model_type"] = config["model_type"]
    config = text | config | {"rope_theta": rope["rope_theta"], "rope_scaling": scaling}
    (path / "config.json").write_text(json.dumps(config))

    (path / "processor_config.json").unlink()
    images = toy_qwen_processor(patch_size=vision["patch_size"]).image_processor.to_dict()
    size = images.pop("size")
    images |= {"min_pixels": size["shortest_edge"], "max_pixels": size["longest_edge"]}
    images["processor_class"] = "Qwen2_5_VLProcessor"
    (path / "preprocessor_config.json").write_text(json.dumps(images))

    weights = {
        name.replace("model.visual.", "visual.").replace("model.language_model.", "model."): value
        for name, value in load_file(path / "model.safetensors").items()
    }
    save_file(weights, path / "model.safetensors", metadata={"format": "pt"})
    return path


def published_qwen2_5_vl(path: Path, depth: int = 32, text_layers: int = 1) -> Path:
    """Write a checkpoint with the vision side of Qwen2.5-VL-3B-Instruct and random weights; return `path`.

    Narrowed: the language model (`text_layers` instead of 36, a byte-level vocabulary, hidden size 512
    instead of 2048), and with it the output of the merger. A smaller `depth` keeps the period: every eighth
    block, and the last, looks at the whole image.
    """
    from transformers import Qwen2_5_VLForConditionalGeneration

    tower = {
        "depth": depth,
        "hidden_size": 1280,
        "intermediate_size": 3420,
        "num_heads": 16,
        "patch_size": 14,
        "window_size": 112,
        "fullatt_block_indexes": sorted({*range(7, depth, 8), depth - 1}),
        "out_hidden_size": 512,
    }
    language = {
        "hidden_size": 512,
        "intermediate_size": 1376,
        "num_hidden_layers": text_layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128000,
        "rms_norm_eps": 1e-6,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
    }
    model = Qwen2_5_VLForConditionalGeneration(_config(tower, language, tied=True)).eval()
    _spread(model, 0)
    model.save_pretrained(path)
    size = {"shortest_edge": 56 * 56, "longest_edge": 12845056}
    toy_qwen_processor(patch_size=14, size=size).save_pretrained(path)
    return path
