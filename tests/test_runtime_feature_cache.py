"""The cache of visual tokens: what it knows again, what it does not, and what it lets go."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runtime.bundle import load_bundle
from runtime.feature_cache import FeatureCache, image_bytes, image_digest
from runtime.generator import Generator
from runtime.preprocess import PreparedImage
from runtime.vision import EncodedImage, Selection
from tests.toy_bundle import TILES, ToyModel, toy_photo, write_toy_bundle

MODEL = ToyModel()
PHOTO, OTHER = toy_photo(MODEL.size), toy_photo(MODEL.size, seed=11)


@pytest.fixture(scope="module")
def generator(tmp_path_factory: pytest.TempPathFactory) -> Generator:
    root = write_toy_bundle(tmp_path_factory.mktemp("bundles") / "toy", MODEL)
    return Generator(load_bundle(root), threads=1)


class Encoder:
    """The encoder, remembering what it was asked."""

    def __init__(self, generator: Generator) -> None:
        self.calls: list[tuple[int, Selection | None]] = []
        self._generator = generator

    def __call__(
        self, images: Sequence[PreparedImage], selection: Selection | None
    ) -> tuple[EncodedImage, ...]:
        self.calls.append((len(images), selection))
        if selection is None:
            return self._generator.encode_unpruned(images)
        return self._generator.encode_images(images, selection)


def encoded_by(
    cache: FeatureCache, encoder: Encoder, images: Sequence[PreparedImage], selection: Selection | None
) -> tuple[tuple[EncodedImage, ...], int]:
    return cache.encode(images, selection, cache.keys(images, selection), encoder)


def four(images: int, **options: Any) -> Selection:
    return Selection(((4,),) * images, **options)


def test_a_picture_encoded_the_same_way_is_there(generator: Generator) -> None:
    cache, encoder = FeatureCache(1 << 20), Encoder(generator)
    first, second = (generator.preprocess([PHOTO, OTHER]) for _ in range(2))
    made, reused = encoded_by(cache, encoder, first, four(2))
    again, found = encoded_by(cache, encoder, second, four(2))
    assert (reused, found, len(encoder.calls)) == (0, 2, 1)
    assert all(mine is theirs for mine, theirs in zip(made, again, strict=True))
    assert cache.nbytes == sum(map(image_bytes, made)) > sum(image.features.nbytes for image in made)


@pytest.mark.parametrize(
    ("selection", "runs"),
    [
        (Selection(((4,),)), 0),
        (Selection(((4,),), seed=9), 0),  # nothing is drawn
        (Selection(((5,),)), 1),
        (Selection(((4,),), "rank"), 1),
        (Selection(((4,),), "random"), 1),
        (None, 1),
    ],
    ids=["same", "seed", "counts", "selector", "random", "unpruned"],
)
def test_what_makes_other_visual_tokens(generator: Generator, selection: Selection | None, runs: int) -> None:
    cache, encoder = FeatureCache(1 << 20), Encoder(generator)
    images = generator.preprocess([PHOTO])
    encoded_by(cache, encoder, images, four(1))
    ((image,), found) = encoded_by(cache, encoder, images, selection)
    assert (found, len(encoder.calls)) == (1 - runs, 1 + runs)
    ((wanted,), _) = encoded_by(FeatureCache(0), encoder, images, selection)
    np.testing.assert_array_equal(image.features, wanted.features)  # one graph, one input


def test_random_places_are_those_of_a_request_without_reuse(generator: Generator) -> None:
    cache, encoder = FeatureCache(1 << 20), Encoder(generator)
    photos = [PHOTO, toy_photo(MODEL.size, seed=1), OTHER, toy_photo(MODEL.size, seed=2)]
    images, selection = generator.preprocess(photos), four(4, selector="random", seed=7)
    wanted = generator.encode_images(images, selection)
    for first in (0, 2):  # leaves holes at 1 and 3
        part = four(1, selector="random", seed=7 + first)
        encoded_by(cache, encoder, images[first : first + 1], part)
    made, found = encoded_by(cache, encoder, images, selection)
    assert found == 2
    assert [(count, chosen and chosen.seed) for count, chosen in encoder.calls[2:]] == [(1, 8), (1, 10)]
    for mine, theirs in zip(made, wanted, strict=True):
        assert mine.kept_indices.tolist() == theirs.kept_indices.tolist()
    # The same picture at another place has another seed.
    _, found = encoded_by(cache, encoder, images[1:2], four(1, selector="random", seed=7))
    assert found == 0


def test_the_same_picture_twice_is_encoded_once(generator: Generator) -> None:
    cache, encoder = FeatureCache(1 << 20), Encoder(generator)
    images = generator.preprocess([PHOTO, OTHER, PHOTO])
    made, found = encoded_by(cache, encoder, images, four(3))
    assert ([count for count, _ in encoder.calls], found) == ([2], 1)
    assert made[0] is made[2]
    wanted = generator.encode_images(images, four(3))
    for mine, theirs in zip(made, wanted, strict=True):
        np.testing.assert_array_equal(mine.features, theirs.features)  # sums of eighths


def test_the_oldest_goes_first_and_nothing_over_the_limit_stays(generator: Generator) -> None:
    images = generator.preprocess([toy_photo(MODEL.size, seed=seed) for seed in range(3)])
    size = image_bytes(generator.encode_images(images[:1], four(1))[0])
    cache, encoder = FeatureCache(2 * size), Encoder(generator)
    for number in (0, 1, 0, 2):
        encoded_by(cache, encoder, images[number : number + 1], four(1))
    assert (len(cache), cache.nbytes, len(encoder.calls)) == (2, 2 * size, 3)
    assert [encoded_by(cache, encoder, [images[n]], four(1))[1] for n in (0, 2, 1)] == [1, 1, 0]
    cache.clear()
    assert (len(cache), cache.nbytes) == (0, 0)
    small = FeatureCache(size - 1)
    assert [encoded_by(small, encoder, images[:1], four(1))[1] for _ in range(2)] == [0, 0]
    assert len(small) == 0


def test_no_limit_no_cache(generator: Generator) -> None:
    cache, encoder = FeatureCache(0), Encoder(generator)
    images = generator.preprocess([PHOTO, PHOTO])
    assert cache.keys(images, four(2)) == []
    made, found = encoded_by(cache, encoder, images, four(2))
    assert (len(made), found, [count for count, _ in encoder.calls], len(cache)) == (2, 0, [2], 0)


def test_what_is_kept_cannot_be_written_to(generator: Generator) -> None:
    ((image,), _) = encoded_by(
        FeatureCache(1 << 20), Encoder(generator), generator.preprocess([PHOTO]), four(1)
    )
    with pytest.raises(ValueError, match="read-only"):
        image.features[0, 0] = 1.0


def test_pixels_and_plan_make_the_digest(tmp_path: Path) -> None:
    folder = write_toy_bundle(tmp_path / "toy", ToyModel(pinpoints=TILES))
    generator = Generator(load_bundle(folder), threads=1)
    # Black pictures of two sizes, padded to the same tiles: only the plan tells them apart.
    wide, wider = generator.preprocess([np.zeros((8, 40, 3), np.uint8), np.zeros((18, 40, 3), np.uint8)])
    np.testing.assert_array_equal(wide.pixel_values, wider.pixel_values)
    assert image_digest(wide) != image_digest(wider)
    (again,) = generator.preprocess([np.zeros((8, 40, 3), np.uint8)])
    assert image_digest(wide) == image_digest(again)
    pixels = wide.pixel_values.copy()
    pixels.reshape(-1)[-1] += 1
    assert image_digest(replace(wide, pixel_values=pixels)) != image_digest(wide)
