"""The numbers of a precision's cost, against torch's own functions."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from calib.precision.cases import TEXT, loss_cases, random_cases
from calib.precision.loss import MIN_POSITIONS, LossCase, PrecisionLoss, measure_loss

RNG = np.random.default_rng(9)
CASES = (LossCase(np.arange(7)), LossCase(np.arange(4)))
WANTED = {len(case.ids): RNG.standard_normal((len(case.ids), 30)).astype(np.float32) for case in CASES}
GOT = {
    rows: logits + 0.3 * RNG.standard_normal(logits.shape).astype(np.float32)
    for rows, logits in WANTED.items()
}


def reference(case: LossCase) -> np.ndarray:
    return WANTED[len(case.ids)]


def centred(rows: torch.Tensor) -> torch.Tensor:
    return rows - rows.mean(1, keepdim=True)


def test_every_number_is_torchs() -> None:
    loss = measure_loss(reference, lambda case: GOT[len(case.ids)], CASES)
    one, other = (
        torch.tensor(np.concatenate([side[7], side[4]]), dtype=torch.float64) for side in (WANTED, GOT)
    )
    cosines = torch.cosine_similarity(centred(one), centred(other))
    divergence = torch.nn.functional.kl_div(
        other.log_softmax(1), one.log_softmax(1), log_target=True, reduction="batchmean"
    )
    expected = PrecisionLoss(
        positions=11,
        mean_cosine=float(cosines.mean()),
        min_cosine=float(cosines.min()),
        mean_gain=float((centred(other).norm(dim=1) / centred(one).norm(dim=1)).mean()),
        top1_agreement=float((one.argmax(1) == other.argmax(1)).double().mean()),
        mean_kl=float(divergence),
        max_abs_diff=float((one - other).abs().max()),
    )
    assert 0 < expected.top1_agreement < 1
    # float64 on both sides: the order of sums.
    assert list(loss.to_dict().values()) == pytest.approx(list(expected.to_dict().values()), rel=1e-9)


def test_a_number_added_to_all_logits_costs_nothing() -> None:
    loss = measure_loss(reference, lambda case: reference(case) + np.float32(8), CASES)
    assert (loss.top1_agreement, loss.warning) == (1.0, None)
    assert loss.min_cosine == pytest.approx(1.0, abs=1e-9)  # the addition rounds to float32
    assert loss.mean_kl == pytest.approx(0.0, abs=1e-9)


def test_a_poor_agreement_is_said() -> None:
    loss = measure_loss(reference, lambda case: -reference(case), CASES)
    assert loss.top1_agreement == 0.0
    assert loss.warning is not None
    assert loss.warning.startswith("only 0.0% of 11 positions keep the most likely token of float32: compare")


def test_what_is_not_a_number_is_not_hidden() -> None:
    def broken(case: LossCase) -> np.ndarray:
        logits = reference(case).copy()
        logits[1, 3] = np.nan
        return logits

    loss = measure_loss(reference, broken, CASES)
    assert loss.warning is not None
    assert loss.top1_agreement == 9 / 11
    text = json.dumps(loss.to_dict(), allow_nan=False)
    assert '"mean_cosine": null' in text
    assert '"max_abs_diff": null' in text


def test_faults_of_the_caller() -> None:
    with pytest.raises(ValueError, match=r"logits \[7, 29\] beside \[7, 30\]: run the same case"):
        measure_loss(reference, lambda case: reference(case)[:, 1:], CASES)
    with pytest.raises(ValueError, match="no positions to compare: give at least one case"):
        measure_loss(reference, reference, ())


def test_random_cases_are_enough_and_the_same_again() -> None:
    cases = random_cases(MIN_POSITIONS, 50)
    assert sum(len(case.ids) for case in cases) >= MIN_POSITIONS
    ids = np.concatenate([case.ids for case in cases])
    assert set(ids) <= set(range(50))
    assert len(set(ids)) > 40
    np.testing.assert_array_equal(ids, np.concatenate([case.ids for case in random_cases(MIN_POSITIONS, 50)]))


def test_visual_rows_do_not_count() -> None:
    visual = np.array([False, True, True, False, False, False, True])
    case = LossCase(np.arange(7), visual)

    def wrong_there(case: LossCase) -> np.ndarray:
        return np.where(visual[:, None], -reference(case), reference(case))

    loss = measure_loss(reference, wrong_there, [case])
    assert (loss.positions, loss.top1_agreement, loss.max_abs_diff) == (4, 1.0, 0.0)


def test_the_golden_request_and_a_text_make_the_cases() -> None:
    golden = {
        "input_ids": np.array([[5, 9, 9, 6]]),
        "tokens": np.array([[9, 7]]),
        "position_ids": np.array([[0, 1, 4, 5], [0, 1, 3, 5]]),
        "pruned_features": np.ones((2, 3), np.float32),
    }
    cases = loss_cases(golden, 9, list(range(300)), 400)
    first = cases[0]
    assert first.visual is not None
    assert first.positions is not None
    np.testing.assert_array_equal(first.ids, [5, 9, 9, 6, 9, 7])
    np.testing.assert_array_equal(first.visual, [False, True, True, False, False, False])
    np.testing.assert_array_equal(first.positions, [[0, 1, 4, 5, 6, 7], [0, 1, 3, 5, 6, 7]])
    assert [len(case.ids) for case in cases] == [6, 128, 128, 44, 128, 128]
    assert sum(len(case.ids) for case in cases) - 2 >= MIN_POSITIONS
    assert [len(case.ids) for case in loss_cases(golden, 9, list(range(600)), 700)] == [6, 128, 128, 128, 112]
    assert len(TEXT.split()) > 300
