"""What a skeptical reader found: each test is an input that once gave a wrong answer or a bare exception."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from runtime.bundle import load_bundle
from runtime.counts import kept_count
from runtime.decode import decode
from runtime.errors import BundleError, ImageError, RequestError
from runtime.generator import Generator
from runtime.golden import Golden
from runtime.layouts.anyres import AnyresLayout
from runtime.layouts.single import SingleLayout
from runtime.manifest import IMAGE_NEWLINE, ConstantInfo, Manifest
from runtime.parity import STAGES, UnitScores, compare
from runtime.plan import plan_pruning
from runtime.positions import Positions
from runtime.request import Request
from runtime.vision import Selection
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


@pytest.mark.parametrize(
    ("got", "columns"),
    [
        ([0, 1, 1, 1], None),  # the boundary's own score is as near as can be
        ([0, 1, 3, 2], None),
        ([0, 1], None),
        ([0, 1, 2, 4], (2,)),  # half a row each of two rows that tie
    ],
)
def test_no_near_tie_where_the_indices_are_no_choice(got: list[int], columns: tuple[int, ...] | None) -> None:
    same = {stage.name: np.ones((1, 1)) for stage in STAGES}
    same |= {"kept_counts": np.array([4]), "token_scores": np.array([5.0, 5.0, 3.0, 3.0, 3.0, 3.0])}
    reference = same | {"kept_indices": np.array([0, 1, 2, 3])}
    units = UnitScores((6,), columns)
    report = compare(reference, same | {"kept_indices": np.array(got)}, units)
    assert report.first_divergence == "kept_indices"
    tie = np.array([0, 1, 4, 5])
    assert compare(reference, same | {"kept_indices": tie}, units).ok


def test_ids_may_be_longer_after_a_near_tie() -> None:
    reference = {stage.name: np.ones((1, 1)) for stage in STAGES}
    reference |= {"kept_counts": np.array([2]), "token_scores": np.array([5.0, 3.0, 3.0])}
    reference |= {"kept_indices": np.array([0, 1]), "input_ids": np.ones((1, 7))}
    # The other token stands in another line, whose newline "keep_nonempty" keeps.
    measured = reference | {"kept_indices": np.array([0, 2]), "input_ids": np.ones((1, 8))}
    assert compare(reference, measured, UnitScores((3,))).ok
    same = reference | {"input_ids": np.ones((1, 8))}
    assert compare(reference, same, UnitScores((3,))).first_divergence == "input_ids"


@pytest.mark.parametrize("shape", [(8, 1), (2, 4), (4,), ()])
def test_newline_vector_is_as_wide_as_the_embeddings(tiles: Generator, shape: tuple[int, ...]) -> None:
    file = tiles.manifest.constants[IMAGE_NEWLINE].file
    message = r"constants.image_newline.shape is \[.*\], expected \[8\], decoder.hidden_size: rebuild"
    with pytest.raises(BundleError, match=message):
        replace(tiles.manifest, constants={IMAGE_NEWLINE: ConstantInfo(file, shape)})


def test_short_numbers_of_numpy_count_like_others(tiles: Generator) -> None:
    short = Request("what?", PHOTOS[:1], tokens=np.int8(40), max_new_tokens=np.int8(3), ignore_eos=True)  # type: ignore[arg-type]
    assert (short.tokens, short.max_new_tokens) == (40, 3)
    assert type(short.tokens) is type(short.max_new_tokens) is int
    tiles.forget()
    result = tiles.generate(short)
    tiles.forget()
    assert result == replace(
        tiles.generate(replace(short, tokens=40, max_new_tokens=3)),
        timings=result.timings,
        peak_rss_bytes=result.peak_rss_bytes,
    )
    half = Request("what?", ratio=np.float16(0.5))  # type: ignore[arg-type]
    assert type(half.ratio) is float
    assert kept_count(4097, half.ratio) == 2049  # 2048 in half precision


def test_random_takes_short_seeds(tiles: Generator) -> None:
    request = Request("what?", PHOTOS, ratio=0.3, selector="random", seed=np.int8(127), max_new_tokens=1)  # type: ignore[arg-type]
    assert tiles.generate(request).kept_indices == tiles.generate(replace(request, seed=127)).kept_indices


SINGLE = SingleLayout((2, 2), 4, {"shortest_edge": 8}, {"height": 8, "width": 8}, None)


@pytest.mark.parametrize("size", [(0, 5), (5, 0), (-3, 5)])
def test_one_picture_of_no_pixels(size: tuple[int, int]) -> None:
    with pytest.raises(
        ImageError, match=f"an image has {size[1]} x {size[0]} pixels, expected at least 1 x 1"
    ):
        SINGLE.plan(*size)


@pytest.mark.parametrize("colour", [(256, 0, 0), (0, -1, 0)])
def test_fill_colour_outside_a_byte(colour: tuple[int, int, int]) -> None:
    with pytest.raises(BundleError, match=r"pad_to_square is \[.*\], expected three numbers 0..255 or null"):
        replace(SINGLE, pad_to_square=colour)


def test_golden_request_without_images() -> None:
    with pytest.raises(BundleError, match=r"golden\.json: images is empty, expected at least one: rebuild"):
        Golden("what?", (), 0.5, None, "rank", 1, "numpy")


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ((16,), r"got 1 counts for an image of which rows of all tiles are compared, expected 2"),
        ((4, 8, 8, 8, 8), r"got 5 counts .* make them with plan_pruning"),
        ((4, 33), "cannot keep 33 tokens of the tiles: give whole rows of 8, up to 64"),
        ((4, 0), "cannot keep 0 tokens of the tiles"),
        ((4, 72), "cannot keep 72 tokens of the tiles"),
        ((4, -8), "cannot keep -8 tokens of the tiles"),
        ((0, 8), "cannot keep 0 tokens"),
    ],
)
def test_counts_of_stitched_rows_are_checked(tmp_path: Path, counts: tuple[int, ...], message: str) -> None:
    def stitched(manifest: Manifest) -> Manifest:
        return replace(manifest, pruning=replace(manifest.pruning, row_scope="stitched"))

    model = ToyModel(pinpoints=TILES, strategy="row")
    generator = Generator(load_bundle(write_toy_bundle(tmp_path / "toy", model, stitched)), threads=1)
    prepared = generator.preprocess(PHOTOS[:1])
    with pytest.raises(RequestError, match=message):
        generator.encode_images(prepared, Selection((counts,)))
    assert generator.encode_images(prepared, Selection(((4, 8),)))[0].kept_indices.size == 12


@pytest.mark.parametrize("newline", ["drop", "keep_nonempty"])
def test_an_image_that_keeps_all_its_tokens_keeps_its_newlines_fresh_or_cached(
    newline: str, tmp_path: Path
) -> None:
    """The policy was once the request's: a cached image kept another one than a fresh one."""
    folder = write_toy_bundle(tmp_path / "toy", ToyModel(pinpoints=TILES))
    text = (folder / "bundle.json").read_text()
    (folder / "bundle.json").write_text(text.replace('"newline": "keep_all"', f'"newline": "{newline}"'))
    generator = Generator(load_bundle(folder), threads=1)
    assert generator.manifest.pruning.newline == newline
    whole = generator.preprocess([toy_photo((32, 32)), toy_photo((1, 1))])
    small = whole[1].plan.prunable
    request = Request("what?", (toy_photo((32, 32)), toy_photo((1, 1))), tokens=small, max_new_tokens=2)
    fresh = generator.stream(request)
    list(fresh)
    again = generator.stream(request, fresh.encoded[:1])
    list(again)
    assert fresh.result.visual_tokens_after == again.result.visual_tokens_after
    assert fresh.result.visual_tokens_after[1] == whole[1].plan.placeholders
    assert fresh.result.token_ids == again.result.token_ids


def test_a_default_budget_is_all_that_a_small_image_has(tiles: Generator) -> None:
    (image,) = tiles.preprocess([toy_photo((1, 1))])
    budget = replace(tiles.manifest.pruning, default_ratio=None, default_tokens=10_000)
    manifest = replace(tiles.manifest, pruning=budget)
    plan = plan_pruning(Request("what?", (toy_photo((1, 1)),)), manifest, [image.plan])
    assert (sum(map(sum, plan.counts)), plan.pruned) == (image.plan.prunable, False)
    with pytest.raises(RequestError, match="tokens is 10000, but an image has"):
        plan_pruning(Request("what?", (toy_photo((1, 1)),), tokens=10_000), manifest, [image.plan])


def test_positions_of_other_axes_are_refused(tiles: Generator) -> None:
    with pytest.raises(RequestError, match="the positions have 3 axes, but the decoder takes 1"):
        tiles.decoder_run(8, Positions(np.zeros((3, 4), np.int64), 4))


def test_a_canvas_beyond_memory_is_refused() -> None:
    with pytest.raises(
        BundleError, match=r"pinpoints has \[160000, 160000\], expected 67108864 pixels at most"
    ):
        AnyresLayout((16, 16), (1, 1), ((160000, 160000),))
