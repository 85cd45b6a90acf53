"""Bootstrap by picture, exact bounds, medians."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from calib.errors import OptionError
from calib.record import Record
from calib.settings import REFERENCE, Setting
from calib.statistics import Interval, Results, exact_bound, field_of
from tests.calib_records import groups, names, record, summarise

RANK, RANDOM = Setting("rank", 0.5), Setting("random", 0.5)


def records(setting: Setting, same: list[bool], **more: object) -> list[Record]:
    return [record(name, setting, value, **more) for name, value in zip(names(len(same)), same, strict=True)]


def test_all_equal_gives_one_and_the_exact_bound_says_what_that_proves() -> None:
    summary = summarise(records(RANK, [True] * 50), groups(50))[RANK]
    assert summary.first == Interval(1.0, 1.0, 1.0)
    assert summary.first_bound == pytest.approx(0.05 ** (1 / 50), abs=1e-9)  # closed form of n of n
    assert (summary.samples, summary.failed, summary.accuracy) == (50, 0, None)


def test_exact_bound_solves_the_binomial_tail() -> None:
    bound = exact_bound(95, 100)
    tail = sum(math.comb(100, k) * bound**k * (1 - bound) ** (100 - k) for k in range(95, 101))
    assert tail == pytest.approx(0.05, abs=1e-9)  # as tight as the root finder inside scipy
    assert exact_bound(0, 10) == 0.0
    assert math.isnan(exact_bound(0, 0))


def test_the_exact_bound_counts_pictures_not_prompts() -> None:
    """All samples of a picture stand or fall together at worst; what failed proves nothing."""
    made = records(RANK, [place >= 10 for place in range(100)])  # one picture of ten is wrong
    assert summarise(made, groups(100, 10))[RANK].first_bound == pytest.approx(exact_bound(9, 10), abs=1e-9)
    made[0] = Record("s000", RANK, error="no")
    results = Results(made, groups(100, 10))
    assert [record.sample for record in results.failed(RANK)] == ["s000"]
    effective = 99**2 / (9 * 10**2 + 9**2)
    wanted = exact_bound(effective * 90 / 99, effective)
    assert results.bound(RANK, "first") == pytest.approx(wanted, abs=1e-9)
    assert results.pictures_of(RANK, "first") == 10
    assert (results.pictures_of(RANK, "accuracy"), results.pictures_of(RANDOM, "first")) == (0, 0)


@pytest.mark.parametrize("counts", [[20] * 5 + [1] * 45, [200] + [1] * 49, [3] * 50])
def test_the_exact_bound_holds_where_pictures_have_different_numbers_of_questions(counts: list[int]) -> None:
    """Pictures that stand or fall as one, 9 of 10 of them; 5 % of draws may lie above the truth."""
    group = {f"s{place:03}": str(picture) for place, picture in enumerate(np.repeat(range(50), counts))}
    random, above = np.random.default_rng(0), 0
    for _ in range(100):
        right = np.repeat(random.random(50) < 0.9, counts)
        made = [record(name, RANK, bool(value)) for name, value in zip(group, right, strict=True)]
        above += Results(made, group).bound(RANK, "first") > 0.9
    assert above <= 9  # P(10 or more of 100) is 2.8 % at 5 %; the draws are always the same


def test_the_exact_bound_of_accuracy_is_about_what_pruning_spoils() -> None:
    whole = [record(name, REFERENCE, True, correct=place < 10) for place, name in enumerate(names(20))]
    pruned = [record(name, RANK, True, correct=0 < place < 11) for place, name in enumerate(names(20))]
    results = Results([*whole, *pruned], groups(20))
    assert results.difference(RANK, REFERENCE, "accuracy").mean == 0.0  # one lost, one won
    assert results.bound(RANK, "accuracy") == pytest.approx(exact_bound(19, 20), abs=1e-9)
    assert math.isnan(results.bound(RANDOM, "accuracy"))


def test_answers_that_begin_alike_are_counted_where_there_are_answers() -> None:
    made = records(RANK, [True] * 4, tokens=(5, 1))
    made[1] = record("s001", RANK, True, tokens=(1, 5))
    made[2] = Record("s002", RANK, error="no")
    results = Results(made, groups(4))
    assert results.commonest_start(RANK) == (2, 3)
    assert results.commonest_start(RANDOM) == (0, 0)


def test_pictures_that_differ_are_counted_once() -> None:
    first, second = [True] * 12, [place not in (0, 1, 7) for place in range(12)]
    results = Results([*records(RANK, first), *records(RANDOM, second)], groups(12, 4))
    assert results.differing(RANK, RANDOM, "first") == 2
    assert results.differing(RANK, RANK, "first") == 0


def test_interval_of_independent_samples_is_that_of_the_normal_approximation() -> None:
    same = [place % 5 != 0 for place in range(500)]
    first = summarise(records(RANK, same), groups(500))[RANK].first
    half = 1.96 * math.sqrt(0.8 * 0.2 / 500)
    assert first.mean == 0.8
    # two percentiles of 2000 draws: their own standard error is about 5 % of the half width
    assert first.low == pytest.approx(0.8 - half, abs=0.006)
    assert first.high == pytest.approx(0.8 + half, abs=0.006)


def test_pictures_are_drawn_whole() -> None:
    """Ten prompts of a picture that all agree or all do not are worth one sample, not ten."""
    same = [place // 10 % 2 == 0 for place in range(200)]  # 20 pictures
    clustered = summarise(records(RANK, same), groups(200, per_picture=10))[RANK].first
    alone = summarise(records(RANK, same), groups(200))[RANK].first
    ratio = (clustered.high - clustered.low) / (alone.high - alone.low)
    assert ratio == pytest.approx(math.sqrt(10), rel=0.25)  # 20 pictures: bounds in steps of 0.05


def test_same_seed_same_interval_and_another_seed_another() -> None:
    made = [record(name, RANK, True, ttft=place**0.5) for place, name in enumerate(names(90))]
    results = [Results(made, groups(90), seed=seed).mean(RANK, "ttft") for seed in (0, 0, 1)]
    assert results[0] == results[1]
    assert results[0] != results[2]


def test_difference_is_paired() -> None:
    """Both fail on the same samples, one on two more: the difference is sharp, though each is uncertain."""
    hard = [place % 2 == 0 for place in range(400)]
    worse = [value and place not in (0, 2) for place, value in enumerate(hard)]
    results = Results([*records(RANK, hard), *records(RANDOM, worse)], groups(400))
    difference = results.difference(RANK, RANDOM, "first")
    assert difference.mean == 2 / 400
    assert difference.low >= 0.0
    assert difference.high < 0.015
    assert results.fraction(RANK, "first").low < results.fraction(RANDOM, "first").high  # overlap


def test_failed_records_count_and_enter_nothing() -> None:
    good = records(RANK, [True, False, True, True], kv_bytes=10)
    good[1] = Record("s001", RANK, error="it broke", kv_bytes=10**9)
    results = Results([*good, *records(RANDOM, [True, True, False, True])], groups(4))
    summary = results.summary(RANK)
    assert (summary.samples, summary.failed) == (3, 1)
    assert (summary.first.mean, summary.kv_bytes, summary.kv_most) == (1.0, 10.0, 10)
    # the difference is over the three samples that both have
    assert results.difference(RANK, RANDOM, "first").mean == pytest.approx(1 / 3)


def test_nothing_measured_is_unknown_not_zero() -> None:
    summary = summarise([Record("s000", RANK, error="no")], groups(1))[RANK]
    assert math.isnan(summary.first.low)
    assert math.isnan(summary.ttft.mean)
    assert math.isnan(summary.first_bound)
    assert math.isnan(summary.kv_bytes)
    assert summary.kv_most == 0
    results = Results(records(RANK, [True]), groups(1))
    assert math.isnan(results.mean(RANDOM, "same_first").mean)  # a setting that was not measured


def test_accuracy_is_over_labelled_samples() -> None:
    made = records(RANK, [True] * 4)
    made[0] = record("s000", RANK, True, correct=True)
    made[1] = record("s001", RANK, True, correct=False)
    summary = summarise(made, groups(4))[RANK]
    assert summary.accuracy is not None
    assert summary.accuracy.mean == 0.5
    assert summary.fraction("accuracy") == summary.accuracy
    assert math.isnan(summarise(made[2:], groups(4))[RANK].fraction("accuracy").mean)
    assert summary.fraction("first") == summary.first
    assert summary.fraction("answer") == summary.answer


@settings(max_examples=25, deadline=None)
@given(st.lists(st.floats(0.01, 10), min_size=1, max_size=40), st.integers(1, 5))
def test_median_of_draws_is_the_median_of_what_was_drawn(times: list[float], per_picture: int) -> None:
    count = len(times)
    made = [record(name, RANK, True, ttft=time) for name, time in zip(names(count), times, strict=True)]
    results = Results(made, groups(count, per_picture), resamples=30)
    pictures = np.arange(count) // per_picture
    # the same draws, each written out
    total = int(pictures[-1]) + 1
    draws = np.random.default_rng(0).integers(total, size=(30, total))
    names_of_pictures = sorted({f"picture {place}" for place in pictures})
    places = np.array([names_of_pictures.index(f"picture {place}") for place in pictures])
    values = np.array(times)
    drawn = [np.median(np.concatenate([values[places == picture] for picture in draw])) for draw in draws]
    median = results.median(RANK, "ttft")
    assert median.mean == np.median(times)
    assert (median.low, median.high) == tuple(np.percentile(drawn, [2.5, 97.5]))


def test_many_samples_are_drawn_in_blocks_with_the_same_result(monkeypatch: pytest.MonkeyPatch) -> None:
    made = [record(name, RANK, True, ttft=place**0.5) for place, name in enumerate(names(60))]
    whole = Results(made, groups(60)).median(RANK, "ttft")
    monkeypatch.setattr("calib.statistics._CELLS", 1000)
    assert Results(made, groups(60)).median(RANK, "ttft") == whole


def test_summary_has_quartiles_and_tokens() -> None:
    made = [record(name, RANK, True, ttft=float(place)) for place, name in enumerate(names(5))]
    summary = summarise([*made, *records(REFERENCE, [True] * 5)], groups(5))[RANK]
    assert summary.ttft.mean == 2.0
    assert summary.ttft_quartiles == (1.0, 3.0)
    assert (summary.before, summary.after) == (100.0, 50.0)


def test_refusals() -> None:
    with pytest.raises(OptionError, match="resamples is 0: give at least 1, usually 2000"):
        Results([], {}, resamples=0)
    with pytest.raises(OptionError, match="seed is -1: give 0 or more"):
        Results([], {}, seed=-1)
    with pytest.raises(OptionError, match="1 samples have results but are not in the data, as s000"):
        Results(records(RANK, [True]), {})
    with pytest.raises(OptionError, match="metric is 'bleu', expected one of first, answer, accuracy"):
        field_of("bleu")
