"""The vision encoder's calls over a numpy session: what is batched, what is fed, what becomes of padding."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

import numpy as np
import pytest
from PIL import Image

from runtime import contract
from runtime.contract import TensorSpec
from runtime.errors import BackendError, RequestError
from runtime.layouts.anyres import AnyresLayout
from runtime.layouts.base import IMAGE_SLOT, NEWLINE, ImageLayout, ImagePlan, Unit, running_offsets
from runtime.layouts.single import SingleLayout
from runtime.manifest import Manifest
from runtime.preprocess import PreparedImage, prepare
from runtime.vision import EncodedImage, Selection, VisionEncoder
from tests.toy_bundle import PATCH, TILES, WIDTH, ToyModel, toy_files, toy_manifest, toy_photo

PRUNED, WHOLE = contract.VISION_ENCODER_FOPRU, contract.VISION_ENCODER
CANVAS = AnyresLayout((16, 16), (4, 4), ((48, 48),))
STRIP, STRIP_VALID = (8, 48), [16, 0, 0, 0, 8, 8, 8, 0, 0, 0]  # two of twelve lines of the canvas
NEWLINE_VECTOR = np.full(WIDTH, 77, np.float32)
BIG = AnyresLayout((16, 16), (4, 4), ((48, 48), (16, 32)))  # nine tiles or two


@dataclass(frozen=True)
class GuidedLayout(SingleLayout):
    """One picture per image, beside which the encoder wants the image's size."""

    kind: ClassVar[str] = "guided"

    @property
    def extra_inputs(self) -> tuple[TensorSpec, ...]:
        return (TensorSpec("size", "int64", (2,)),)

    def plan(self, height: int, width: int) -> ImagePlan:
        return replace(super().plan(height, width), inputs={"size": np.array([height, width], np.int64)})


@dataclass(frozen=True)
class AnySizeLayout(ImageLayout):
    """Every image as large as it is."""

    kind: ClassVar[str] = "any_size"

    @property
    def pixel_shape(self) -> tuple[int | str, ...]:
        return ("units", 3, "height", "width")

    @property
    def unit_tokens(self) -> None:
        return None

    @property
    def unit_grid(self) -> None:
        return None

    def plan(self, height: int, width: int) -> ImagePlan:
        grid = (height // PATCH, width // PATCH)
        runs = (grid[0] * grid[1],)
        sequence, offsets = np.arange(runs[0]), running_offsets(runs)
        return ImagePlan((Unit(runs[0], grid),), IMAGE_SLOT, runs, sequence, offsets, runs)

    def views(self, image: Image.Image, resample: int) -> Sequence[np.ndarray]:
        del resample
        return (np.asarray(image),)


@dataclass
class NumpySession:
    """An encoder of any picture size, that remembers what it was fed."""

    model: ToyModel
    calls: list[dict[str, np.ndarray]] = field(default_factory=list)

    inputs: ClassVar[Mapping[str, tuple[int | None, ...]]] = {}
    outputs: ClassVar[Mapping[str, tuple[int | None, ...]]] = {}

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        self.calls.append(dict(feeds))
        pixels = feeds[contract.PIXEL_VALUES]
        model = model_of(self.model, pixels)
        features = model.features(pixels)
        if contract.NUM_KEEP not in feeds:
            return {contract.IMAGE_FEATURES: features}
        kept = model.kept(pixels, int(feeds[contract.NUM_KEEP][0]), feeds.get(contract.TOKEN_MASK))
        rows = np.take_along_axis(features, kept[..., None] + model.prefix, axis=1)
        return {
            contract.IMAGE_FEATURES: np.concatenate([features[:, : model.prefix], rows], axis=1),
            contract.KEPT_INDICES: kept,
            contract.TOKEN_SCORES: model.scores(pixels),
        }

    def bind(self, *_: object) -> None:
        raise AssertionError("the vision encoder runs with host arrays")


def model_of(model: ToyModel, pixels: np.ndarray) -> ToyModel:
    return replace(model, grid=(pixels.shape[2] // PATCH, pixels.shape[3] // PATCH), weights={})


@dataclass
class Setup:
    """A vision encoder of a layout over numpy sessions."""

    layout: ImageLayout
    model: ToyModel = field(default_factory=ToyModel)
    pruning: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        base = ToyModel(pinpoints=TILES) if self.layout.has_newlines else ToyModel()
        manifest = toy_manifest(base, toy_files())
        pruning = replace(manifest.pruning, strategy=self.model.strategy, **self.pruning)
        self.manifest: Manifest = replace(manifest, layout=self.layout, pruning=pruning)
        self.sessions = {name: NumpySession(self.model) for name in (PRUNED, WHOLE)}
        newline = NEWLINE_VECTOR if self.layout.has_newlines else None
        self.encoder = VisionEncoder(lambda name: self.sessions[name], self.manifest, newline)

    def prepared(self, *sizes: tuple[int, int]) -> list[PreparedImage]:
        return [
            prepare(Image.fromarray(toy_photo(size, seed)), self.layout, self.manifest.preprocess)
            for seed, size in enumerate(sizes)
        ]

    def encode(
        self, images: Sequence[PreparedImage], counts: Sequence[Sequence[int]], selector: str = "graph"
    ) -> tuple[EncodedImage, ...]:
        return self.encoder.encode(images, Selection(tuple(map(tuple, counts)), selector, 5))

    @property
    def calls(self) -> list[dict[str, np.ndarray]]:
        return self.sessions[PRUNED].calls

    def expected(
        self, image: PreparedImage, kept: Sequence[np.ndarray], newline: str = "keep_all"
    ) -> np.ndarray:
        """Rows of the prompt, placeholder by placeholder, where no unit has prefix rows."""
        whole = np.concatenate(list(model_of(self.model, image.pixel_values).features(image.pixel_values)))
        starts = np.cumsum([0, *(unit.tokens for unit in image.plan.units)])
        chosen = {int(start + token) for start, own in zip(starts, kept, strict=False) for token in own}
        rows = [
            NEWLINE_VECTOR if row == NEWLINE else whole[row]
            for row in image.plan.sequence.tolist()
            if (row == NEWLINE and newline == "keep_all") or row in chosen
        ]
        return np.stack(rows)


def kept_by_hand(setup: Setup, image: PreparedImage, counts: Sequence[int]) -> list[list[int]]:
    """What `rank` keeps of every unit: the valid tokens in the order of their scores."""
    scores = model_of(setup.model, image.pixel_values).scores(image.pixel_values)
    kept = []
    for unit, own, count in zip(image.plan.units, scores, counts, strict=True):
        best = sorted(unit.valid_indices.tolist(), key=lambda token: (-own[token], token))
        kept.append(sorted(best[:count]))
    return kept


def test_units_of_equal_count_share_calls_of_at_most_eight() -> None:
    setup = Setup(BIG)
    images = setup.prepared((48, 48), (16, 32))  # ten units and three
    encoded = setup.encode(images, [[5] * 10, [5] * 3])
    assert [len(call[contract.PIXEL_VALUES]) for call in setup.calls] == [8, 5]
    pixels = np.concatenate([call[contract.PIXEL_VALUES] for call in setup.calls])
    np.testing.assert_array_equal(pixels, np.concatenate([image.pixel_values for image in images]))
    for image, own in zip(images, encoded, strict=True):
        assert [kept.tolist() for kept in own.kept] == kept_by_hand(setup, image, own.counts)
        np.testing.assert_array_equal(own.features, setup.expected(image, own.kept))


def test_unequal_counts_are_calls_of_their_own() -> None:
    setup = Setup(BIG)
    images = setup.prepared((16, 32), (16, 32))
    encoded = setup.encode(images, [[6, 5, 5], [5, 6, 4]])
    fed = [(int(call[contract.NUM_KEEP][0]), len(call[contract.PIXEL_VALUES])) for call in setup.calls]
    assert sorted(fed) == [(4, 1), (5, 3), (6, 2)]
    assert [image.counts for image in encoded] == [(6, 5, 5), (5, 6, 4)]
    for image, own in zip(images, encoded, strict=True):
        assert [kept.tolist() for kept in own.kept] == kept_by_hand(setup, image, own.counts)
        np.testing.assert_array_equal(own.features, setup.expected(image, own.kept))


def test_pictures_of_different_sizes_are_calls_of_their_own() -> None:
    setup = Setup(AnySizeLayout())
    images = setup.prepared((16, 16), (8, 32), (16, 16))  # all of 16 tokens
    setup.encode(images, [[4], [4], [4]])
    assert sorted(call[contract.PIXEL_VALUES].shape for call in setup.calls) == [
        (1, 3, 8, 32),
        (2, 3, 16, 16),
    ]


@pytest.mark.parametrize("pruned", [True, False])
def test_images_with_inputs_of_their_own_are_never_batched(pruned: bool) -> None:
    setup = Setup(GuidedLayout((4, 4), 16, {"height": 16, "width": 16}, None, None))
    images = setup.prepared((40, 30), (7, 9), (40, 30))
    if pruned:
        setup.encode(images, [[4], [4], [4]])
    else:
        setup.encoder.encode_unpruned(images)
    calls = setup.sessions[PRUNED if pruned else WHOLE].calls
    assert [call["size"].tolist() for call in calls] == [[40, 30], [7, 9], [40, 30]]
    assert all(len(call[contract.PIXEL_VALUES]) == 1 for call in calls)


def test_masks_say_where_the_picture_is_and_empty_units_are_not_encoded() -> None:
    setup = Setup(CANVAS)
    (image,) = setup.prepared(STRIP)
    valid = [unit.prunable for unit in image.plan.units]
    assert valid == STRIP_VALID
    counts = [(count + 1) // 3 for count in valid]
    (encoded,) = setup.encode([image], [counts])
    assert sum(len(call[contract.PIXEL_VALUES]) for call in setup.calls) == sum(count > 0 for count in valid)
    seen = {}
    for call in setup.calls:
        assert call[contract.TOKEN_MASK].dtype == np.bool_
        for pixels, mask in zip(call[contract.PIXEL_VALUES], call[contract.TOKEN_MASK], strict=True):
            seen[pixels.tobytes()] = mask
    for unit, pixels in zip(image.plan.units, image.pixel_values, strict=True):
        if unit.prunable:
            assert np.flatnonzero(seen[pixels.tobytes()]).tolist() == unit.valid_indices.tolist()
    assert [kept.tolist() for kept in encoded.kept] == kept_by_hand(setup, image, counts)
    np.testing.assert_array_equal(encoded.features, setup.expected(image, encoded.kept))
    assert encoded.scores is not None
    assert [scores.shape for scores in encoded.scores] == [(16,)] * 10
    # Numbers of kept tokens go through all units.
    expected = [16 * number + token for number, own in enumerate(encoded.kept) for token in own.tolist()]
    assert encoded.kept_indices.tolist() == expected


def test_an_image_whose_tiles_are_all_padding() -> None:
    setup = Setup(AnyresLayout((32, 32), (8, 8), ((32, 64), (64, 32), (64, 64))))
    (image,) = setup.prepared((1, 900))
    counts = [5] + [0] * (len(image.plan.units) - 1)
    (encoded,) = setup.encode([image], [counts])
    assert len(setup.calls) == 1
    assert len(encoded.features) == 5


def test_no_mask_and_no_grid_where_neither_is_needed() -> None:
    setup = Setup(SingleLayout((4, 4), 16, {"height": 16, "width": 16}, None, None))
    setup.encode(setup.prepared((16, 16)), [[4]])
    assert set(setup.calls[0]) == {contract.PIXEL_VALUES, contract.NUM_KEEP}
    setup = Setup(AnySizeLayout())
    setup.encode(setup.prepared((16, 16)), [[4]])
    assert set(setup.calls[0]) == {contract.PIXEL_VALUES, contract.NUM_KEEP}


def test_the_grid_is_fed_where_rows_vary_in_length() -> None:
    setup = Setup(AnySizeLayout(), ToyModel(strategy="row"))
    assert setup.manifest.grid_input
    images = setup.prepared((16, 12), (8, 32))
    encoded = setup.encode(images, [[6], [8]])
    assert [call[contract.GRID].tolist() for call in setup.calls] == [[4, 3], [2, 8]]
    assert all(call[contract.GRID].dtype == np.int64 for call in setup.calls)
    for image, own, keep in zip(images, encoded, (6, 8), strict=True):
        model = model_of(setup.model, image.pixel_values)
        assert own.kept_indices.tolist() == model.kept(image.pixel_values, keep)[0].tolist()
    fixed = Setup(BIG, ToyModel(strategy="row"))
    assert not fixed.manifest.grid_input


def test_rows_with_padding_at_their_sides() -> None:
    setup = Setup(AnyresLayout((16, 16), (4, 4), ((32, 32),)), ToyModel(strategy="row"))
    (image,) = setup.prepared((32, 23))  # one column of padding on both sides
    columns = [4, 3, 3, 3, 3]
    assert [unit.valid_grid for unit in image.plan.units] == [(4, count) for count in columns]
    (encoded,) = setup.encode([image], [[8, 6, 6, 3, 9]])
    # The graph keeps whole rows of its grid; the host leaves out what is padding.
    assert sorted(int(call[contract.NUM_KEEP][0]) for call in setup.calls) == [4, 8, 12]
    assert encoded.counts == (8, 6, 6, 3, 9)
    scores = setup.model.scores(image.pixel_values)
    for unit, own, kept in zip(image.plan.units, scores, encoded.kept, strict=True):
        valid = unit.valid_indices.reshape(unit.valid_grid)
        means = own[valid].mean(axis=1)
        rows = np.sort(np.argsort(-means)[: len(kept) // valid.shape[1]])
        assert kept.tolist() == valid[rows].reshape(-1).tolist()
    np.testing.assert_array_equal(encoded.features, setup.expected(image, encoded.kept))
    with pytest.raises(RequestError, match='strategy "row" keeps whole rows of 3 tokens, not 4: give a mul'):
        setup.encode([image], [[8, 4, 6, 3, 9]])


@pytest.mark.parametrize("selector", ["rank", "row", "uniform", "random"])
def test_host_selectors_see_the_valid_tokens_alone(selector: str) -> None:
    setup = Setup(CANVAS)
    (image,) = setup.prepared(STRIP)
    assert [unit.prunable for unit in image.plan.units] == STRIP_VALID
    counts = [count // 2 for count in STRIP_VALID]
    (encoded,) = setup.encode([image], [counts], selector)
    assert encoded.counts == tuple(counts)
    for unit, kept in zip(image.plan.units, encoded.kept, strict=True):
        assert np.isin(kept, unit.valid_indices).all()
    if selector == "rank":
        assert [kept.tolist() for kept in encoded.kept] == kept_by_hand(setup, image, counts)
    places = [kept.tolist() for kept in encoded.kept if len(kept)]
    if selector == "row":
        assert all(own[0] % 4 == 0 and own == list(range(own[0], own[0] + 4)) for own in places[1:])
    if selector == "uniform":
        strip = image.plan.units[4].valid_indices
        assert strip.tolist() == list(range(4, 12))
        assert places[1:] == [strip[[1, 3, 5, 7]].tolist()] * 3
    if selector == "random":
        assert len({tuple(own) for own in places[1:]}) == 3  # every unit has a seed of its own
    np.testing.assert_array_equal(encoded.features, setup.expected(image, encoded.kept))
    assert (encoded.scores is None) is (selector in ("uniform", "random"))


def test_stitched_rows_are_chosen_on_the_host() -> None:
    setup = Setup(BIG, ToyModel(strategy="row"), {"row_scope": "stitched"})
    (image,) = setup.prepared((48, 48))
    (encoded,) = setup.encode([image], [[8, 3 * 12]])
    assert {int(call[contract.NUM_KEEP][0]) for call in setup.calls} == {16}  # all scores, all features
    scores = setup.model.scores(image.pixel_values)
    canvas = scores[1:].reshape(3, 3, 4, 4).transpose(0, 2, 1, 3).reshape(12, 12)
    best = set(np.argsort(-canvas.mean(axis=1))[:3].tolist())
    for number, kept in enumerate(encoded.kept[1:]):
        rows = [y for y in range(4) if number // 3 * 4 + y in best]
        assert kept.tolist() == [y * 4 + x for y in rows for x in range(4)]
    overview = np.sort(np.argsort(-scores[0].reshape(4, 4).mean(axis=1))[:2])
    assert np.unique(encoded.kept[0] // 4).tolist() == overview.tolist()
    assert len(encoded.kept[0]) == 8
    np.testing.assert_array_equal(encoded.features, setup.expected(image, encoded.kept))


def test_unpruned_images_have_every_token_but_padding() -> None:
    setup = Setup(CANVAS)
    images = setup.prepared(STRIP, (48, 48))
    encoded = setup.encoder.encode_unpruned(images)
    assert setup.calls == []
    for image, own in zip(images, encoded, strict=True):
        assert len(own.features) == image.plan.placeholders
        everything = [unit.valid_indices for unit in image.plan.units]
        assert [kept.tolist() for kept in own.kept] == [kept.tolist() for kept in everything]
        np.testing.assert_array_equal(own.features, setup.expected(image, everything))


@pytest.mark.parametrize("newline", ["keep_all", "keep_nonempty", "drop"])
def test_newline_vectors_stand_where_the_policy_says(newline: str) -> None:
    setup = Setup(BIG, pruning={"newline": newline})
    (image,) = setup.prepared((48, 48))
    (encoded,) = setup.encode([image], [[2] * 10])
    vectors = (encoded.features == NEWLINE_VECTOR).all(axis=1)
    lines = {
        number // 3 * 4 + token // 4 for number, own in enumerate(encoded.kept[1:]) for token in own.tolist()
    }
    expected = {"keep_all": 12, "keep_nonempty": len(lines), "drop": 0}[newline]
    assert int(vectors.sum()) == expected
    np.testing.assert_array_equal(encoded.features[~vectors], setup.expected(image, encoded.kept, "drop"))


def test_prefix_rows_of_an_image_that_is_pruned_by_the_host() -> None:
    model = ToyModel(prefix=1)
    setup = Setup(SingleLayout((4, 4), 16, {"height": 16, "width": 16}, None, None, 1), model)
    images = setup.prepared((16, 16), (16, 16))
    for selector in ("graph", "rank"):
        encoded = setup.encode(images, [[3], [5]], selector)
        for image, own in zip(images, encoded, strict=True):
            whole = model.features(image.pixel_values)[0]
            np.testing.assert_array_equal(own.features, whole[[0, *(own.kept_indices + 1)]])


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ([[5, 5]], "got 2 counts for an image that is seen in 3 parts: make them with plan_pruning"),
        ([[5, 5, 17]], r"cannot keep 17 tokens: this part of the image has 16, give 1\.\.16"),
        ([[5, 0, 5]], r"cannot keep 0 tokens: this part of the image has 16, give 1\.\.16"),
        ([], "got counts for 0 images, but there are 1: make them with plan_pruning"),
    ],
)
def test_counts_that_do_not_fit(counts: list[list[int]], message: str) -> None:
    setup = Setup(BIG)
    with pytest.raises(RequestError, match=message):
        setup.encode(setup.prepared((16, 32)), counts)


def test_a_score_that_is_not_a_number_in_any_unit() -> None:
    setup = Setup(BIG)
    (image,) = setup.prepared((16, 32))
    image.pixel_values[2, 0, 0, 0] = np.nan
    with pytest.raises(BackendError, match="the vision encoder gave a token score that is not finite"):
        setup.encode([image], [[4, 4, 4]])
