"""Per-component numbers of a bundle that is not float32: cosines, floors, and the sentence of a failure."""

from __future__ import annotations

import io
import json
from dataclasses import asdict

import numpy as np
import pytest
from rich.console import Console

from export.report import parity_table
from runtime import contract
from runtime.costs import FLOORS, Component, components_of, costs_of
from runtime.parity import STAGES, ParityReport, UnitScores, compare, length_gain, row_cosine

HALF = dict.fromkeys((contract.VISION_ENCODER, contract.VISION_ENCODER_FOPRU), "fp16")
LOSS = {"mean_cosine": 0.9995, "mean_gain": 1.001, "top1_agreement": 0.97}
ONE = pytest.approx(1.0)


def report(features: np.ndarray) -> ParityReport:
    reference = {stage.name: np.ones((2, 4)) for stage in STAGES}
    return compare(reference, {**reference, "image_features": features})


def test_the_cosine_is_that_of_rows() -> None:
    rng = np.random.default_rng(0)
    one, other = rng.standard_normal((2, 3, 5, 8)).astype(np.float32)
    by_hand = [
        a.astype(np.float64) @ b.astype(np.float64) / np.linalg.norm(a.astype(np.float64)) / np.linalg.norm(b)
        for a, b in zip(one.reshape(-1, 8), other.reshape(-1, 8), strict=True)
    ]
    assert row_cosine(one, other) == pytest.approx(np.mean(by_hand), rel=1e-6)  # norms of float32 rows
    assert row_cosine(one, 3 * one) == pytest.approx(1.0, abs=1e-12)


def test_rows_without_a_direction() -> None:
    zero, row = np.zeros((1, 3)), np.ones((1, 3))
    assert row_cosine(zero, zero) == 1.0
    assert row_cosine(zero, row) == 0.0
    assert row_cosine(row, np.full((1, 3), np.inf)) is None
    assert row_cosine(row, np.full((1, 3), np.nan)) is None


def test_features_and_logits_carry_their_cosine() -> None:
    features = np.ones((2, 4))
    features[0, :2] = -1  # one row of two is at a right angle
    cosines = {stage.name: stage.cosine for stage in report(features).stages}
    assert cosines["image_features"] == pytest.approx(0.5)
    assert cosines["logits"] == pytest.approx(1.0)
    assert cosines["kept_indices"] is None


def test_a_wrong_scale_fails_though_no_row_turns() -> None:
    found = {each.name: each for each in components_of(report(np.full((2, 4), 3.0)), HALF, None)}
    assert found["vision"].cosine == ONE
    assert found["vision"].failure is not None
    assert "3.000 times as large" in found["vision"].failure
    assert found["pruned vision"].failure is None


def test_the_gain_is_that_of_the_whole_array() -> None:
    one = np.array([[3.0, 0.0], [0.0, 4.0]], np.float32)
    assert length_gain(one, 2 * one) == 2.0
    assert length_gain(one, np.array([[0.0, 0.0], [0.0, 10.0]])) == 2.0
    assert length_gain(0 * one, 0 * one) == 1.0
    assert length_gain(0 * one, one) is None
    assert length_gain(one, np.full_like(one, np.nan)) is None
    assert length_gain(one, np.full_like(one, np.inf)) is None


def test_float32_has_no_components() -> None:
    assert components_of(report(np.ones((2, 4))), {}, None) == ()


def test_components_of_a_half_bundle() -> None:
    everything = {**HALF, contract.EMBED_TOKENS: "fp16", contract.DECODER_PORTABLE: "fp16"}
    vision, pruned, decoder = components_of(report(np.ones((2, 4))), everything, LOSS)
    assert pruned == Component("pruned vision", "fp16", ONE, None, FLOORS["fp16"], gain=ONE)
    assert vision == Component("vision", "fp16", ONE, None, FLOORS["fp16"], gain=ONE)
    assert decoder == Component("decoder", "fp16", 0.9995, 0.97, FLOORS["fp16"], gain=1.001)
    assert vision.failure is decoder.failure is None


def test_an_embedding_alone_counts_as_the_decoder() -> None:
    (found,) = components_of(report(np.ones((2, 4))), {contract.EMBED_TOKENS: "bf16"}, LOSS)
    assert (found.name, found.precision, found.floor) == ("decoder", "bf16", FLOORS["bf16"])


def test_weights_alone_have_no_floor() -> None:
    poor = {"mean_cosine": 0.5, "mean_gain": 2.0, "top1_agreement": 0.1}
    (found,) = components_of(report(np.ones((2, 4))), {contract.DECODER: "int4"}, poor)
    assert (found.floor, found.failure, found.to_dict()["ok"]) == (None, None, True)


@pytest.mark.parametrize(
    ("component", "sentence"),
    [
        (Component("vision", "fp16", 0.998, None, FLOORS["fp16"]), "vision in fp16 has the cosine 0.99800"),
        (Component("vision", "fp16", None, None, FLOORS["fp16"]), "has the cosine no number to float32"),
        (Component("decoder", "bf16", 0.98, 1.0, FLOORS["bf16"]), "at least 0.99 is expected"),
        (
            Component("selection", "fp16", None, None, FLOORS["fp16"], 0.5),
            "selection in fp16 keeps tokens worth 0.50, where those of float32 are 1 and the worst ones 0, "
            "at least 0.8 is expected: give vision another --precision",
        ),
        (Component("decoder", "fp16", 1.0, 0.9, FLOORS["fp16"]), "keeps 90.0% of the likeliest tokens"),
        (
            Component("vision", "fp16", 1.0, None, FLOORS["fp16"], gain=3.0),
            "vision in fp16 makes numbers 3.000 times as large as in float32, 0.98 to 1.02 is expected: give "
            "this part another --precision",
        ),
        (Component("decoder", "bf16", 1.0, 1.0, FLOORS["bf16"], gain=0.9), "0.900 times as large"),
    ],
)
def test_below_the_floor_the_component_is_named(component: Component, sentence: str) -> None:
    assert component.failure is not None
    assert sentence in component.failure
    assert component.to_dict() == {**asdict(component), "ok": False, "failure": component.failure}


def chosen(scores: list[float], kept: list[int]) -> ParityReport:
    """Two units of four tokens, two of each kept; the reference keeps the best."""
    reference = {stage.name: np.ones((2, 4)) for stage in STAGES}
    reference |= {
        "kept_counts": np.array([2, 2]),
        "token_scores": np.array([*scores, 4.0, 3.0, 2.0, 1.0], np.float32),
        "kept_indices": np.array([0, 1, 0, 1]),
    }
    measured = {**reference, "kept_indices": np.array([*kept, 0, 1])}
    return compare(reference, measured, UnitScores((4, 4)))


@pytest.mark.parametrize(
    ("scores", "kept", "worth"),
    [
        ([4.0, 3.0, 2.0, 1.0], [0, 1], 1.0),
        ([4.0, 3.0, 2.0, 1.0], [2, 3], 0.5),  # the worst of one unit, the best of the other
        ([4.0, 3.0, 2.0, 1.0], [0, 2], 0.875),  # 1 of 4 + 4 lost
        ([4.0, 3.0, 3.0, 1.0], [0, 2], 1.0),  # a tie costs nothing
        ([1.0, 1.0, 1.0, 1.0], [2, 3], 1.0),
        ([4.0, 3.0, 2.0, 1.0], [0, 9], None),  # no token of this unit
        ([4.0, 3.0, float("nan"), 1.0], [0, 1], None),
    ],
)
def test_what_kept_tokens_are_worth(scores: list[float], kept: list[int], worth: float | None) -> None:
    found = chosen(scores, kept)
    stage = next(each for each in found.stages if each.name == "kept_indices")
    assert stage.chosen == (worth if worth is None else pytest.approx(worth))
    names = [component.name for component in components_of(found, HALF, None)]
    same = kept == [0, 1]
    assert names == [
        "vision",
        *(["selection"] if worth is not None else []),
        *(["pruned vision"] if same else []),
    ]


def test_numbers_that_are_none_can_be_written_as_json() -> None:
    for value in (np.nan, np.inf):
        features = np.ones((2, 4))
        features[0, 0] = value
        found = report(features)
        assert found.first_divergence == "image_features"
        assert json.loads(json.dumps(found.to_dict(), allow_nan=False))["ok"] is False
    reference = {stage.name: np.full((2, 4), np.nan) for stage in STAGES}
    json.dumps(compare(reference, reference).to_dict(), allow_nan=False)
    assert "image_features" not in costs_of(report(np.full((2, 4), np.nan)), HALF)


def test_a_further_decoder_is_a_component() -> None:
    rows = np.arange(8).reshape(2, 4)
    reference = dict.fromkeys((stage.name for stage in STAGES), rows)
    name = f"logits of {contract.DECODER_PORTABLE}"
    found = compare(reference, {**reference, name: -rows})
    both = {contract.DECODER: "fp16", contract.DECODER_PORTABLE: "fp16"}
    first, second = components_of(found, both, LOSS)
    assert (first.name, first.failure) == ("decoder", None)
    assert second.failure is not None
    assert second.failure.startswith("decoder_model_portable in fp16 has the cosine -1.00000")


def test_the_parity_table_has_a_row_for_each_number() -> None:
    found = (
        Component("vision", "fp16", 0.9, None, FLOORS["fp16"]),
        Component("decoder", "int4", 0.87, 0.8),
        Component("decoder", "fp16", None, 1.0, FLOORS["fp16"]),
        Component("selection", "fp16", None, None, FLOORS["fp16"], 0.5),
        Component("vision", "fp16", 1.0, None, FLOORS["fp16"], gain=1.25),
    )
    parity = {**report(np.ones((2, 4))).to_dict(), "components": [each.to_dict() for each in found]}
    for reasons in (False, True):
        out = io.StringIO()
        Console(file=out, width=160).print(parity_table(parity, reasons=reasons))
        lines = [line for line in out.getvalue().splitlines() if " in " in line and ":" in line]
        rows = [[cell.strip() for cell in line.split("│")[1:5]] for line in lines]
        assert rows == [
            ["vision in fp16: 1 - cosine", "1.0e-01", "1.0e-03", "TOO FAR"],
            ["decoder in int4: 1 - cosine", "1.3e-01", "-", "said, not judged"],
            ["decoder in int4: tokens changed", "2.0e-01", "-", "said, not judged"],
            ["decoder in fp16: 1 - cosine", "-", "1.0e-03", "TOO FAR"],
            ["decoder in fp16: tokens changed", "0.0e+00", "5.0e-02", "ok"],
            ["selection in fp16: worth of kept tokens lost", "5.0e-01", "2.0e-01", "TOO FAR"],
            ["vision in fp16: 1 - cosine", "0.0e+00", "1.0e-03", "ok"],
            ["vision in fp16: size", "2.5e-01", "2.0e-02", "TOO FAR"],
        ]
