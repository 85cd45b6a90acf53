"""Tokenizer and image processor of a random-weight checkpoint: the real classes, without a download."""

from __future__ import annotations

from typing import Any

from bench.configurations import Configuration

__all__ = ["CHAT_TEMPLATE", "PROMPT", "build_processor", "build_tokenizer", "special_token_ids"]

PROMPT = "Describe the picture in one sentence, and name every object that you can see."

SPECIAL_TOKENS = ("<pad>", "<s>", "</s>", "<image>")
VOCABULARY = 384
CLIP_MEAN = [0.48145466, 0.4578275, 0.40821073]
CLIP_STD = [0.26862954, 0.26130258, 0.27577711]

# LLaVA-1.5's conversation: the images of a turn first, then its text.
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message['role'].upper() + ': ' }}"
    "{% for part in message['content'] | selectattr('type', 'equalto', 'image') %}"
    "{{ '<image>\n' }}{% endfor %}"
    "{% for part in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{{ part['text'] + ' ' }}{% endfor %}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)


def special_token_ids() -> dict[str, int]:
    """Ids of the special tokens by role, the same in every checkpoint."""
    return {
        role: SPECIAL_TOKENS.index(token)
        for role, token in (("pad", "<pad>"), ("bos", "<s>"), ("eos", "</s>"), ("image", "<image>"))
    }


def build_processor(found: Configuration) -> Any:
    """A `LlavaProcessor` with the published resize, crop and normalisation of the tower."""
    from transformers import LlavaProcessor
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
    from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

    side = found.vision["image_size"]
    square = {"height": side, "width": side}
    if found.has_cls:
        image_processor = CLIPImageProcessorPil(
            size={"shortest_edge": side}, crop_size=square, image_mean=CLIP_MEAN, image_std=CLIP_STD
        )
    else:
        image_processor = SiglipImageProcessorPil(size=square)
    return LlavaProcessor(
        image_processor=image_processor,
        tokenizer=build_tokenizer(found.text["max_position_embeddings"]),
        patch_size=found.vision["patch_size"],
        vision_feature_select_strategy=found.select,
        num_additional_image_tokens=int(found.has_cls),
        chat_template=CHAT_TEMPLATE,
    )


def build_tokenizer(max_length: int, image: str = "<image>", more: tuple[str, ...] = ()) -> Any:
    """Byte-level BPE trained on one sentence: every text has tokens, and the ids are always the same.

    Args:
        max_length: of a prompt, in tokens.
        image: how the image token is written; its id is that of `special_token_ids`.
        more: further special tokens.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    specials = [*(token if token != "<image>" else image for token in SPECIAL_TOKENS), *more]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY + len(more),
        special_tokens=specials,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator([f"USER: \n{PROMPT} ASSISTANT: "] * 2, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", SPECIAL_TOKENS.index("<s>"))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        extra_special_tokens={"image_token": image},
        model_max_length=max_length,
        clean_up_tokenization_spaces=False,
    )
