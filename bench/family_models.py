"""One model per family: its published vision side, a narrow decoder of few layers, and a processor made here.

What pruning meets is the vision side: tower, tiles, merging, positions. A decoder of the published width
would add gigabytes and test nothing more. `tiny` cuts everything down, for tests.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bench.checkpoints import RECIPE_FILE, write_model
from bench.configurations import CLIP_L_336, Configuration, hf_config
from bench.errors import BenchError
from bench.processors import (
    CHAT_TEMPLATE,
    CLIP_MEAN,
    CLIP_STD,
    build_processor,
    build_tokenizer,
    special_token_ids,
)

__all__ = ["FAMILY_MODELS", "Cut", "FamilyModel", "ensure_family_checkpoint"]

Size = tuple[int, int]  # (height, width)
POSITIONS = 32768
PINPOINTS = ((336, 672), (672, 336), (672, 672), (1008, 336), (336, 1008))
FULL_ATTENTION = (7, 15, 23, 31)  # blocks of Qwen2.5-VL's tower that look at the whole image

# SmolVLM's conversation.
SMOLVLM_TEMPLATE = (
    "<|im_start|>{% for message in messages %}{{ message['role'] | capitalize }}"
    "{{ ':' if message['content'][0]['type'] == 'image' else ': ' }}"
    "{% for part in message['content'] %}"
    "{{ '<image>' if part['type'] == 'image' else part['text'] }}"
    "{% endfor %}<end_of_utterance>\n"
    "{% endfor %}{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)
# Qwen2.5-VL's conversation: ChatML with a system line of its own.
QWEN_TEMPLATE = (
    "{% for message in messages %}"
    "{% if loop.first and message['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% for part in message['content'] %}"
    "{{ '<|vision_start|><|image_pad|><|vision_end|>' if part['type'] == 'image' else part['text'] }}"
    "{% endfor %}{{ '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

# InternVL3's conversation: ChatML without a system line, a line feed after each image.
INTERNVL_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% for part in message['content'] %}"
    "{{ '<IMG_CONTEXT>\n' if part['type'] == 'image' else part['text'] }}"
    "{% endfor %}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@dataclass(frozen=True)
class Cut:
    """What is left of the published model.

    Attributes:
        tiny: everything small, for tests.
        depth: layers of the tower; None: as published.
        width: of the language model, which the projector ends at, of a single layer then; None: 512.
    """

    tiny: bool = False
    depth: int | None = None
    width: int | None = None


@dataclass(frozen=True)
class FamilyModel:
    """One family.

    Attributes:
        name: of the file in `export/families/`.
        layout: of the file in `runtime/layouts/`.
        about: whose vision side it is.
        sizes: (height, width) of pictures whose tokens are counted; `tiny_sizes` with a tiny model. The first
            one is compared with PyTorch.
        build: (config, processor) of a cut; `config.architectures` names the class of the model.
    """

    name: str
    layout: str
    about: str
    sizes: tuple[Size, ...]
    tiny_sizes: tuple[Size, ...]
    build: Callable[[Cut], tuple[Any, Any]]


def ensure_family_checkpoint(model: FamilyModel, cut: Cut, directory: Path) -> Path:
    """The checkpoint of a family at `directory`: the one there if it is of the same shape, else a new one.

    Raises:
        BenchError: more layers than published, too few to be scored, or `directory` holds something else.
    """
    config, processor = model.build(cut)
    digest = hashlib.sha256(config.to_json_string(use_diff=False).encode()).hexdigest()
    record = json.dumps(asdict(cut) | {"family": model.name, "configuration": digest}, indent=2) + "\n"
    stamp = directory / RECIPE_FILE
    if stamp.is_file() and stamp.read_text() == record:
        return directory
    if directory.exists() and any(directory.iterdir()) and not stamp.is_file():
        raise BenchError(f"{directory} exists and is not a checkpoint of this script: give another --work")
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    write_model(config, processor, directory)
    stamp.write_text(record)  # last: a checkpoint without it is written again
    return directory


def _text(kind: str, cut: Cut, vocabulary: int, **options: Any) -> dict[str, Any]:
    """Settings of a decoder, its key/value heads half of its heads."""
    width, heads = (64, 4) if cut.tiny else (cut.width or 512, (cut.width or 512) // 128)
    ids = special_token_ids()
    return {
        "model_type": kind,
        "vocab_size": vocabulary,
        "hidden_size": width,
        "intermediate_size": 176 if cut.tiny else 1376,
        "num_hidden_layers": 1 if cut.width else 2,
        "num_attention_heads": heads,
        "num_key_value_heads": heads // 2,
        "max_position_embeddings": POSITIONS,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": False,
        **{f"{role}_token_id": ids[role] for role in ("pad", "bos", "eos")},
        **options,
    }


def _tower(published: dict[str, Any], cut: Cut, **tiny: Any) -> dict[str, Any]:
    """The published tower, or a tiny one of its kind, with `cut.depth` layers."""
    small = {"hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 4, "num_attention_heads": 4}
    tower = published | (small | tiny if cut.tiny else {})
    layers = tower["num_hidden_layers"] if cut.depth is None else cut.depth
    if not 1 <= layers <= tower["num_hidden_layers"]:
        raise BenchError(
            f"depth is {layers}, but the tower has {tower['num_hidden_layers']} layers: give 1 to that many"
        )
    return tower | {"num_hidden_layers": layers}


def _clip(cut: Cut) -> dict[str, Any]:
    return _tower(CLIP_L_336, cut, image_size=112, projection_dim=64)


def _llava(cut: Cut) -> tuple[Any, Any]:
    # Vocabulary of the tokenizer of every checkpoint here; the published one would only size the LM head.
    text = _text("llama", cut, len(build_tokenizer(POSITIONS)))
    ids = {role: text.pop(f"{role}_token_id") for role in ("pad", "bos", "eos")}
    found = Configuration("llava", _clip(cut), text, -2, "default", "llava-hf/llava-1.5-7b-hf")
    return hf_config(found, special_token_ids() | ids), build_processor(found)


def _llava_next(cut: Cut) -> tuple[Any, Any]:
    from transformers import AutoConfig, LlavaNextConfig, LlavaNextProcessor
    from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil

    tokenizer = build_tokenizer(POSITIONS)
    tower, text = _clip(cut), _text("llama", cut, len(tokenizer))
    side = tower["image_size"]
    pinpoints = [[height * side // 336, width * side // 336] for height, width in PINPOINTS]
    config = LlavaNextConfig(
        vision_config=AutoConfig.for_model(**tower),
        text_config=AutoConfig.for_model(**text),
        image_token_index=special_token_ids()["image"],
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        image_grid_pinpoints=pinpoints,
        tie_word_embeddings=False,
        architectures=["LlavaNextForConditionalGeneration"],
    )
    images = LlavaNextImageProcessorPil(
        size={"shortest_edge": side},
        crop_size={"height": side, "width": side},
        image_grid_pinpoints=pinpoints,
        image_mean=CLIP_MEAN,
        image_std=CLIP_STD,
    )
    processor = LlavaNextProcessor(
        image_processor=images,
        tokenizer=tokenizer,
        patch_size=tower["patch_size"],
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE,
    )
    return config, processor


SIGLIP_B_512 = {
    "model_type": "idefics3_vision",
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "image_size": 512,
    "patch_size": 16,
}


def _smolvlm(cut: Cut) -> tuple[Any, Any]:
    from transformers import AutoConfig, Idefics3Config, Idefics3Processor
    from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil

    places = tuple(f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7))
    more = ("<|im_start|>", "<fake_token_around_image>", "<end_of_utterance>", "<global-img>", *places)
    tokenizer = build_tokenizer(POSITIONS, more=more)
    tower = _tower(SIGLIP_B_512, cut, image_size=64, patch_size=8)
    scale = 2 if cut.tiny else 4
    side = tower["image_size"]
    config = Idefics3Config(
        vision_config=tower,
        text_config=AutoConfig.for_model(**_text("llama", cut, len(tokenizer))),
        image_token_id=special_token_ids()["image"],
        scale_factor=scale,
        tie_word_embeddings=False,
        architectures=["Idefics3ForConditionalGeneration"],
    )
    images = Idefics3ImageProcessorPil(
        size={"longest_edge": 4 * side},
        max_image_size={"longest_edge": side},
        image_mean=[0.5, 0.5, 0.5],
        image_std=[0.5, 0.5, 0.5],
    )
    processor = Idefics3Processor(
        image_processor=images,
        tokenizer=tokenizer,
        image_seq_len=(side // tower["patch_size"] // scale) ** 2,
        chat_template=SMOLVLM_TEMPLATE,
    )
    return config, processor


QWEN2_5_VL_3B = {
    "num_hidden_layers": 32,
    "hidden_size": 1280,
    "intermediate_size": 3420,
    "num_attention_heads": 16,
    "patch_size": 14,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
    "window_size": 112,
}


def _qwen2_5_vl(cut: Cut) -> tuple[Any, Any]:
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLProcessor
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    more = ("<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|video_pad|>")
    tokenizer = build_tokenizer(POSITIONS, "<|image_pad|>", more)
    tower = _tower(QWEN2_5_VL_3B, cut)
    depth, heads = tower.pop("num_hidden_layers"), tower.pop("num_attention_heads")
    full = [1, 3] if cut.tiny else FULL_ATTENTION
    if depth <= min(full):
        raise BenchError(
            f"depth is {depth}, but the first block that looks at the whole image is number {min(full)}: "
            f"give {min(full) + 1} or more"
        )
    sections = [2, 3, 3] if cut.tiny else [16, 24, 24]
    text = _text("", cut, len(tokenizer), rope_parameters={"rope_type": "default", "rope_theta": 1e6})
    text["rope_parameters"]["mrope_section"] = sections
    del text["model_type"]
    config = Qwen2_5_VLConfig(
        vision_config=tower
        | {"depth": depth, "num_heads": heads, "out_hidden_size": text["hidden_size"]}
        | {"fullatt_block_indexes": [block for block in full if block < depth]},
        text_config=text,
        image_token_id=special_token_ids()["image"],
        vision_start_token_id=tokenizer.convert_tokens_to_ids("<|vision_start|>"),
        vision_end_token_id=tokenizer.convert_tokens_to_ids("<|vision_end|>"),
        video_token_id=tokenizer.convert_tokens_to_ids("<|video_pad|>"),
        tie_word_embeddings=False,
        architectures=["Qwen2_5_VLForConditionalGeneration"],
    )
    images = Qwen2VLImageProcessorPil(size={"shortest_edge": 56 * 56, "longest_edge": 28 * 28 * 16384})

    class WithoutVideos(Qwen2_5_VLProcessor):  # which would need torchvision
        @classmethod
        def get_attributes(cls) -> list[str]:
            return ["image_processor", "tokenizer"]

    WithoutVideos.__name__ = Qwen2_5_VLProcessor.__name__  # what is written into the checkpoint
    return config, WithoutVideos(images, tokenizer, chat_template=QWEN_TEMPLATE)


INTERNVIT_300M_448 = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "attention_bias": True,
    "image_size": [448, 448],
    "patch_size": [14, 14],
}
IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}


def _internvl(cut: Cut) -> tuple[Any, Any]:
    from transformers import AutoConfig, InternVLConfig, InternVLProcessor, PreTrainedTokenizerFast
    from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil

    named = {
        "start_image_token": "<img>",
        "end_image_token": "</img>",
        "context_image_token": "<IMG_CONTEXT>",
        "video_token": "<video>",
    }
    more = ("<|im_start|>", "<|im_end|>", "<img>", "</img>", "<video>")
    plain = build_tokenizer(POSITIONS, named["context_image_token"], more)
    tokenizer = PreTrainedTokenizerFast(  # the same, with the names that the processor asks for
        tokenizer_object=plain.backend_tokenizer,
        bos_token=plain.bos_token,
        eos_token=plain.eos_token,
        pad_token=plain.pad_token,
        extra_special_tokens=named,
        model_max_length=POSITIONS,
        clean_up_tokenization_spaces=False,
    )
    tower = _tower(INTERNVIT_300M_448, cut, image_size=[32, 32], patch_size=[4, 4])
    side, patch = tower["image_size"][0], tower["patch_size"][0]
    tokens = (side // patch // 2) ** 2
    rope = {"rope_type": "default", "rope_theta": 1e6}
    config = InternVLConfig(
        vision_config=tower,
        text_config=AutoConfig.for_model(**_text("qwen2", cut, len(tokenizer), rope_parameters=rope)),
        image_token_id=special_token_ids()["image"],
        image_seq_length=tokens,
        downsample_ratio=0.5,
        tie_word_embeddings=False,
        architectures=["InternVLForConditionalGeneration"],
    )
    images = GotOcr2ImageProcessorPil(
        size={"height": side, "width": side}, min_patches=1, max_patches=12, **IMAGENET
    )

    class WithoutVideos(InternVLProcessor):  # which would need torchvision
        @classmethod
        def get_attributes(cls) -> list[str]:
            return ["image_processor", "tokenizer"]

    WithoutVideos.__name__ = InternVLProcessor.__name__  # what is written into the checkpoint
    return config, WithoutVideos(images, tokenizer, image_seq_length=tokens, chat_template=INTERNVL_TEMPLATE)


FAMILY_MODELS = {
    model.name: model
    for model in (
        FamilyModel(
            "llava",
            "single",
            "LLaVA-1.5: CLIP ViT-L/14-336, 24 layers",
            ((480, 640), (336, 336)),
            ((90, 130),),
            _llava,
        ),
        FamilyModel(
            "llava_next",
            "anyres",
            "LLaVA-1.6: CLIP ViT-L/14-336, 24 layers, five canvases",
            ((480, 640), (672, 672), (1000, 300)),
            ((150, 210), (224, 224)),
            _llava_next,
        ),
        FamilyModel(
            "smolvlm",
            "split",
            "SmolVLM-256M (published as Idefics3): SigLIP-B/16-512, 12 layers, 4 x 4 patches in a token",
            ((480, 640), (512, 512), (1536, 2048)),
            ((60, 110), (64, 64)),
            _smolvlm,
        ),
        FamilyModel(
            "qwen2_5_vl",
            "native",
            "Qwen2.5-VL-3B: 32 layers, 4 of them over the whole image, 2 x 2 patches in a token",
            ((480, 640), (1288, 1288), (1080, 1920)),
            ((120, 200), (56, 84)),
            _qwen2_5_vl,
        ),
        FamilyModel(
            "internvl",
            "aspect",
            "InternVL3-1B: InternViT-300M/14-448, 24 layers, up to 12 tiles, 2 x 2 patches in a token",
            # First 2 tiles and the whole: the reference keeps every layer's attention, 20 GiB for 640 x 480.
            ((448, 896), (480, 640), (1080, 1920)),
            ((60, 110), (32, 32)),
            _internvl,
        ),
    )
}
