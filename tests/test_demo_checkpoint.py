"""The bundled checkpoint: small, complete, answering; pruned by significance it still does."""

from __future__ import annotations

import string
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoProcessor, LlavaForConditionalGeneration, LlavaProcessor

from demo.batches import batch_from_scenes
from demo.curve import Point, held_out
from demo.measure import measure
from demo.model import CHECKPOINT
from demo.oracle import encode, select
from runtime.counts import kept_count
from runtime.errors import RequestError

SCENES = 200  # one scene is then half a point


@pytest.fixture(scope="module")
def model() -> LlavaForConditionalGeneration:
    return LlavaForConditionalGeneration.from_pretrained(CHECKPOINT).eval()


@pytest.fixture(scope="module")
def processor() -> LlavaProcessor:
    return AutoProcessor.from_pretrained(CHECKPOINT)


@pytest.fixture(scope="module")
def points(model: LlavaForConditionalGeneration, processor: LlavaProcessor) -> dict[tuple[str, float], Point]:
    measured = measure(model, processor.tokenizer, held_out(SCENES, seed=77), 77, (0.3,))
    return {(point.selector, point.ratio): point for point in measured}


def test_it_is_small_and_complete() -> None:
    assert sum(path.stat().st_size for path in Path(CHECKPOINT).iterdir()) <= 8_000_000
    names = {path.name for path in Path(CHECKPOINT).iterdir()}
    assert {"config.json", "model.safetensors", "generation_config.json"} <= names
    assert {
        "tokenizer.json",
        "tokenizer_config.json",
        "processor_config.json",
        "chat_template.jinja",
    } <= names


def test_configuration(model: LlavaForConditionalGeneration) -> None:
    config = model.config
    assert (config.vision_feature_layer, config.vision_feature_select_strategy) == (-2, "default")
    assert (config.vision_config.image_size // config.vision_config.patch_size) ** 2 == 196
    assert model.lm_head.weight is model.get_input_embeddings().weight


def test_any_text_survives_the_tokenizer(processor: LlavaProcessor) -> None:
    tokenizer = processor.tokenizer
    for text in (string.printable, "Is there a 7?", "Zwölf Boxkämpfer, 十二"):
        assert tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True) == text
    assert tokenizer("a")["input_ids"][0] == tokenizer.bos_token_id


def test_chat_template_takes_parts_strings_and_several_turns(processor: LlavaProcessor) -> None:
    chat = [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Is there a 7?"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "yes"}]},
        {"role": "user", "content": "Count the digits."},
    ]
    text = processor.apply_chat_template(chat, add_generation_prompt=True)
    assert text == "USER: <image>\nIs there a 7? ASSISTANT: yes</s>USER: Count the digits. ASSISTANT:"


def test_processor_equals_the_training_pixels(processor: LlavaProcessor) -> None:
    scenes = held_out(4, seed=3)
    pixels = processor.image_processor(
        [Image.fromarray(s.image) for s in scenes], return_tensors="np"
    ).pixel_values
    ours = batch_from_scenes(scenes).pixel_values.numpy()
    np.testing.assert_allclose(np.asarray(pixels), ours, rtol=0, atol=1e-5)  # float32 rounding near 2.6


def test_generate_answers_from_image_and_chat(
    model: LlavaForConditionalGeneration, processor: LlavaProcessor
) -> None:
    """The whole Hugging Face path, on a scene whose answer the oracle also finds."""
    right = 0
    scenes = held_out(12, seed=77)
    for scene in scenes:
        parts = [{"type": "image"}, {"type": "text", "text": "How many digits are there?"}]
        text = processor.apply_chat_template([{"role": "user", "content": parts}], add_generation_prompt=True)
        inputs = processor(text=text, images=Image.fromarray(scene.image), return_tensors="pt")
        generated = model.generate(**inputs, max_new_tokens=8, do_sample=False)
        answer = processor.tokenizer.decode(
            generated[0, inputs.input_ids.shape[1] :], skip_special_tokens=True
        )
        right += answer.strip() == str(len(scene.digits))
    assert right >= 10


def test_unpruned_answers_are_right(points: dict[tuple[str, float], Point]) -> None:
    unpruned = points["none", 1.0]
    assert unpruned.tokens == 196
    assert sum(exact >= 0.9 for exact in unpruned.exact.values()) >= 2


def test_significance_keeps_the_answers_and_chance_does_not(points: dict[tuple[str, float], Point]) -> None:
    """At ratio .3 significance loses at most 3 points, chance at least 10 more than significance."""
    unpruned, rank, random = points["none", 1.0], points["rank", 0.3], points["random", 0.3]
    assert rank.tokens == random.tokens == kept_count(196, 0.3) == 59
    assert rank.mean >= unpruned.mean - 0.03
    assert random.mean <= rank.mean - 0.1


def test_selectors_have_the_contracted_shape(model: LlavaForConditionalGeneration) -> None:
    with torch.no_grad():
        scores = encode(model, batch_from_scenes(held_out(2, seed=1)).pixel_values).scores
    assert scores.shape == (2, 196)
    for selector in ("rank", "row", "random", "uniform"):
        kept = select(scores, 0.3, selector, (0, 1))  # type: ignore[arg-type]
        assert kept.shape == (2, 56 if selector == "row" else 59)
        assert bool((kept[:, 1:] > kept[:, :-1]).all())
        assert int(kept.min()) >= 0
        assert int(kept.max()) < 196
    with pytest.raises(ValueError, match="the selectors are rank, row, random, uniform"):
        select(scores, 0.3, "best", (0, 1))  # type: ignore[arg-type]
    with pytest.raises(RequestError, match=r"ratio is 1\.5, .* give a number in \(0, 1\]"):
        select(scores, 1.5, "rank", (0, 1))


def test_ties_go_to_the_lower_position() -> None:
    assert select(torch.ones(1, 16), 0.25, "rank", ()).tolist() == [[0, 1, 2, 3]]
    assert select(torch.ones(1, 16), 0.25, "row", ()).tolist() == [[0, 1, 2, 3]]
