"""Chat templates and image processors as plain records: what they become, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from export.errors import CheckpointError, PromptError
from export.families import FAMILIES
from export.image_config import preprocess_from_processor
from export.prompt_template import DEFAULT_TEMPLATE, conversation, prompt_from_processor
from runtime.layouts.single import SingleLayout
from runtime.prompt import render_chat
from tests.toy_llava import CHATML_TEMPLATE, COMBINATIONS, LLAVA_TEMPLATE, ToySpec, toy_processor

IMAGE = 3  # id of <image> in the toy tokenizer
SQUARE = {"height": 32, "width": 32}
LAYOUT = SingleLayout((4, 4), 16, {"shortest_edge": 32}, SQUARE, None)


def layout_of(images: Any) -> Any:
    """What LLaVA makes of an image processor, for a tower of 32 x 32 pixels."""
    tower = SimpleNamespace(model_type="clip_vision_model", image_size=32, patch_size=8)
    config = SimpleNamespace(vision_config=tower, vision_feature_select_strategy="default")
    return FAMILIES["llava"].layout(config, SimpleNamespace(image_processor=images))


def derived(template: str | None, **spec: Any) -> Any:
    return prompt_from_processor(toy_processor(ToySpec(template=template, **spec)), IMAGE, LAYOUT)


def test_llava_template() -> None:
    info = derived(LLAVA_TEMPLATE)
    assert info.note is None
    assert info.template.first_turn == "USER: {images}{prompt} ASSISTANT:"
    assert info.template.next_turn == " USER: {images}{prompt} ASSISTANT:"
    assert info.template.image == "<image>\n"
    assert info.template.past_answer == "ASSISTANT: {answer}"
    assert info.template.add_special_tokens is True
    assert info.template == DEFAULT_TEMPLATE


def test_chatml_writes_a_past_answer_differently_from_the_opening() -> None:
    template = derived(CHATML_TEMPLATE, bos=False).template
    assert template.generation == "<|im_start|>assistant\n"
    assert template.past_answer == "<|im_start|>assistant \n{answer}"
    chat = [("One?", [template.image], "Yes."), ("Two?", [], "")]
    messages = conversation([("One?", [None], "Yes."), ("Two?", [], "")])
    processor = toy_processor(COMBINATIONS["siglip-qwen2"])
    assert render_chat(template, chat) == processor.apply_chat_template(messages, add_generation_prompt=True)


def test_turns_without_images_may_be_written_differently() -> None:
    # as SmolVLM does: a blank after the colon where no image follows
    template = (
        "{% for message in messages %}{{ message['role'] | capitalize }}"
        "{% if message['content'][0]['type'] == 'image' %}{{ ':' }}{% else %}{{ ': ' }}{% endif %}"
        "{% for line in message['content'] %}{% if line['type'] == 'text' %}{{ line['text'] }}"
        "{% elif line['type'] == 'image' %}{{ '<image>' }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
    )
    found = derived("<|im_start|>" + template, bos=False).template
    assert found.first_turn == "<|im_start|>User:{images}{prompt}<|im_end|>\nAssistant:"
    assert found.first_text == "<|im_start|>User: {prompt}<|im_end|>\nAssistant:"
    assert found.next_turn == "<|im_end|>\nUser:{images}{prompt}<|im_end|>\nAssistant:"
    assert found.next_text == "<|im_end|>\nUser: {prompt}<|im_end|>\nAssistant:"
    assert found.past_answer == "Assistant: {answer}"
    assert render_chat(found, [("a", [found.image], "b"), ("c", [], "")]) == (
        "<|im_start|>User:<image>a<|im_end|>\nAssistant: b<|im_end|>\nUser: c<|im_end|>\nAssistant:"
    )


def test_a_system_message_before_the_first_turn() -> None:
    # as Qwen2.5-VL does, with marks around the image token
    template = (
        "{% for message in messages %}{% if loop.first and message['role'] != 'system' %}"
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}"
        "<|im_start|>{{ message['role'] }}\n{% for part in message['content'] %}"
        "{% if part['type'] == 'image' %}<pad><image></s>{% else %}{{ part['text'] }}{% endif %}{% endfor %}"
        "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    found = derived(template, bos=False).template
    system = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    turn = "<|im_start|>user\n{images}{prompt}<|im_end|>\n<|im_start|>assistant\n"
    assert found.first_turn == system + turn
    assert found.next_turn == "<|im_end|>\n" + turn
    assert found.image == "<pad><image></s>"
    assert (found.first_text, found.next_text) == (None, None)


def test_bos_in_the_template_is_not_added_again() -> None:
    assert derived("{{ bos_token }}" + LLAVA_TEMPLATE).template.add_special_tokens is False


def test_images_after_the_text() -> None:
    template = (
        "{% for message in messages %}{% for part in message['content'] %}{% if part['type'] == 'text' %}"
        "{{ part['text'] }}{% endif %}{% endfor %}{% for part in message['content'] %}"
        "{% if part['type'] == 'image' %}{{ ' <image>' }}{% endif %}{% endfor %}{{ '\n' }}{% endfor %}"
    )
    info = derived(template)
    assert (info.template.first_turn, info.template.image) in (
        ("{prompt}{images}\n", " <image>"),
        ("{prompt} {images}\n", "<image> "),
    )


def test_template_without_a_second_turn() -> None:
    template = (
        "{% if messages | length > 1 %}{{ raise_exception('one turn only') }}{% endif %}" + LLAVA_TEMPLATE
    )
    info = derived(template)
    assert info.template.next_turn is None
    assert "no second turn" in str(info.note)


def test_second_turn_that_rewrites_the_first() -> None:
    template = "{% if messages | length > 1 %}{{ 'CHAT ' }}{% endif %}" + LLAVA_TEMPLATE
    assert derived(template).template.next_turn is None


def test_a_template_that_trims_is_accepted() -> None:
    # Llama and Gemma templates do; prompts with outer blanks are then the only ones that differ
    trims = LLAVA_TEMPLATE.replace("content['text'] + ' '", "content['text'] | trim + ' '")
    assert derived(trims).template == DEFAULT_TEMPLATE


def test_no_chat_template_uses_the_default_and_says_so() -> None:
    info = derived(None)
    assert info.template == DEFAULT_TEMPLATE
    assert "no chat template in the checkpoint, using 'USER: {images}{prompt} ASSISTANT:'" in str(info.note)


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ raise_exception('never') }}", r"the chat template cannot be rendered \(never\)"),
        ("hello", "does not put images and prompt at fixed places"),
        (
            "{{ messages[0]['content'] | length }}" + LLAVA_TEMPLATE,
            "does not put images and prompt at fixed",
        ),
        (
            LLAVA_TEMPLATE.replace("content['text'] + ' '", "content['text'] | upper"),
            "is no plain text with slots",
        ),
    ],
)
def test_templates_that_cannot_be_expressed(template: str, message: str) -> None:
    with pytest.raises(PromptError, match=message):
        derived(template)


def test_image_token_of_model_and_processor_differ() -> None:
    with pytest.raises(
        PromptError, match=r"image token is '<image>', but the model's image_token_index 4 is '<\|im_start"
    ):
        prompt_from_processor(toy_processor(ToySpec()), 4, LAYOUT)


def test_placeholders_of_model_and_processor_differ() -> None:
    with pytest.raises(
        PromptError, match="makes 16 placeholders of 1 images, but the model makes 17 rows of them: set patch"
    ):
        prompt_from_processor(toy_processor(ToySpec()), IMAGE, replace(LAYOUT, prefix_tokens=1))


class Altered:
    """A processor whose ids, or whose tokenizer's ids, are not what they were."""

    def __init__(self, ids: Any = None, backend: Any = None) -> None:
        self._real = toy_processor(ToySpec())
        self._ids = ids or (lambda values: values)
        self.tokenizer: Any = self._real.tokenizer
        if backend is not None:
            self.tokenizer = SimpleNamespace(
                backend_tokenizer=SimpleNamespace(
                    encode=lambda text, **_: SimpleNamespace(
                        ids=backend(self._real.tokenizer(text)["input_ids"])
                    )
                ),
                convert_ids_to_tokens=self._real.tokenizer.convert_ids_to_tokens,
                bos_token=self._real.tokenizer.bos_token,
            )

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    def __call__(self, **kwargs: Any) -> Any:
        return {"input_ids": [self._ids(self._real(**kwargs)["input_ids"][0])]}


def test_processor_and_tokenizer_disagree() -> None:
    with pytest.raises(PromptError, match=r"the processor and tokenizer\.json disagree on the ids of"):
        prompt_from_processor(Altered(ids=lambda values: [*values, 9]), IMAGE, LAYOUT)


def test_tokenizer_that_loses_the_image_token() -> None:
    without = Altered(backend=lambda ids: [value for value in ids if value != IMAGE])
    with pytest.raises(PromptError, match="the tokenizer splits the image token"):
        prompt_from_processor(without, IMAGE, LAYOUT)


CLIP = toy_processor(ToySpec()).image_processor
SIGLIP = toy_processor(ToySpec(tower="siglip")).image_processor


def test_clip_and_siglip_processors() -> None:
    clip = layout_of(CLIP)
    assert (clip.resize, clip.crop) == ({"shortest_edge": 32}, SQUARE)
    scale = preprocess_from_processor(CLIP)
    assert scale.resample == 3
    assert scale.mean == pytest.approx((0.48145466, 0.4578275, 0.40821073), abs=0)
    siglip = layout_of(SIGLIP)
    assert (siglip.resize, siglip.crop) == (SQUARE, None)
    assert preprocess_from_processor(SIGLIP).std == (0.5, 0.5, 0.5)


def test_llava_processor_pads_with_its_mean() -> None:
    from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

    processor = LlavaImageProcessorPil(size={"shortest_edge": 32}, crop_size=SQUARE, do_pad=True)
    assert layout_of(processor).pad_to_square == (122, 116, 104)
    processor = LlavaImageProcessorPil(size={"shortest_edge": 32}, crop_size=SQUARE)
    assert layout_of(processor).pad_to_square is None


def test_steps_left_out_become_neutral_numbers() -> None:
    processor = toy_processor(ToySpec(tower="siglip")).image_processor
    processor.do_normalize = processor.do_rescale = False
    found = preprocess_from_processor(processor)
    assert (found.rescale_factor, found.mean, found.std) == (1.0, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"do_resize": False}, "do_resize is false"),
        (
            {"size": {"longest_edge": 32}},
            r"size is \{'longest_edge': 32\}, but it must be shortest_edge alone",
        ),
        ({"crop_size": {"shortest_edge": 32}}, r"crop_size is .*, but it must have height and width"),
        (
            {"crop_size": {"height": 16, "width": 16}},
            r"it makes images of .*16.*, but the vision tower takes 32 x 32",
        ),
        (
            {"do_center_crop": False},
            r"it makes images of \{'shortest_edge': 32\}, but the vision tower takes 32 x 32",
        ),
        ({"image_mean": [0.5, 0.5]}, r"image_mean is \[0\.5, 0\.5\], but it must have one value or three"),
    ],
)
def test_processors_that_cannot_be_expressed(changes: dict[str, Any], message: str) -> None:
    processor = toy_processor(ToySpec()).image_processor
    for name, value in changes.items():
        setattr(processor, name, value)
    with pytest.raises(CheckpointError, match=message):
        layout_of(processor)


def test_unknown_image_processor() -> None:
    kind = type("TilingImageProcessorPil", (), {})
    with pytest.raises(
        CheckpointError, match="its class is TilingImageProcessor, but the supported ones are CLIP"
    ):
        layout_of(kind())


def test_default_template_with_another_image_token() -> None:
    processor = toy_processor(ToySpec(template=None))
    processor.image_token = "<|im_end|>"
    info = prompt_from_processor_with_token(processor, 5)
    assert info == replace(DEFAULT_TEMPLATE, image="<|im_end|>\n")


def prompt_from_processor_with_token(processor: Any, token: int) -> Any:
    processor.image_token_id = token
    return prompt_from_processor(processor, token, LAYOUT).template
