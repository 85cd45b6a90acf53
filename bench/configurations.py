"""Published model configurations, as data: what `bench.checkpoints` fills with random weights.

Speed, memory and exactness do not depend on the values of weights, so the shapes are all that is kept of a
model. The vocabulary of the language model is the published one (it sizes the LM head); the tokenizer is a
small one of our own.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from bench.errors import BenchError

__all__ = ["CONFIGURATIONS", "Configuration", "configuration", "hf_config"]

CLIP_L_336 = {
    "model_type": "clip_vision_model",
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 336,
    "patch_size": 14,
    "projection_dim": 768,
}
TINY_TOWER = CLIP_L_336 | {
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "image_size": 112,
    "projection_dim": 64,
}
# 26 of the 27 layers of SigLIP so400m: LLaVA-OneVision drops the last one and feeds the output of layer 26
# on.
SIGLIP_SO400M_384 = {
    "model_type": "siglip_vision_model",
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_hidden_layers": 26,
    "num_attention_heads": 16,
    "image_size": 384,
    "patch_size": 14,
    "vision_use_head": False,
}
VICUNA_7B = {
    "model_type": "llama",
    "vocab_size": 32064,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
}
QWEN2_0_5B = {
    "model_type": "qwen2",
    "vocab_size": 152000,
    "hidden_size": 896,
    "intermediate_size": 4864,
    "num_hidden_layers": 24,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1e6,
    "tie_word_embeddings": True,
}
# HuggingFaceTB/SmolVLM-256M-Instruct
SMOLVLM_256M = {
    "model_type": "llama",
    "vocab_size": 49280,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-5,
    "rope_theta": 1e5,
    "tie_word_embeddings": False,
}
# The smallest decoder that still has everything: for measurements of the vision tower alone, and for tests.
TINY_DECODER = {
    "model_type": "llama",
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 176,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
}


@dataclass(frozen=True)
class Configuration:
    """One model: a tower, the layer that feeds the projector, and a decoder.

    `select` is Hugging Face's `vision_feature_select_strategy`: `default` drops the CLS row, `full` keeps
    every row.
    """

    name: str
    vision: dict[str, Any]
    text: dict[str, Any]
    feature_layer: int
    select: str
    source: str

    @property
    def has_cls(self) -> bool:
        """Whether the tower has a CLS row before its patches."""
        return bool(self.vision["model_type"] == "clip_vision_model")


CONFIGURATIONS: dict[str, Configuration] = {
    item.name: item
    for item in (
        Configuration("llava-1.5-7b", CLIP_L_336, VICUNA_7B, -2, "default", "llava-hf/llava-1.5-7b-hf"),
        Configuration(
            "llava-onevision-0.5b",
            SIGLIP_SO400M_384,
            QWEN2_0_5B,
            -1,
            "full",
            "llava-hf/llava-onevision-qwen2-0.5b-ov-hf, one tile per image, as LlavaForConditionalGeneration",
        ),
        Configuration(
            "clip-l-336", CLIP_L_336, TINY_DECODER, -2, "default", "the tower of LLaVA-1.5, tiny decoder"
        ),
        Configuration(
            "clip-l-336-qwen2-0.5b",
            CLIP_L_336,
            QWEN2_0_5B,
            -2,
            "default",
            "the tower of LLaVA-1.5 before a decoder of half a billion weights",
        ),
        Configuration(
            "smolvlm-256m-decoder",
            TINY_TOWER,
            SMOLVLM_256M,
            -2,
            "default",
            "the decoder of SmolVLM-256M behind a tiny tower: for measurements of the decoder alone",
        ),
        Configuration(
            "tiny", TINY_TOWER, TINY_DECODER, -2, "default", "LLaVA-1.5 in small, 64 visual tokens, for tests"
        ),
    )
}


def configuration(name: str, decoder_layers: int | None = None) -> Configuration:
    """The configuration called `name`, with fewer decoder layers when asked.

    Raises:
        BenchError: an unknown name, or more layers than published, or fewer than one.
    """
    if name not in CONFIGURATIONS:
        raise BenchError(f"no configuration is called {name!r}: choose one of {', '.join(CONFIGURATIONS)}")
    found = CONFIGURATIONS[name]
    if decoder_layers is None:
        return found
    published = found.text["num_hidden_layers"]
    if not 1 <= decoder_layers <= published:
        raise BenchError(
            f"{name} has {published} decoder layers, not {decoder_layers}: give 1 to {published}"
        )
    return replace(found, text=found.text | {"num_hidden_layers": decoder_layers})


def hf_config(found: Configuration, special_tokens: dict[str, int]) -> Any:
    """`LlavaConfig` of a configuration; `special_tokens` holds the ids of `image`, `pad`, `bos` and `eos`."""
    from transformers import AutoConfig, LlavaConfig

    vision, text = dict(found.vision), dict(found.text)
    tower = AutoConfig.for_model(vision.pop("model_type"), **vision)
    decoder = AutoConfig.for_model(
        text.pop("model_type"),
        **text,
        **{f"{name}_token_id": special_tokens[name] for name in ("pad", "bos", "eos")},
    )
    config = LlavaConfig(
        vision_config=tower,
        text_config=decoder,
        image_token_index=special_tokens["image"],
        image_seq_length=(tower.image_size // tower.patch_size) ** 2,
        vision_feature_layer=found.feature_layer,
        vision_feature_select_strategy=found.select,
        tie_word_embeddings=found.text["tie_word_embeddings"],
    )
    config.architectures = ["LlavaForConditionalGeneration"]
    return config
