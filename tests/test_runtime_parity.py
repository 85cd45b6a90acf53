"""Stage-by-stage comparison and the replay of golden tensors: every planted difference is named."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from runtime.bundle import load_bundle
from runtime.check import check_bundle, main
from runtime.errors import BundleError
from runtime.generator import Generator
from runtime.golden import GOLDEN_RECORD, GOLDEN_TENSORS, load_golden
from runtime.manifest import Manifest
from runtime.parity import (
    STAGES,
    TIE_WINDOW,
    Stage,
    UnitScores,
    compare,
    compare_stage,
    format_report,
    measure,
)
from runtime.plan import Amount
from tests.toy_bundle import TILES, WIDTH, ToyModel, packed, rehash, toy_photo, write_toy_bundle

NAMES = tuple(stage.name for stage in STAGES)
ONE_UNIT = UnitScores((16,))


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_toy_bundle(tmp_path_factory.mktemp("bundles") / "toy")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_toy_bundle(tmp_path / "toy")


@pytest.fixture(scope="module")
def reference(shared: Path) -> dict[str, np.ndarray]:
    return load_golden(load_bundle(shared))[1]


def test_stages_are_the_golden_keys_in_order(reference: dict[str, np.ndarray]) -> None:
    assert tuple(reference) == NAMES
    assert all(stage.reason for stage in STAGES)


@pytest.mark.parametrize(
    "model",
    [
        ToyModel(),
        ToyModel(prefix=1),
        ToyModel(grid=(4, 3), strategy="row"),
        ToyModel(pinpoints=TILES),
        ToyModel(pinpoints=TILES, strategy="row"),
    ],
)
def test_toys_agree_with_numpy(tmp_path: Path, model: ToyModel) -> None:
    report = check_bundle(load_bundle(write_toy_bundle(tmp_path / "toy", model)), threads=1)
    assert report.ok, format_report(report)
    assert [stage.name for stage in report.stages] == list(NAMES)
    assert report.first_divergence is None
    # The toy's sums are exact, so the features are bit-equal and only the energy sum may round.
    assert all(stage.max_abs_diff == 0.0 for stage in report.stages if stage.name != "token_scores")


def test_measure_takes_several_images(shared: Path) -> None:
    generator = Generator(load_bundle(shared), threads=1)
    model = ToyModel()
    photos = [toy_photo(model.size), toy_photo(model.size, 9)]
    measured, units = measure(generator, photos, "what?", Amount(tokens=4), 3)
    assert set(measured) == set(NAMES)
    assert units == UnitScores((16, 16))
    pixels = measured["pixel_values"].reshape(2, 3, *model.size)
    assert measured["kept_indices"].tolist() == model.kept(pixels, 4).reshape(-1).tolist()
    assert measured["kept_counts"].tolist() == [4, 4]
    np.testing.assert_array_equal(measured["image_features"], model.features(pixels).reshape(-1, WIDTH))
    assert measured["position_ids"].tolist() == [list(range(measured["input_ids"].size))]
    assert measured["tokens"].shape == (1, 3)


def test_measure_keeps_everything_without_an_amount(shared: Path) -> None:
    generator = Generator(load_bundle(shared), threads=1)
    measured, _ = measure(generator, [toy_photo(ToyModel().size)], "what?", Amount(), 1)
    assert measured["kept_counts"].tolist() == [16]  # not the bundle's default
    np.testing.assert_array_equal(measured["pruned_features"], measured["image_features"])


def test_measure_of_images_with_different_units(tmp_path: Path) -> None:
    model = ToyModel(pinpoints=TILES)
    generator = Generator(load_bundle(write_toy_bundle(tmp_path / "toy", model)), threads=1)
    photos = [toy_photo((32, 32)), toy_photo((32, 16), 9)]  # 2 x 2 tiles, 2 x 1 tiles
    measured, units = measure(generator, photos, "what?", Amount(ratio=0.25), 1)
    assert units == UnitScores((16,) * 8)
    assert measured["kept_counts"].tolist() == [4] * 8
    pixels = measured["pixel_values"].reshape(8, 3, *model.size)
    kept = model.kept(pixels, 4)
    assert measured["kept_indices"].tolist() == kept.reshape(-1).tolist()
    first = packed(model, pixels[:5], kept[:5])
    np.testing.assert_array_equal(measured["pruned_features"][: len(first)], first)
    assert len(measured["pruned_features"]) == (5 * 4 + 8) + (3 * 4 + 8)
    assert len(measured["image_features"]) == (5 * 16 + 8) + (3 * 16 + 8)


def test_measure_keeps_everything_of_a_stitched_picture(tmp_path: Path) -> None:
    def edit(manifest: Manifest) -> Manifest:
        return replace(manifest, pruning=replace(manifest.pruning, row_scope="stitched"))

    model = ToyModel(pinpoints=TILES, strategy="row")
    generator = Generator(load_bundle(write_toy_bundle(tmp_path / "toy", model, edit)), threads=1)
    measured, _ = measure(generator, [toy_photo((32, 32))], "what?", Amount(), 1)
    assert measured["kept_counts"].tolist() == [16] * 5
    np.testing.assert_array_equal(measured["pruned_features"], measured["image_features"])


@pytest.mark.parametrize(
    ("model", "photo", "scope", "expected"),
    [
        (ToyModel(grid=(4, 3), strategy="row"), (16, 12), "tile", UnitScores((12,), (3,))),
        (ToyModel(pinpoints=TILES, strategy="row"), (32, 32), "tile", UnitScores((16,) * 5, (4,) * 5)),
        (ToyModel(pinpoints=TILES, strategy="row"), (20, 32), "tile", None),  # rows of padding: no near-ties
        (ToyModel(pinpoints=TILES, strategy="row"), (32, 32), "stitched", None),
    ],
)
def test_how_scores_are_read(
    tmp_path: Path, model: ToyModel, photo: tuple[int, int], scope: str, expected: UnitScores | None
) -> None:
    def edit(manifest: Manifest) -> Manifest:
        return replace(manifest, pruning=replace(manifest.pruning, row_scope=scope))

    generator = Generator(load_bundle(write_toy_bundle(tmp_path / "toy", model, edit)), threads=1)
    _, units = measure(generator, [toy_photo(photo)], "what?", Amount(ratio=0.5), 1)
    assert units == expected


@pytest.mark.parametrize("name", NAMES)
def test_every_stage_can_diverge(reference: dict[str, np.ndarray], name: str) -> None:
    measured = {key: array.copy() for key, array in reference.items()}
    place = (0,) * measured[name].ndim
    measured[name][place] += 1
    report = compare(reference, measured)
    assert not report.ok
    assert report.first_divergence == name
    shown = next(stage for stage in report.stages if stage.name == name)
    assert "of" in shown.detail
    assert "first at [" in shown.detail
    assert f"first stage that diverges: {name}" in format_report(report)


@pytest.mark.parametrize("name", NAMES)
def test_a_missing_or_misshapen_stage_diverges(reference: dict[str, np.ndarray], name: str) -> None:
    without = {key: array for key, array in reference.items() if key != name}
    assert compare(reference, without).first_divergence == name
    assert "missing from the measured arrays" in format_report(compare(reference, without))
    short = {**reference, name: reference[name][..., :-1]}
    report = compare(reference, short)
    assert report.first_divergence == name
    assert "shape [" in format_report(report)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_values_that_are_not_numbers_diverge(reference: dict[str, np.ndarray], bad: float) -> None:
    measured = {**reference, "logits": np.full_like(reference["logits"], bad)}
    assert compare(reference, measured).first_divergence == "logits"


@pytest.mark.parametrize(
    ("scale", "allowed"), [("absolute", 0.01), ("of max", 0.04), ("of mean", 0.02), ("exact", 0.01)]
)
def test_scale_of_a_tolerance(scale: str, allowed: float) -> None:
    reference = np.array([0.0, -4.0, 2.0, 2.0])
    stage = Stage("x", 0.01, scale, "because")
    for factor, ok in ((0.99, True), (1.01, False)):
        result = compare_stage(stage, reference, reference + np.array([0, 0, allowed * factor, 0]))
        assert result.tolerance == pytest.approx(allowed, rel=1e-12)  # one multiplication
        assert result.ok is ok


def swapped(
    reference: dict[str, np.ndarray], gap: float
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """A reference with two scores `gap` (relative) apart at the K boundary, and one that took the other."""
    scores = np.linspace(2.0, 1.0, 16, dtype=np.float64)
    scores[8] = scores[7] * (1 - gap)
    kept, other = np.arange(8), np.array([0, 1, 2, 3, 4, 5, 6, 8])
    mine = {**reference, "token_scores": scores, "kept_indices": kept}
    theirs = {**mine, "kept_indices": other, "tokens": mine["tokens"] + 1}
    return mine, theirs


def test_near_tie_is_accepted_and_named(reference: dict[str, np.ndarray]) -> None:
    report = compare(*swapped(reference, TIE_WINDOW / 2), ONE_UNIT)
    assert report.ok
    stages = {stage.name: stage for stage in report.stages}
    assert "near-tie: the scores of tokens [7, 8] are equal within 1e-05" in stages["kept_indices"].detail
    skipped = [name for name, stage in stages.items() if stage.skipped]
    assert skipped == ["pruned_features", "position_ids", "inputs_embeds", "logits", "tokens"]
    assert "not compared: other tokens were kept" in format_report(report)


def test_wider_than_a_near_tie_diverges(reference: dict[str, np.ndarray]) -> None:
    assert compare(*swapped(reference, TIE_WINDOW * 2), ONE_UNIT).first_divergence == "kept_indices"


def test_near_tie_of_rows_is_between_their_means(reference: dict[str, np.ndarray]) -> None:
    scores = np.array([5.0, 1.0, 3.0, 3.0 + 1e-9, 0.0, 0.0, 0.0, 0.0])
    mine = {**reference, "kept_counts": np.array([2]), "token_scores": scores, "kept_indices": np.arange(2)}
    theirs = {**mine, "kept_indices": np.array([2, 3])}
    assert compare(mine, theirs, UnitScores((8,), (2,))).ok
    for units in (UnitScores((8,)), None):
        assert compare(mine, theirs, units).first_divergence == "kept_indices"


def test_near_tie_is_judged_unit_by_unit(reference: dict[str, np.ndarray]) -> None:
    """Two tied tokens, of which one is in another unit, are no near-tie: each unit keeps its own number."""
    scores = np.array([3.0, 2.0, 2.0, 1.0, 2.0, 5.0, 2.0])
    mine = {
        **reference,
        "kept_counts": np.array([2, 2]),
        "token_scores": scores,
        "kept_indices": np.array([0, 1, 0, 1]),
    }
    units = UnitScores((4, 3))
    for indices, ok in (
        ([0, 2, 0, 1], True),
        ([0, 2, 1, 2], True),
        ([0, 3, 0, 1], False),
        ([0, 1, 0, 3], False),
    ):
        report = compare(mine, {**mine, "kept_indices": np.array(indices)}, units)
        assert report.ok is ok, indices
    other_counts = {**mine, "kept_counts": np.array([1, 3]), "kept_indices": np.array([0, 0, 1, 2])}
    report = compare(mine, other_counts, units)
    assert [stage.name for stage in report.stages if not stage.ok] == ["kept_counts", "kept_indices"]


@pytest.mark.parametrize("wrong", [[0, 1, 2, 3, 4, 5, 6, 99], [-1, 1, 2, 3, 4, 5, 6, 7]])
def test_indices_out_of_range_are_no_tie(reference: dict[str, np.ndarray], wrong: list[int]) -> None:
    mine, theirs = swapped(reference, 0.0)
    theirs["kept_indices"] = np.array(wrong)
    assert compare(mine, theirs, ONE_UNIT).first_divergence == "kept_indices"


def test_right_set_in_wrong_order_is_no_tie(reference: dict[str, np.ndarray]) -> None:
    mine, theirs = swapped(reference, 0.0)
    theirs["kept_indices"] = mine["kept_indices"][::-1]
    assert compare(mine, theirs, ONE_UNIT).first_divergence == "kept_indices"


def test_report_as_json(reference: dict[str, np.ndarray]) -> None:
    record = json.loads(json.dumps(compare(reference, reference).to_dict()))
    assert record["ok"] is True
    assert record["first_divergence"] is None
    assert [stage["name"] for stage in record["stages"]] == list(NAMES)
    assert {"max_abs_diff", "tolerance", "reason", "ok", "detail", "skipped"} < set(record["stages"][0])


def corrupt_golden(root: Path, name: str) -> None:
    tensors = dict(np.load(root / GOLDEN_TENSORS))
    tensors[name] = tensors[name] + 1
    np.savez(root / GOLDEN_TENSORS, **tensors)


def test_check_names_the_stage_of_a_corrupted_golden(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(root), "--threads", "1"]) == 0
    assert "every stage agrees with the reference" in capsys.readouterr().out
    corrupt_golden(root, "inputs_embeds")
    assert main([str(root)]) == 2  # size or hash find it first
    assert "golden.npz" in capsys.readouterr().err
    rehash(root)
    assert main([str(root), "--threads", "1"]) == 1
    assert "first stage that diverges: inputs_embeds" in capsys.readouterr().out


def test_check_as_json(shared: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(shared), "--json", "--threads", "1"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["ok"] is True
    assert record["bundle"] == str(shared)


def test_check_needs_no_torch(shared: Path) -> None:
    code = (
        "import sys, runtime.check as c; rc = c.main(sys.argv[1:]);"
        "sys.exit(rc or any(m in sys.modules for m in ('torch', 'transformers', 'onnx')))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(shared), "--threads", "1"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "toy against numpy" in done.stdout


def test_check_of_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path / "none")]) == 2
    assert capsys.readouterr().err.startswith("error: there is no bundle at ")


def test_ctrl_c(shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("runtime.check.check_bundle", interrupt)
    assert main([str(shared)]) == 130


def test_bundle_without_golden(root: Path) -> None:
    for name in (GOLDEN_RECORD, GOLDEN_TENSORS):
        (root / name).unlink()
    rehash(root)
    with pytest.raises(BundleError, match=r"has no golden/golden.json: rebuild"):
        check_bundle(load_bundle(root))


@pytest.mark.parametrize(
    ("name", "content"), [(GOLDEN_RECORD, b"{"), (GOLDEN_TENSORS, b"PK"), (GOLDEN_TENSORS, b"")]
)
def test_damaged_golden(root: Path, name: str, content: bytes) -> None:
    (root / name).write_bytes(content)
    rehash(root)
    with pytest.raises(
        BundleError, match=r"the golden tensors of .* cannot be read \(.*\): copy the bundle again"
    ):
        load_golden(load_bundle(root))


def test_golden_record_with_a_wrong_type(root: Path) -> None:
    record = json.loads((root / GOLDEN_RECORD).read_text())
    (root / GOLDEN_RECORD).write_text(json.dumps({**record, "tokens": "8"}))
    rehash(root)
    with pytest.raises(BundleError, match=r"golden/golden.json.tokens is '8', expected an integer"):
        load_golden(load_bundle(root))


def test_golden_of_format_1_with_a_budget(root: Path) -> None:
    """Format 1 wrote K as `num_keep`; where there was no ratio, that is the budget."""
    record = json.loads((root / GOLDEN_RECORD).read_text())
    old = {key: value for key, value in record.items() if key != "tokens"}
    for ratio, tokens in ((0.5, None), (None, 8)):
        (root / GOLDEN_RECORD).write_text(json.dumps({**old, "ratio": ratio, "num_keep": 8}))
        rehash(root)
        golden, _ = load_golden(load_bundle(root))
        assert (golden.ratio, golden.tokens) == (ratio, tokens)


def test_golden_tensors_of_format_1_are_flattened() -> None:
    frozen = Path(__file__).parent / "data" / "bundle_v1"
    with np.load(frozen / GOLDEN_TENSORS) as arrays:
        old = {name: arrays[name] for name in arrays.files}
    _, new = load_golden(load_bundle(frozen))
    assert set(new) - set(old) == {"kept_counts", "position_ids"}
    assert new["kept_counts"].tolist() == [old["kept_indices"].shape[1]]
    assert new["position_ids"].tolist() == [list(range(old["input_ids"].size))]
    for name, array in old.items():
        assert new[name].reshape(array.shape).tolist() == array.tolist()
    assert new["kept_indices"].ndim == new["token_scores"].ndim == 1
    assert new["pixel_values"].ndim == new["image_features"].ndim == new["pruned_features"].ndim == 2
