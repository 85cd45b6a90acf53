"""SmolVLM and Idefics3 checkpoints with random weights, written the way `save_pretrained` writes real ones:
tiny ones, and one with the published vision side of SmolVLM-256M-Instruct.
"""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from tests.toy_llava import _spread

__all__ = [
    "published_smolvlm",
    "smolvlm_processor",
    "toy_idefics3_processor",
    "toy_split_model",
    "toy_split_tokenizer",
    "write_toy_idefics3",
    "write_toy_smolvlm",
]

TILE = 32
PATCH = 4  # 8 x 8 patches per tile
LONGEST_EDGE = 96
# Rows and columns that have a token of their own; the real vocabularies go up to 6.
_NAMED_TILES = 6

_SPECIALS = (
    "<|im_start|>",
    "<end_of_utterance>",
    "<pad>",
    "<fake_token_around_image>",
    "<image>",
    "<global-img>",
    *(f"<row_{r + 1}_col_{c + 1}>" for r in range(_NAMED_TILES) for c in range(_NAMED_TILES)),
)


def toy_split_tokenizer() -> Any:
    """A byte-level tokenizer with SmolVLM's special tokens. Like its own, it puts nothing before a text and
    reads two line feeds as one token."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    line = "Ċ"  # how byte-level vocabularies write a line feed
    vocab = {token: index for index, token in enumerate((*_SPECIALS, *alphabet, line * 2))}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[(line, line)]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(_SPECIALS))
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|im_start|>",
        eos_token="<end_of_utterance>",
        pad_token="<pad>",
        additional_special_tokens=["<fake_token_around_image>", "<image>", "<end_of_utterance>"],
    )


def _template() -> str:
    """SmolVLM's own chat template, without its branch for videos."""
    from transformers.models.smolvlm.processing_smolvlm import DEFAULT_CHAT_TEMPLATE

    video = "{% elif line['type'] == 'video' %}{{ '<video>' }}"
    assert video in DEFAULT_CHAT_TEMPLATE
    return DEFAULT_CHAT_TEMPLATE.replace(video, "")


def toy_idefics3_processor(*, scale_factor: int = 2, patch: int = PATCH, **options: Any) -> Any:
    """The real Idefics3 processor; `options` go to the PIL image processor."""
    from transformers import Idefics3Processor
    from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil

    images = Idefics3ImageProcessorPil(**_image_options(options))
    tokens = _tokens(images.max_image_size["longest_edge"], patch, scale_factor)
    return Idefics3Processor(images, toy_split_tokenizer(), tokens, chat_template=_template())


def smolvlm_processor(*, scale_factor: int = 2, patch: int = PATCH, **options: Any) -> Any:
    """The real SmolVLM processor without its part for videos, which needs packages that pictures do not."""
    from transformers.models.smolvlm import processing_smolvlm
    from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil

    class Pictures(processing_smolvlm.SmolVLMProcessor):  # type: ignore[misc, unused-ignore]
        def check_argument_for_proper_class(self, argument_name: str, argument: Any) -> Any:
            if argument_name == "video_processor":
                return None
            return super().check_argument_for_proper_class(argument_name, argument)

    images = SmolVLMImageProcessorPil(**_image_options(options))
    tokens = _tokens(images.max_image_size["longest_edge"], patch, scale_factor)
    videos = SimpleNamespace(num_frames=1, fps=1, model_input_names=[])
    spelled_numbers = processing_smolvlm.num2words
    processing_smolvlm.num2words = str  # only asked for when it is made
    try:
        return Pictures(images, toy_split_tokenizer(), videos, tokens, chat_template=_template())
    finally:
        processing_smolvlm.num2words = spelled_numbers


def _image_options(options: dict[str, Any]) -> dict[str, Any]:
    return {"size": {"longest_edge": LONGEST_EDGE}, "max_image_size": {"longest_edge": TILE}} | options


def _tokens(tile: int, patch: int, scale_factor: int) -> int:
    return (tile // patch // scale_factor) ** 2


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
            "bos_token_id": _SPECIALS.index("<|im_start|>"),
            "eos_token_id": _SPECIALS.index("<end_of_utterance>"),
            "pad_token_id": _SPECIALS.index("<pad>"),
        }
        | options
    )


def toy_split_model(kind: str = "smolvlm", seed: int = 0, *, scale_factor: int = 2, layers: int = 3) -> Any:
    """The HF model (`smolvlm` or `idefics3`) with random weights, float32, in eval mode."""
    vision = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "image_size": TILE,
        "patch_size": PATCH,
    }
    vocab = len(toy_split_tokenizer())
    return _model(kind, vision, _text(vocab, 2), scale_factor=scale_factor, seed=seed)


def _model(kind: str, vision: dict[str, Any], text: Any, *, scale_factor: int, seed: int) -> Any:
    import transformers

    name = {"smolvlm": "SmolVLM", "idefics3": "Idefics3"}[kind]
    config = getattr(transformers, f"{name}Config")(
        vision_config=vision,
        text_config=text,
        scale_factor=scale_factor,
        image_token_id=_SPECIALS.index("<image>"),
        pad_token_id=_SPECIALS.index("<pad>"),
    )
    model = getattr(transformers, f"{name}ForConditionalGeneration")(config).eval()
    _spread(model, seed)
    return model


def write_toy_smolvlm(path: Path, seed: int = 0, *, scale_factor: int = 2, **options: Any) -> Path:
    """Write a tiny SmolVLM checkpoint to the directory `path`, and return it; `options` go to the image
    processor."""
    toy_split_model("smolvlm", seed, scale_factor=scale_factor).save_pretrained(path)
    _save_as_smolvlm(toy_idefics3_processor(scale_factor=scale_factor, **options), path)
    return path


def write_toy_idefics3(path: Path, seed: int = 0, *, scale_factor: int = 2, **options: Any) -> Path:
    """The same as an Idefics3 checkpoint."""
    toy_split_model("idefics3", seed, scale_factor=scale_factor).save_pretrained(path)
    toy_idefics3_processor(scale_factor=scale_factor, **options).save_pretrained(path)
    return path


def _save_as_smolvlm(processor: Any, path: Path) -> None:
    """Write an Idefics3 processor as the SmolVLM processor that it equals, with the entry for videos that
    SmolVLM writes; to save that class itself would need packages for videos."""
    processor.save_pretrained(path)
    file = path / "processor_config.json"
    data = json.loads(file.read_text(encoding="utf-8"))
    data["processor_class"] = "SmolVLMProcessor"
    data["image_processor"]["image_processor_type"] = "SmolVLMImageProcessor"
    data["video_processor"] = {"video_processor_type": "SmolVLMVideoProcessor", "num_frames": 64, "fps": 1}
    file.write_text(json.dumps(data, indent=2), encoding="utf-8")


def published_smolvlm(path: Path, text_layers: int = 1) -> Path:
    """Write a checkpoint with the vision side of SmolVLM-256M-Instruct (SigLIP base at 512 pixels, patches of
    16, 12 layers, pixel shuffle by 4: 64 tokens per tile, longest edge 2048) and random weights, and return
    `path`.

    Narrowed: the language model has `text_layers` layers of the published width instead of 30, and a
    byte-level vocabulary. The published model type is `idefics3`, that of its successors `smolvlm`.
    """
    vision = {
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "image_size": 512,
        "patch_size": 16,
    }
    text = _text(
        len(toy_split_tokenizer()),
        text_layers,
        hidden_size=576,
        intermediate_size=1536,
        num_attention_heads=9,
        num_key_value_heads=3,
        max_position_embeddings=8192,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 100_000.0},
    )
    _model("smolvlm", vision, text, scale_factor=4, seed=0).save_pretrained(path)
    processor = toy_idefics3_processor(
        scale_factor=4, patch=16, size={"longest_edge": 2048}, max_image_size={"longest_edge": 512}
    )
    _save_as_smolvlm(processor, path)
    return path
