"""Which ratios are tried, and which one is reached; constraints; the search over layer and aggregation."""

from __future__ import annotations

import re
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from calib.constraints import Constraint, bytes_of, bytes_text, seconds_of, seconds_text
from calib.errors import OptionError, RunError
from calib.ratio.scoring import halves, search_scoring
from calib.ratio.search import Found, Question, next_rungs, reach, search_ratio, setting_at
from calib.record import Record
from calib.settings import LADDER, REFERENCE, Setting
from calib.statistics import Results
from tests.calib_records import groups, measure_from, names, record

OWN = Setting("rank", 0.5)
AGREES = Constraint(min_agreement=0.98)


def question(constraint: Constraint = AGREES, ratios: tuple[float, ...] | None = None) -> Question:
    return Question(OWN, ("random",), constraint, groups(), ratios)


def edge_at(ratio: float) -> Found:
    """rank agrees everywhere down to `ratio`, and nowhere below."""
    return search_ratio(question(), measure_from(lambda s: float(s.selector == "rank" and s.ratio >= ratio)))


# --- which rung comes next


@given(st.integers(1, 30), st.data())
def test_bisection_finds_every_edge_of_a_monotone_curve(count: int, data: st.DataObject) -> None:
    edge = data.draw(st.integers(0, count))
    rungs = [1 - place / 100 for place in range(count)]
    verdicts: dict[float, bool] = {}
    rounds = 0
    while batch := next_rungs(rungs, verdicts):
        assert not set(batch) & set(verdicts), "asked twice"
        verdicts |= {rung: rungs.index(rung) < edge for rung in batch}
        rounds += 1
    assert rounds <= 3  # every third, then two halvings
    if edge:
        assert verdicts[rungs[edge - 1]]
    if 0 < edge < count:
        assert not verdicts[rungs[edge]]


def test_first_round_is_every_third_rung_and_the_last() -> None:
    assert next_rungs(LADDER, {}) == [0.79, 0.4, 0.2, 0.1, 0.05]
    assert next_rungs((0.5,), {}) == [0.5]


@pytest.mark.parametrize("ratio", LADDER)
def test_the_search_reaches_the_edge_and_measures_its_neighbour(ratio: float) -> None:
    found = edge_at(ratio)
    assert found.chosen == Setting("rank", ratio)
    below = LADDER[LADDER.index(ratio) + 1 :][:1]
    assert set(below) <= set(found.ratios)
    # the other selector is measured wherever this one is, and the reference once
    measured = set(found.results.settings)
    assert {s.ratio for s in measured if s.selector == "random"} == set(found.ratios)
    assert len(found.records) == 200 * (1 + 2 * len(found.ratios))


def test_nothing_reached() -> None:
    found = edge_at(1.0)
    assert found.chosen is None
    assert found.ratios == (0.79, 0.4, 0.2, 0.1, 0.05)


def test_the_reference_is_asked_for_in_every_round() -> None:
    asked: list[Sequence[Setting]] = []
    search_ratio(question(), measure_from(lambda s: float(s.ratio >= 0.25), asked=asked))
    assert [settings[0] for settings in asked] == [REFERENCE] * len(asked)
    assert [sorted({s.ratio for s in settings[1:]}) for settings in asked[1:]] == [[0.32], [0.25]]


def test_a_lower_ratio_that_meets_by_chance_is_not_chosen() -> None:
    """Agreement at 0.79, not at 0.4, again at 0.2: only what is above the gap counts."""
    curve = {0.79: 1.0, 0.63: 1.0, 0.5: 0.9, 0.4: 0.9, 0.2: 1.0, 0.1: 0.0, 0.05: 0.0}
    found = search_ratio(question(), measure_from(lambda s: curve[s.ratio]))
    assert found.chosen == Setting("rank", 0.63)
    assert found.ratios == (0.79, 0.63, 0.5, 0.4, 0.2, 0.1, 0.05)


def test_given_ratios_are_all_measured_and_nothing_else() -> None:
    found = search_ratio(question(ratios=(0.3, 1.0, 0.5)), measure_from(lambda s: float(s.ratio >= 0.5)))
    assert found.ratios == (1.0, 0.5, 0.3)
    assert found.chosen == Setting("rank", 0.5)
    nothing = search_ratio(question(ratios=(0.3, 1.0)), measure_from(lambda _: 0.0))
    assert nothing.chosen == REFERENCE  # asked for by name: the whole model agrees with itself
    with pytest.raises(OptionError, match=r"there is no ratio to try: give some, as 0\.5,0\.3,0\.2"):
        question(ratios=())


def test_lower_bound_decides_not_the_mean() -> None:
    """198 of 200 are 0.99, but at the lower bound less than 0.98."""
    found = search_ratio(question(ratios=(0.5, 0.3)), measure_from(lambda _: 0.99))
    assert found.results.fraction(Setting("rank", 0.5), "first").mean == 0.99
    assert found.results.fraction(Setting("rank", 0.5), "first").low < 0.98
    assert found.chosen is None


# --- budgets


def test_a_time_alone_picks_the_highest_ratio_that_meets_it() -> None:
    found = search_ratio(question(Constraint(max_ttft=0.026)), measure_from(lambda _: 0.0))
    assert found.chosen == Setting("rank", 0.25)  # 25 tokens at 1 ms each
    assert 0.32 in found.ratios


def test_a_generous_budget_needs_no_pruning_and_a_tight_one_cannot_be_met() -> None:
    generous = search_ratio(question(Constraint(max_kv=10**9)), measure_from(lambda _: 0.0))
    assert generous.chosen == REFERENCE
    tight = search_ratio(question(Constraint(max_kv=1000)), measure_from(lambda _: 0.0))
    assert tight.chosen is None


def test_agreement_and_time_together() -> None:
    both = Constraint(min_agreement=0.98, max_ttft=0.11)
    found = search_ratio(question(both), measure_from(lambda s: float(s.ratio >= 0.1)))
    assert found.chosen == Setting("rank", 0.1)
    both = Constraint(min_agreement=0.98, max_ttft=0.009)  # agreement ends at 0.1, which takes 10 ms
    assert search_ratio(question(both), measure_from(lambda s: float(s.ratio >= 0.1))).chosen is None


def test_kv_is_that_of_the_largest_sample() -> None:
    made = [record(name, OWN, True, kv_bytes=100) for name in names(10)]
    made[3] = record("s003", OWN, True, kv_bytes=900)
    results = Results(made, groups(10))
    (check,) = Constraint(max_kv=500).checks(results, OWN)
    assert (check.name, check.value, check.met) == ("kv", 900, False)
    assert check.text == "the largest KV cache is 900 B (limit 500 B)"


def test_time_is_the_median_at_its_upper_bound() -> None:
    made = [record(name, OWN, True, ttft=place / 100) for place, name in enumerate(names(100))]
    results = Results(made, groups(100))
    median = results.median(OWN, "ttft")
    assert not Constraint(max_ttft=median.mean).checks(results, OWN)[0].met
    assert Constraint(max_ttft=median.high).checks(results, OWN)[0].met


def test_accuracy_may_drop_by_what_agreement_leaves() -> None:
    """The unpruned model is right on half; pruned it is wrong on 2 of those 100 as well."""

    def results(lost: int) -> Results:
        made = [record(name, REFERENCE, True, correct=place < 100) for place, name in enumerate(names(200))]
        made += [record(name, OWN, True, correct=lost <= place < 100) for place, name in enumerate(names())]
        return Results(made, groups())

    constraint = Constraint(min_agreement=0.96, metric="accuracy")
    (check,) = constraint.checks(results(2), OWN)
    assert check.met
    assert check.value == pytest.approx(1 + results(2).difference(OWN, REFERENCE, "accuracy").low)
    assert check.text.startswith(
        "accuracy differs from the unpruned model's by -0.010, and the 95 % interval begins at -0.0"
    )
    assert not constraint.checks(results(10), OWN)[0].met


def test_what_was_not_measured_meets_nothing() -> None:
    results = Results([Record("s000", OWN, error="no")], groups(1))
    constraint = Constraint(min_agreement=0.1, max_ttft=1e9, max_kv=10**12)
    checks = constraint.checks(results, OWN)
    assert [check.met for check in checks] == [False, False, False]
    assert "unknown" in checks[1].text
    assert reach(Question(OWN, (), constraint, groups(1)), results, OWN, (0.5,)) is None


def test_no_sample_measured_is_an_error_that_quotes_the_first() -> None:
    def broken(settings: Sequence[Setting]) -> list[Record]:
        return [Record(name, setting, error="no tokenizer") for setting in settings for name in names(3)]

    sentence = "none of the 3 samples could be measured without pruning; the first (s000) says: no tokenizer"
    with pytest.raises(RunError, match=re.escape(sentence)):
        search_ratio(Question(OWN, (), AGREES, groups(3)), broken)


def test_setting_at_one_is_the_reference() -> None:
    assert setting_at(Setting("row", 0.5, layer=3), 1.0) == REFERENCE
    assert setting_at(Setting("row", 0.5, layer=3), 0.2) == Setting("row", 0.2, layer=3)


# --- texts and parsing


@pytest.mark.parametrize(
    ("text", "seconds"), [("150ms", 0.15), ("1.5s", 1.5), (" 2 s ", 2.0), (".5ms", 0.0005), ("3.s", 3.0)]
)
def test_times(text: str, seconds: float) -> None:
    assert seconds_of(text) == pytest.approx(seconds, rel=1e-12)  # one product


@pytest.mark.parametrize(
    ("text", "size"),
    [("64MiB", 64 << 20), ("1.5GB", 1_500_000_000), ("4096B", 4096), ("2kB", 2000), ("1KiB", 1024),
     ("3MB", 3_000_000), ("1GiB", 1 << 30), ("0.5B", 1)],
)  # fmt: skip
def test_sizes(text: str, size: int) -> None:
    assert bytes_of(text) == size


@pytest.mark.parametrize("text", ["150", "ms", "", "-1s", "0s", "1e3s", "1 min", "1MS", "nan s", "1s2s"])
def test_no_time(text: str) -> None:
    sentence = f"max-ttft is {text!r}: give a number above 0 with a unit (ms, s), as 150ms"
    with pytest.raises(OptionError, match=re.escape(sentence)):
        seconds_of(text)


@pytest.mark.parametrize("text", ["64", "64mb", "64 Mb", "0B", "-1GiB"])
def test_no_size(text: str) -> None:
    sentence = (
        f"max-kv is {text!r}: give a number above 0 with a unit (B, kB, MB, GB, KiB, MiB, GiB), as 64MiB"
    )
    with pytest.raises(OptionError, match=re.escape(sentence)):
        bytes_of(text)


def test_constraint_refuses_and_reads_as_a_sentence() -> None:
    with pytest.raises(OptionError, match="metric is 'bleu', expected one of first, answer, accuracy"):
        Constraint(0.9, "bleu")
    for value in (0.0, 1.01, -1.0, float("nan")):
        with pytest.raises(OptionError, match=r"min-agreement is .*: give a fraction in \(0, 1\], e.g. 0.98"):
            Constraint(value)
    with pytest.raises(OptionError, match="no constraint: give --min-agreement, --max-ttft or --max-kv"):
        Constraint()
    with pytest.raises(OptionError, match="there is no limit of agreement to check: give --min-agreement"):
        Constraint(max_kv=1).agreement(Results([], {}), OWN)
    everything = Constraint(0.98, "answer", 0.15, 64 << 20)
    assert str(everything) == (
        "agreement of whole answers of at least 0.98, at most 150 ms to the first token, at most 64 MiB of "
        "KV cache"
    )
    assert everything.limits == {"agreement": 0.98, "ttft": 0.15, "kv": 64 << 20}
    assert str(Constraint(0.98, "accuracy")) == "accuracy at most 0.02 below the unpruned model's"


def test_units_of_what_is_shown() -> None:
    assert [seconds_text(value) for value in (0.15, 1.234, float("nan"))] == ["150 ms", "1.23 s", "unknown"]
    sizes = (5.0, 2048.0, 5 << 20, 3 << 30, float("nan"))
    assert [bytes_text(value) for value in sizes] == ["5 B", "2 KiB", "5 MiB", "3 GiB", "unknown"]


# --- layer and aggregation

BETTER, WORSE = Setting("rank", 0.5, layer=5), Setting("rank", 0.5, layer=1)


def test_halves_keep_pictures_whole() -> None:
    first, second = halves(groups(100, per_picture=4), seed=3)
    assert first | second == set(names(100))
    assert not first & second
    pictures = groups(100, per_picture=4)
    assert not {pictures[name] for name in first} & {pictures[name] for name in second}
    assert (len(first), len(second)) == (48, 52)
    assert halves(groups(100, per_picture=4), seed=3) == (first, second)
    assert halves(groups(100, per_picture=4), seed=4) != (first, second)
    with pytest.raises(
        OptionError, match="needs 2 pictures or more, but there is 1: give more data, or leave"
    ):
        halves(groups(5, per_picture=5), seed=0)


def test_a_better_layer_is_found_and_judged_by_the_other_half() -> None:
    asked: list[Sequence[Setting]] = []
    measure = measure_from(lambda s: float(s.ratio >= {None: 0.25, 5: 0.1, 1: 0.5}[s.layer]), asked=asked)
    found = search_ratio(question(), measure)
    scoring = search_scoring(question(), found, measure, [WORSE, BETTER])
    assert scoring.better == Setting("rank", 0.1, layer=5)
    assert (
        "of 3 ways to score, rank (layer 5) agrees best on one half of the pictures: 1.000 against 0.500"
        in (scoring.sentences[0])
    )
    assert scoring.sentences[1].startswith(
        "on the other half, which had no say and has 100 of the pictures, it reaches 0.1, the bundle's own"
    )
    assert scoring.sentences[1].endswith("it is worth a new bundle")
    assert {record.sample for record in scoring.records} == set(names())


def test_the_half_that_chose_has_no_say() -> None:
    """A layer that agrees on the choosing half alone wins there, and is found out on the other."""
    choosing, _ = halves(groups(), 0)

    def measure(settings: Sequence[Setting]) -> list[Record]:
        return [
            record(name, s, s == REFERENCE or (s.layer == 5 and name in choosing) or s.ratio >= 0.25)
            for s in settings
            for name in names()
            if s.layer != 5 or s.ratio < 1
        ]

    found = search_ratio(question(), measure)
    scoring = search_scoring(question(), found, measure, [BETTER])
    assert scoring.better is None
    assert "rank (layer 5) agrees best on one half" in scoring.sentences[0]
    assert "it reaches 0.25, the bundle's own 0.25" in scoring.sentences[1]
    assert scoring.sentences[1].endswith("it is not worth a new bundle")


def test_both_may_reach_the_same_rungs_on_the_half_that_judges() -> None:
    """With all pictures the own scoring fails at 0.32, and 0.16 is not tried, which the judging half alone
    tries: the winner, which is no better there, must not win by rungs that the own one was not given."""
    choosing, _ = halves(groups(), 0)

    def measure(settings: Sequence[Setting]) -> list[Record]:
        return [
            record(name, s, s.ratio >= (0.16 if s.layer == 5 or name not in choosing else 0.4))
            for s in settings
            for name in names()
        ]

    found = search_ratio(question(), measure)
    assert found.chosen == Setting("rank", 0.4)
    assert 0.16 not in found.ratios
    scoring = search_scoring(question(), found, measure, [BETTER])
    assert "it reaches 0.16, the bundle's own 0.16" in scoring.sentences[1]
    assert scoring.better is None


def test_a_tie_in_agreement_is_said_to_be_one() -> None:
    def measure(settings: Sequence[Setting]) -> list[Record]:
        good = {s: s.ratio >= 0.25 for s in settings}
        return [
            record(name, s, good[s], divergence=0.0 if s.layer == 5 else 0.1)
            for s in settings
            for name in names()
        ]

    found = search_ratio(question(), measure)
    (first, second) = search_scoring(question(), found, measure, [BETTER]).sentences
    assert "rank (layer 5) agrees as well, and has the closest probabilities, on one half" in first
    assert second.endswith("it is not worth a new bundle")


def test_the_own_scoring_wins_ties() -> None:
    measure = measure_from(lambda s: float(s.ratio >= 0.25))
    found = search_ratio(question(), measure)
    scoring = search_scoring(question(), found, measure, [WORSE, BETTER])
    assert scoring.better is None
    sentence = "of 3 ways to score, none agrees better than the bundle's own at 0.25 and 0.2 (0.500)"
    assert scoring.sentences == (sentence,)


def test_no_scoring_is_searched_where_nothing_has_to_be_pruned() -> None:
    asked = question(Constraint(max_kv=10**9))
    measure = measure_from(lambda _: 1.0)
    scoring = search_scoring(asked, search_ratio(asked, measure), measure, [BETTER])
    assert scoring.sentences == ("the unpruned model meets the constraint: there is no scoring to search",)
    assert scoring.records == ()


def test_a_layer_may_reach_what_the_own_does_not() -> None:
    edges = {None: 1.0, 5: 0.5}
    measure = measure_from(lambda s: float(s.ratio >= edges[s.layer]))
    found = search_ratio(question(), measure)
    assert found.chosen is None
    scoring = search_scoring(question(), found, measure, [BETTER])
    assert scoring.better == Setting("rank", 0.5, layer=5)
    assert scoring.sentences[1].endswith("it reaches 0.5, where the bundle's own reaches nothing")
    worthless = measure_from(lambda s: 0.9 if s.layer == 5 else 0.0)
    scoring = search_scoring(question(), search_ratio(question(), worthless), worthless, [BETTER])
    assert scoring.better is None
    assert scoring.sentences[1].endswith("it meets the constraint nowhere: the bundle stays as it is")
