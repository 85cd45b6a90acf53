"""The checkpoint's parts: tokenizer, processor, configuration, and how they are written to a directory.

Architecture: CLIP tower with a CLS token (112 px, patch 8: 196 visual tokens), two-layer MLP projector, Llama
decoder. About 1.7 M parameters, 6.9 MB in float32.
"""

from __future__ import annotations

import math
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    AutoProcessor,
    CLIPVisionConfig,
    GenerationConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from demo.questions import all_prompts
from demo.scenes import IMAGE_SIZE, PATCH_SIZE

__all__ = [
    "CHAT_TEMPLATE",
    "CHECKPOINT",
    "IMAGE_MEAN",
    "IMAGE_STD",
    "build_model",
    "build_processor",
    "load_checkpoint",
    "save_checkpoint",
]

CHECKPOINT = Path(__file__).resolve().parent / "checkpoint"

IMAGE_MEAN = (0.48145466, 0.4578275, 0.40821073)  # CLIP's, RGB in 0-1
IMAGE_STD = (0.26862954, 0.26130258, 0.27577711)

TOWER_WIDTH = 128
TOWER_LAYERS = 5  # the projector reads layer -2, so the fifth serves only the CLS objective of pretraining
DECODER_WIDTH = 128
DECODER_LAYERS = 3
HEADS = 4
VOCABULARY = 384
POSITION_SCALE = 0.35  # initial amplitude, near that of the patch embeddings
QUERY_GAIN = 0.8
SPECIAL_TOKENS = ("<pad>", "<s>", "</s>", "<unk>", "<image>")  # ids 0-4

# LLaVA-1.5's conversation: images of a turn first, then its text. Content is a string or a list of parts.
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'user' %}{{ 'USER: ' }}"
    "{% elif message['role'] == 'assistant' %}{{ 'ASSISTANT: ' }}{% endif %}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] if part['type'] == 'image' %}{{ '<image>\n' }}{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] }}{% endfor %}"
    "{% endif %}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% else %}{{ ' ' }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)


def build_processor() -> LlavaProcessor:
    """Image processor and tokenizer as one `LlavaProcessor`."""
    image_processor = CLIPImageProcessorPil(
        size={"shortest_edge": IMAGE_SIZE},
        crop_size={"height": IMAGE_SIZE, "width": IMAGE_SIZE},
        image_mean=list(IMAGE_MEAN),
        image_std=list(IMAGE_STD),
    )
    return LlavaProcessor(
        image_processor=image_processor,
        tokenizer=_build_tokenizer(),
        patch_size=PATCH_SIZE,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE,
    )


def build_model(seed: int) -> LlavaForConditionalGeneration:
    """A freshly initialised model; the same seed gives the same weights."""
    tower = CLIPVisionConfig(
        hidden_size=TOWER_WIDTH,
        intermediate_size=4 * TOWER_WIDTH,
        projection_dim=TOWER_WIDTH,
        num_hidden_layers=TOWER_LAYERS,
        num_attention_heads=HEADS,
        image_size=IMAGE_SIZE,
        patch_size=PATCH_SIZE,
    )
    decoder = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=DECODER_WIDTH,
        intermediate_size=344,
        num_hidden_layers=DECODER_LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        max_position_embeddings=2048,
        pad_token_id=SPECIAL_TOKENS.index("<pad>"),
        bos_token_id=SPECIAL_TOKENS.index("<s>"),
        eos_token_id=SPECIAL_TOKENS.index("</s>"),
        tie_word_embeddings=True,
    )
    config = LlavaConfig(
        vision_config=tower,
        text_config=decoder,
        image_token_id=SPECIAL_TOKENS.index("<image>"),
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        image_seq_length=(IMAGE_SIZE // PATCH_SIZE) ** 2,
        tie_word_embeddings=True,
    )
    torch.manual_seed(seed)
    model = LlavaForConditionalGeneration(config)
    _prepare_tower(model)
    _prepare_decoder(model)
    model.generation_config = GenerationConfig(
        bos_token_id=decoder.bos_token_id,
        eos_token_id=decoder.eos_token_id,
        pad_token_id=decoder.pad_token_id,
        max_new_tokens=32,
        do_sample=False,
    )
    return model


@torch.no_grad()
def _prepare_tower(model: LlavaForConditionalGeneration) -> None:
    """Starts the tower near local attention, which a small one otherwise spends most of its training to find.

    Position embeddings start as 2-D sines and cosines, and keys start equal to queries, so that a patch first
    looks at those like it and near it (Trockman and Kolter 2023, "Mimetic initialization of self-attention
    layers"). Both are trained from there like every other weight.
    """
    tower = model.model.vision_tower
    parameters = dict(tower.named_parameters())
    (positions,) = (value for name, value in parameters.items() if name.endswith("position_embedding.weight"))
    side, quarter = IMAGE_SIZE // PATCH_SIZE, TOWER_WIDTH // 4
    angles = torch.arange(side)[:, None] * torch.logspace(math.log10(1.5), -1, quarter)  # [side, quarter] rad
    axis = torch.cat([angles.sin(), angles.cos()], dim=1)
    grid = torch.cat(
        [axis[:, None].expand(side, side, -1), axis[None].expand(side, side, -1)], dim=2
    )  # [row, column, width]
    positions[1:] = POSITION_SCALE * grid.reshape(side * side, TOWER_WIDTH)
    for name, query in parameters.items():
        if name.endswith("q_proj.weight"):
            query.normal_(std=QUERY_GAIN * TOWER_WIDTH**-0.5)
            parameters[name.replace("q_proj", "k_proj")].copy_(query)


@torch.no_grad()
def _prepare_decoder(model: LlavaForConditionalGeneration) -> None:
    """Starts projector and decoder at scales that fit their width.

    The library's 0.02 is meant for widths of thousands; at 128 it leaves attention logits near 0.05, a saddle
    from which matching one token against another ("is there a 7?") hardly starts.
    """
    scales = {"q_proj": 0.08, "k_proj": 0.08, "v_proj": 0.06, "gate_proj": 0.06, "up_proj": 0.06}
    for name, weight in model.model.language_model.named_parameters():
        scale = scales.get(name.split(".")[-2])
        if scale is not None:
            weight.normal_(std=scale)
    model.get_input_embeddings().weight.normal_(std=0.06)
    model.model.multi_modal_projector.linear_1.weight.normal_(std=0.04)
    model.model.multi_modal_projector.linear_2.weight.normal_(std=0.03)


def save_checkpoint(model: LlavaForConditionalGeneration, directory: Path) -> None:
    """Writes model, tokenizer and processor in the layout of any Hugging Face checkpoint."""
    model.save_pretrained(directory)
    build_processor().save_pretrained(directory)


def load_checkpoint(directory: Path = CHECKPOINT) -> tuple[LlavaForConditionalGeneration, LlavaProcessor]:
    """Model in evaluation mode and processor, read as any checkpoint is."""
    model = LlavaForConditionalGeneration.from_pretrained(directory)
    return model.eval(), AutoProcessor.from_pretrained(directory)


def _build_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE: all 256 bytes are in the vocabulary, so every text has tokens and decodes to itself."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    # A prompt follows an image (a new line) in the first turn and "USER:" in the later ones.
    turns = [f"{before}{prompt} ASSISTANT:" for prompt in all_prompts() for before in ("USER: \n", "USER: ")]
    corpus = [f"{turn} {answer}" for turn in turns for answer in ("yes", "no", *range(10))]
    tokenizer.train_from_iterator(corpus, trainer)
    bos = SPECIAL_TOKENS.index("<s>")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", bos)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        extra_special_tokens={"image_token": "<image>"},
        model_max_length=2048,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )
