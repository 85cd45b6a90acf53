"""How a report against float32 is read for a bundle whose graphs are not float32."""

from __future__ import annotations

import numpy as np
import pytest

from runtime import contract
from runtime.costs import HEADROOM, costs_of, judged
from runtime.parity import STAGES, ParityReport, compare

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
