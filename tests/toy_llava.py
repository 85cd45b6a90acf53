"""Tiny random LLaVA checkpoints, written the way `save_pretrained` writes real ones (config, weights,
tokenizer, processor).

Every combination that a user's checkpoint may have is a `ToySpec`: CLIP or SigLIP tower, any language model,
an int or a list of feature layers, both select strategies, tied heads, sharded weights, with and without a
chat template.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

__all__ = [
    "CHATML_TEMPLATE",
    "COMBINATIONS",
    "LLAVA_TEMPLATE",
    "ToySpec",
    "toy_model",
    "toy_processor",
    "write_toy_llava",
]

IMAGE_SIZE = 32
PATCH = 8  # a 4 x 4 grid of 16 patches

# The template of llava-hf/llava-1.5-7b-hf: images first, then the text, one space after every turn.
LLAVA_TEMPLATE = (
    "{% for message in messages %}{{ message['role'].upper() + ': ' }}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>\n' }}{% "
    "endfor %}{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}{{ "
    "content['text'] + ' ' }}{% endfor %}{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% "
    "endif %}"
)
# The template of llava-hf/llava-onevision-qwen2-*: ChatML, whose turns end with a newline.
CHATML_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + ' ' }}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>' }}{% "
    "endfor %}{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}{{ '\n' + "
    "content['text'] }}{% endfor %}{{ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ "
    "'<|im_start|>assistant\n' }}{% endif %}"
)


@dataclass(frozen=True)
class ToySpec:
    """What one toy checkpoint looks like; the defaults are LLaVA-1.5 in small."""

    tower: str = "clip"
    text: str = "llama"
    feature_layer: int | list[int] = -2
    select: str = "default"
    template: str | None = LLAVA_TEMPLATE
    bos: bool = True
    tied: bool = False
    shard_bytes: int | None = None
    tower_layers: int = 3
    text_layers: int = 1
    text_options: dict[str, Any] = field(default_factory=dict)


COMBINATIONS: dict[str, ToySpec] = {
    "clip-llama": ToySpec(text_layers=2),
    "siglip-qwen2": ToySpec(
        tower="siglip", text="qwen2", feature_layer=-1, select="full", template=CHATML_TEMPLATE, bos=False
    ),
    "clip-mistral-list": ToySpec(
        text="mistral", feature_layer=[-3, -2], text_options={"sliding_window": None}
    ),
    "clip-full-gemma-tied": ToySpec(text="gemma", select="full", tied=True),
    "clip-llama-sharded": ToySpec(shard_bytes=60_000),
    "siglip-default": ToySpec(tower="siglip", feature_layer=-2, select="default"),
}


def toy_tokenizer(spec: ToySpec) -> Any:
    """A byte-level tokenizer; `bos` puts `<s>` before every text, as Llama does."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    specials = ["<pad>", "<s>", "</s>", "<image>", "<|im_start|>", "<|im_end|>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: index for index, token in enumerate(specials + alphabet)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    if spec.bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", vocab["<s>"])]
        )
    tokenizer.add_special_tokens(specials)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>" if spec.bos else None,
        eos_token="</s>" if spec.bos else "<|im_end|>",
        pad_token="<pad>",
        additional_special_tokens=["<image>"],
        extra_special_tokens={"image_token": "<image>"},
    )


def toy_processor(spec: ToySpec) -> Any:
    """The real processor class over a real PIL image processor, sized for 32 x 32 pixels."""
    from transformers import LlavaProcessor
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
    from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

    square = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    if spec.tower == "clip":
        images = CLIPImageProcessorPil(size={"shortest_edge": IMAGE_SIZE}, crop_size=square)
    else:
        images = SiglipImageProcessorPil(size=square)
    return LlavaProcessor(
        image_processor=images,
        tokenizer=toy_tokenizer(spec),
        patch_size=PATCH,
        vision_feature_select_strategy=spec.select,
        num_additional_image_tokens=1 if spec.tower == "clip" else 0,
        chat_template=spec.template,
    )


def _configs(spec: ToySpec, vocab: int) -> tuple[Any, Any]:
    from transformers import AutoConfig

    tower = AutoConfig.for_model(
        f"{spec.tower}_vision_model",
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=spec.tower_layers,
        num_attention_heads=4,
        image_size=IMAGE_SIZE,
        patch_size=PATCH,
    )
    options = {
        "vocab_size": vocab,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": spec.text_layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 512,
        "bos_token_id": 1 if spec.bos else None,
        "eos_token_id": 2 if spec.bos else 5,
        "pad_token_id": 0,
        "tie_word_embeddings": spec.tied,
    } | spec.text_options
    return tower, AutoConfig.for_model(spec.text, **options)


def _spread(model: Any, seed: int) -> None:
    """Weights large enough for scores and logits to differ between tokens (the default 0.02 gives ties)."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    seen: set[int] = set()
    with torch.no_grad():
        for name, value in model.named_parameters():
            if id(value) in seen:
                continue
            seen.add(id(value))
            noise = torch.randn(value.shape, generator=generator)
            if value.dim() == 1:
                base = value if "norm" in name else torch.zeros_like(value)
                value.copy_(base + 0.1 * noise)
            elif "embed" in name:
                value.copy_(noise)
            else:
                value.copy_(noise * 1.5 / value[0].numel() ** 0.5)


def toy_model(spec: ToySpec, seed: int = 0) -> Any:
    """The HF model of `spec` with random weights, float32, in eval mode."""
    from transformers import LlavaConfig, LlavaForConditionalGeneration

    tokenizer = toy_tokenizer(spec)
    tower, text = _configs(spec, len(tokenizer))
    config = LlavaConfig(
        vision_config=tower,
        text_config=text,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        vision_feature_layer=spec.feature_layer,
        vision_feature_select_strategy=spec.select,
        tie_word_embeddings=spec.tied,
    )
    model = LlavaForConditionalGeneration(config).eval()
    _spread(model, seed)
    return model


def write_toy_llava(path: Path, spec: ToySpec | None = None, seed: int = 0) -> Path:
    """Write the checkpoint of `spec` (default: CLIP + Llama) to the directory `path`, and return it."""
    spec = spec or ToySpec()
    model = toy_model(spec, seed)
    model.save_pretrained(path, max_shard_size=spec.shard_bytes or "1GB")
    toy_processor(spec).save_pretrained(path)
    return path
