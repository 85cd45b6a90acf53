"""Scenes and questions of the demo: deterministic, splits apart, truth that matches the picture."""

from __future__ import annotations

import numpy as np
import pytest

from demo import scenes
from demo.questions import KINDS, all_prompts, ask
from demo.scenes import BACKGROUND, GRID, IMAGE_SIZE, PATCH_SIZE, Layout, draw_scene, draw_scenes


def test_a_scene_depends_on_its_seed_only() -> None:
    first, again, other = (draw_scene("test", Layout(), seed) for seed in (5, 5, 6))
    assert first.digits == again.digits
    assert np.array_equal(first.image, again.image)
    assert not np.array_equal(first.image, other.image)
    assert np.array_equal(
        draw_scenes("test", Layout(), 5, 3)[2].image, draw_scene("test", Layout(), (5, 2)).image
    )


def test_digits_and_photographs_of_the_splits_are_apart() -> None:
    train, train_labels = scenes._digit_pool("train")
    test, test_labels = scenes._digit_pool("test")
    assert len(train) == len(train_labels) == 1437
    assert len(test) == len(test_labels) == 360
    seen = {image.tobytes() for image in train}
    assert not any(image.tobytes() in seen for image in test)
    assert set(test_labels) == set(range(10))
    for left, right in zip(scenes._photographs("train"), scenes._photographs("test"), strict=True):
        assert left.size[0] + right.size[0] == 640


def test_layout_is_kept() -> None:
    for scene in draw_scenes("train", Layout(min_digits=2, max_digits=3), 0, 50):
        assert scene.image.shape == (IMAGE_SIZE, IMAGE_SIZE, 3)
        assert scene.image.dtype == np.uint8
        assert len(scene.digits) in (2, 3)
        assert set(scene.patch_label) - {BACKGROUND} <= set(scene.digits)


def test_ink_fits_into_the_tokens_kept_at_30_percent() -> None:
    inked = [int(scene.ink_mask.sum()) for scene in draw_scenes("test", Layout(), 1, 200)]
    assert np.percentile(inked, 95) < 59


def test_mask_matches_ink(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a black photograph with white ink, the picture is the ink."""
    black = np.zeros((IMAGE_SIZE, IMAGE_SIZE, 3), np.float32)
    monkeypatch.setattr(scenes, "_background", lambda *_: black.copy())
    monkeypatch.setattr(scenes, "_clear_colour", lambda *_: np.ones(3, np.float32))
    for scene in draw_scenes("test", Layout(), 3, 20):
        brightness = scene.image[:, :, 0].astype(np.float64) / 255
        patches = brightness.reshape(GRID, PATCH_SIZE, GRID, PATCH_SIZE).mean(axis=(1, 3)).ravel()
        np.testing.assert_allclose(patches, scene.patch_ink, rtol=0, atol=0.003)  # 8-bit rounding: 0.5/255
        assert np.array_equal(scene.ink_mask, patches >= scenes.INK_MIN) or np.any(
            np.abs(patches - scenes.INK_MIN) < 0.003
        )


def test_digits_are_named_from_left_to_right(monkeypatch: pytest.MonkeyPatch) -> None:
    places: list[list[tuple[int, int]]] = []
    original = scenes._places

    def spy(*arguments: object) -> list[tuple[int, int]]:
        places.append(original(*arguments))  # type: ignore[arg-type]
        return places[-1]

    monkeypatch.setattr(scenes, "_places", spy)
    drawn = draw_scenes("test", Layout(), 4, 50)
    for scene, placed in zip(drawn, places, strict=True):
        assert len(placed) == len(scene.digits)
        columns = np.arange(GRID * GRID) % GRID
        centres = [columns[scene.patch_label == digit].mean() for digit in scene.digits]
        if len(set(scene.digits)) == len(scene.digits) and not np.isnan(centres).any():
            assert centres == sorted(centres)


@pytest.mark.parametrize(
    "arguments", [{"min_digits": 0}, {"max_digits": 5}, {"min_digits": 3, "max_digits": 2}]
)
def test_a_layout_out_of_range_is_refused(arguments: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="digits must satisfy 1 <= min <= max <= 4"):
        Layout(**arguments)
    with pytest.raises(ValueError, match="sizes must satisfy"):
        Layout(max_size=40)


def test_answers_are_exact() -> None:
    rng = np.random.default_rng(0)
    digits = (7, 3, 1)
    assert ask("count", digits, rng).answer == "3"
    assert ask("read", digits, rng).answer == "7 3 1"
    edges = {
        (q.prompt.split()[-1].rstrip("?"), q.answer) for q in (ask("edge", digits, rng) for _ in range(50))
    }
    assert {answer for _, answer in edges} == {"7", "1"}
    for _ in range(50):
        question = ask("presence", digits, rng)
        asked = next(int(character) for character in question.prompt if character.isdigit())
        assert question.answer == ("yes" if asked in digits else "no")
        assert question.prompt in all_prompts()


def test_an_unknown_kind_of_question_is_refused() -> None:
    with pytest.raises(ValueError, match="the kinds are count, read, presence, edge"):
        ask("colour", (1,), np.random.default_rng(0))  # type: ignore[arg-type]
    assert len(KINDS) == 4
