"""How a report against float32 is read for a bundle whose graphs are not float32."""

from __future__ import annotations

import re

import numpy as np
import pytest

from runtime import contract
from runtime.costs import FLOORS, HEADROOM, costs_of, judged
from runtime.parity import STAGES, ParityReport, compare, row_cosine

INT4 = {contract.DECODER: "int4", contract.EMBED_TOKENS: "int4"}
HALF_VISION = {contract.VISION_ENCODER: "fp16", contract.VISION_ENCODER_FOPRU: "fp16"}


def report(**measured: object) -> ParityReport:
    """Every stage is [0, 1, 2, 3] on both sides, but for what is given."""
    reference = {stage.name: np.arange(4) for stage in STAGES}
    return compare(reference, {**reference, **{name: np.asarray(value) for name, value in measured.items()}})


def test_float32_stays_as_strict_as_it_was() -> None:
    strict = report(logits=[0, 1, 2, 3.5])
    assert judged(strict, {}, None) == strict
    assert judged(strict, {contract.DECODER: "fp32"}, {"costs": {}}) == strict
    assert costs_of(strict, {}) == {}


def test_a_build_writes_down_what_a_precision_costs() -> None:
    strict = report(logits=[0, 1, 2, 3.5], tokens=[0, 1, 2, 9])
    read = judged(strict, INT4, None)
    assert read.ok
    logits = next(stage for stage in read.stages if stage.name == "logits")
    assert (logits.tolerance, logits.detail, logits.reason) == (
        0.5,
        "int4 costs 5.0e-01",
        "int4: measured here",
    )
    tokens = next(stage for stage in read.stages if stage.name == "tokens")
    assert tokens.detail.startswith("differs from float32, as int4 may: 1 of 4 differ, first at [3]: 9")
    assert tokens.reason == "int4: said, not judged"
    assert costs_of(strict, INT4) == {"inputs_embeds": 0.0, "logits": 0.5, "tokens": 6.0}


@pytest.mark.parametrize(("value", "ok"), [(3.74, True), (3.76, False), (np.nan, False)])
def test_a_device_is_held_to_what_the_build_measured(value: float, ok: bool) -> None:
    read = judged(report(logits=[0, 1, 2, value]), INT4, {"costs": {"logits": 0.5}})
    # 1.5 x 0.5 and float32's 1e-4 of 3.
    assert read.first_divergence == (None if ok else "logits")
    logits = next(stage for stage in read.stages if stage.name == "logits")
    assert logits.tolerance == pytest.approx(HEADROOM * 0.5 + 3e-4)
    assert logits.reason == "int4: 1.5 times what the build measured, plus float32's"


HALF_DECODER = {contract.DECODER: "fp16", contract.EMBED_TOKENS: "fp16"}


@pytest.mark.parametrize(
    ("logits", "ok"),
    [
        ([0.0, 1.0, 2.0, 3.05], True),  # less the mean: cosine 0.99990, 1.5 % larger
        ([5.0, 6.0, 7.0, 8.05], True),  # the same, and a number added to all
        ([0.0, 1.03, 2.06, 3.09], False),  # all of it 3 % larger
        ([0.0, 1.1, 1.9, 3.0], False),  # cosine 0.9982 less the mean, 0.9993 with it
        ([0.0, 1.0, 2.0, np.nan], False),
        ([0.0, 1.0, 2.0, np.inf], False),
    ],
)
def test_sums_in_float16_are_held_to_the_floor_of_the_build(logits: list[float], ok: bool) -> None:
    recorded = {"costs": {"logits": 0.001}}
    read = judged(report(logits=logits), HALF_DECODER, recorded)
    assert read.ok == ok
    stage = next(stage for stage in read.stages if stage.name == "logits")
    assert stage.tolerance == pytest.approx(HEADROOM * 0.001 + 3e-4)  # said all the same
    if np.isfinite(logits).all():
        assert stage.reason == "fp16: beyond the build, as float16 sums may be; cosine 0.999, size within 2%"
        assert re.search(r", cosine [01]\.\d{5}, [01]\.\d{3} times as large$", stage.detail)
    assert FLOORS["fp16"].cosine == 0.999
    for other in ("bf16", "int8", "int4"):  # whose sums are float32, or whose weights round more
        precisions = dict.fromkeys(HALF_DECODER, other)
        assert judged(report(logits=logits), precisions, recorded).first_divergence == "logits"


def test_scores_have_a_floor_too() -> None:
    recorded = {"costs": {"token_scores": 1e-6}}
    read = judged(report(token_scores=[0, 1, 2, 3.05]), HALF_VISION, recorded)
    assert read.ok
    # Scores are much alike, so that those of a device that is broken have a direction near theirs.
    flat = np.array([0.97, 0.99, 1.01, 1.03]) / 4
    reference = {stage.name: np.arange(4) for stage in STAGES} | {"token_scores": flat}
    for broken in (np.full(4, 0.25), flat[[2, 3, 0, 1]]):
        assert (row_cosine(flat, broken) or 0.0) > 0.998
        strict = compare(reference, {**reference, "token_scores": broken})
        assert judged(strict, HALF_VISION, recorded).first_divergence == "token_scores"
    assert not judged(report(token_scores=[0, 1, 2, 3.5]), HALF_VISION, recorded).ok
    assert not judged(report(token_scores=[0, 1, 2, 3.05]), {}, recorded).ok


def test_values_that_are_no_numbers_fail_a_build() -> None:
    assert judged(report(logits=[0, 1, 2, np.nan]), INT4, None).first_divergence == "logits"
    assert judged(report(logits=[0, 1, 2, np.inf]), INT4, None).first_divergence == "logits"


def test_stages_before_a_converted_graph_are_not_excused() -> None:
    read = judged(report(image_features=[0, 1, 2, 3.5]), INT4, None)
    assert read.first_divergence == "image_features"
    assert judged(report(pixel_values=[0, 1, 2, 3.5]), HALF_VISION, None).first_divergence == "pixel_values"
    assert judged(report(kept_counts=[0, 1, 2, 4]), HALF_VISION, None).first_divergence == "kept_counts"


def test_other_kept_tokens_are_said_where_the_encoder_is_converted() -> None:
    read = judged(report(kept_indices=[0, 1, 2, 4], pruned_features=[0, 1, 2]), HALF_VISION, None)
    assert read.ok
    details = {stage.name: stage.detail for stage in read.stages}
    assert details["kept_indices"].startswith("differs from float32, as fp16 may: 1 of 4 differ")
    assert details["pruned_features"] == "fp16: shape [3], reference [4]"
    assert judged(report(kept_indices=[0, 1, 2, 4]), INT4, None).first_divergence == "kept_indices"


def test_a_further_decoder_graph_has_its_own_precision() -> None:
    portable = f"logits of {contract.DECODER_PORTABLE}"
    strict = report(**{portable: [0, 1, 2, 3.5]})
    assert judged(strict, {contract.DECODER: "int4"}, None).first_divergence == portable
    assert judged(strict, {contract.DECODER_PORTABLE: "int8"}, None).ok
