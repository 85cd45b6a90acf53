"""What a skeptical reader found: each test is an input that once gave a wrong answer or a bare exception."""

from __future__ import annotations

import pytest

from runtime.bundle import load_bundle
from runtime.decode import decode
from runtime.errors import BundleError
from runtime.generator import Generator
from runtime.request import Request
from tests.toy_bundle import TILES, ToyModel, toy_photo, write_toy_bundle

PHOTOS = (toy_photo((32, 32)), toy_photo((20, 32), 5))


@pytest.fixture(scope="module")
def tiles(tmp_path_factory: pytest.TempPathFactory) -> Generator:
    folder = write_toy_bundle(tmp_path_factory.mktemp("tiles") / "toy", ToyModel(pinpoints=TILES))
    return Generator(load_bundle(folder), threads=1)


def test_random_keeps_the_same_of_an_image_whether_the_first_was_encoded_before(tiles: Generator) -> None:
    request = Request("what?", PHOTOS, ratio=0.3, selector="random", max_new_tokens=1)
    fresh = tiles.stream(request)
    list(fresh)
    again = tiles.stream(request, fresh.encoded[:1])
    list(again)
    assert again.result.kept_indices == fresh.result.kept_indices


@pytest.mark.parametrize("value", [10**400, -(10**400), 2**63])
@pytest.mark.parametrize("hint", [int, float])
def test_a_number_beyond_64_bits_is_named(hint: type, value: int) -> None:
    with pytest.raises(BundleError, match=r"x is -?\d+(\.\.\.)?, expected an? (integer|number): rebuild"):
        decode(hint, value, "x")
