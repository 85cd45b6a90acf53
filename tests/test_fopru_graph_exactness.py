"""Exported CLIP and SigLIP encoders, pruned, against their unpruned selves and against plain PyTorch."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
from onnxruntime.capi.onnxruntime_pybind11_state import Fail

from fopru_graph import PruneOptions, PruneReport, prune_file
from tests.toy_encoders import Toy, export, pixels, reference, select_rank, select_rows

IMAGES = 3

CLIP = Toy()
ENCODERS = {
    "clip sdpa 20": CLIP,
    "clip eager 20": Toy(attention="eager"),
    "clip sdpa 23": Toy(opset=23),
    "clip sdpa 20 full": Toy(strategy="full"),
    "clip sdpa 23 full last": Toy(opset=23, strategy="full", feature_layer=-1),
    "clip sdpa 20 list": Toy(feature_layer=(-3, -2)),
    "clip sdpa 23 list full": Toy(opset=23, feature_layer=(-2, -1), strategy="full"),
    "siglip sdpa 20 default": Toy(family="siglip", feature_layer=-1),
    "siglip eager 23 full": Toy(family="siglip", attention="eager", opset=23, strategy="full"),
    "siglip sdpa 23 full": Toy(family="siglip", opset=23, strategy="full", feature_layer=-1),
}
with_encoders = pytest.mark.parametrize("toy", ENCODERS.values(), ids=ENCODERS.keys())

# ONNX Runtime multiplies a single row by another routine than many: same sums, other order. Features
# are of size 1 here, so that some units of float32 rounding (6e-8) in the last layer stay below this.
ONE_ROW = 2e-6


def options(toy: Toy, **choices: object) -> PruneOptions:
    fixed = {"prefix_tokens": toy.prefix, "special_tokens": toy.special}
    return PruneOptions(**{**fixed, **choices})  # type: ignore[arg-type]


@functools.cache
def session(path: Path) -> ort.InferenceSession:
    return ort.InferenceSession(path, providers=["CPUExecutionProvider"])


@functools.cache
def pruned(toy: Toy, chosen: PruneOptions) -> tuple[ort.InferenceSession, PruneReport]:
    source = export(toy)
    target = source.with_name(f"{source.stem}_{abs(hash(chosen))}.onnx")
    report = prune_file(source, target, chosen)
    return session(target), report


def run(toy: Toy, chosen: PruneOptions, images: np.ndarray, keep: int) -> dict[str, np.ndarray]:
    encoder, _ = pruned(toy, chosen)
    names = [output.name for output in encoder.get_outputs()]
    values = encoder.run(None, {"pixel_values": images, "num_keep": np.array([keep], np.int64)})
    return dict(zip(names, values, strict=True))


def unpruned(toy: Toy, images: np.ndarray) -> np.ndarray:
    (features,) = session(export(toy)).run(None, {"pixel_values": images})
    return np.asarray(features)


def kept_rows(features: np.ndarray, toy: Toy, kept: np.ndarray) -> np.ndarray:
    """Prefix rows, then the kept ones."""
    prefix = np.tile(np.arange(toy.prefix), (len(kept), 1))
    rows = np.concatenate([prefix, kept + toy.prefix], axis=1)
    return np.take_along_axis(features, rows[:, :, None], axis=1)


@with_encoders
def test_keeping_all_tokens_changes_no_bit(toy: Toy) -> None:
    images = pixels(toy, IMAGES)
    out = run(toy, options(toy), images, toy.tokens)
    assert np.array_equal(out["kept_indices"], np.tile(np.arange(toy.tokens), (IMAGES, 1)))
    assert out["image_features"].tobytes() == unpruned(toy, images).tobytes()


@with_encoders
@pytest.mark.parametrize("images", [1, IMAGES])
def test_every_count_gives_rows_of_the_unpruned_features(toy: Toy, images: int) -> None:
    batch = pixels(toy, images, seed=1)
    whole = unpruned(toy, batch)
    for keep in range(1, toy.tokens + 1):
        out = run(toy, options(toy), batch, keep)
        expected = kept_rows(whole, toy, out["kept_indices"])
        assert out["image_features"].shape == expected.shape == (images, toy.prefix + keep, whole.shape[2])
        if keep + toy.prefix == 1:
            assert np.abs(out["image_features"] - expected).max() <= ONE_ROW
        else:
            assert out["image_features"].tobytes() == expected.tobytes()


@pytest.mark.parametrize(
    ("name", "aggregation"),
    [
        (name, aggregation)
        for name, toy in ENCODERS.items()
        for aggregation in ("col_mean", "col_mean_patch", "cls")
        if toy.special or aggregation != "cls"
    ],
)
def test_scores_and_indices_are_those_of_pytorch(name: str, aggregation: str) -> None:
    toy = ENCODERS[name]
    images = pixels(toy, IMAGES, seed=2)
    truth = reference(toy, images)
    scores = truth.scores(aggregation)
    chosen = options(toy, aggregation=aggregation)
    for keep in range(1, toy.tokens + 1):
        out = run(toy, chosen, images, keep)
        assert np.array_equal(out["kept_indices"], select_rank(scores, keep))
        # Scores are of size 1/Q. Two frameworks differ by some roundings per layer before the softmax.
        assert np.abs(out["token_scores"] - scores).max() <= 5e-6 * scores.max()
        expected = kept_rows(truth.features, toy, out["kept_indices"])
        # PyTorch and ONNX Runtime order their sums differently in every layer; features are of size 1.
        assert np.abs(out["image_features"] - expected).max() <= 5e-6


@pytest.mark.parametrize("name", ["clip sdpa 20", "clip sdpa 23 full last", "siglip sdpa 23 full"])
def test_row_strategy_keeps_whole_rows_of_the_grid(name: str) -> None:
    toy = ENCODERS[name]
    images = pixels(toy, IMAGES, seed=3)
    rows, columns = toy.grid
    chosen = options(toy, strategy="row", grid=toy.grid)
    whole = unpruned(toy, images)
    scores = reference(toy, images).scores("col_mean")
    for count in range(1, rows + 1):
        out = run(toy, chosen, images, count * columns)
        assert np.array_equal(out["kept_indices"], select_rows(scores, toy.grid, count * columns))
        assert out["image_features"].tobytes() == kept_rows(whole, toy, out["kept_indices"]).tobytes()


@pytest.mark.parametrize("name", ["clip sdpa 20", "clip sdpa 23"])
def test_scores_of_an_earlier_layer(name: str) -> None:
    # The last used layer still computes kept rows only, now from the queries on.
    toy = ENCODERS[name]
    images = pixels(toy, IMAGES, seed=4)
    chosen = options(toy, layer=0)
    scores = reference(toy, images).scores("col_mean", layer=0)
    out = run(toy, chosen, images, 5)
    assert np.array_equal(out["kept_indices"], select_rank(scores, 5))
    assert (
        out["image_features"].tobytes()
        == kept_rows(unpruned(toy, images), toy, out["kept_indices"]).tobytes()
    )
    _, report = pruned(toy, chosen)
    assert (report.layer, report.gather) == (0, "early")
    assert not any("Softmax" in name or "attention" in name for name in report.gathered)


@with_encoders
def test_report_names_layer_locator_and_place(toy: Toy) -> None:
    _, report = pruned(toy, options(toy))
    assert (report.layer, report.locator, report.gather) == (toy.layer, "scope", "early")
    assert (report.tokens, report.heads, report.dropped_rows) == (toy.tokens, 2, toy.dropped)
    attention_op = toy.opset == 23 and toy.attention == "sdpa"
    assert report.form == ("attention_op" if attention_op else "softmax")
    assert report.score_path == ("side_branch" if attention_op else "one_pass")
    assert report.locator_misses == ()


def test_images_of_one_batch_are_pruned_apart() -> None:
    toy = CLIP
    images = pixels(toy, IMAGES, seed=5)
    together = run(toy, options(toy), images, 6)
    for position in range(IMAGES):
        alone = run(toy, options(toy), images[position : position + 1], 6)
        assert np.array_equal(alone["kept_indices"][0], together["kept_indices"][position])
        assert alone["image_features"][0].tobytes() == together["image_features"][position].tobytes()
    assert len(np.unique(together["kept_indices"], axis=0)) > 1


def test_more_tokens_than_there_are_is_an_error_of_the_runtime() -> None:
    with pytest.raises(Fail, match=r"TopK.*k argument \[17\] should not be greater"):
        run(CLIP, options(CLIP), pixels(CLIP, 1), CLIP.tokens + 1)
