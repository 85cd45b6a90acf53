"""What the report says: numbers, the answer in one sentence, figures, table, and which samples it shows."""

from __future__ import annotations

from dataclasses import replace

import pytest

from calib.report.examples import median_examples, worst_examples
from calib.report.look import DARK, LIGHT, look_of, order_of, series_label, series_of
from calib.report.view import HEAD, beside, cards, headline, interval_text, rows, shown_setting
from calib.report.words import as_bytes, as_nats, as_percent, as_ratio, as_seconds, as_times, sentence
from calib.settings import BASELINES, REFERENCE, SELECTORS, Setting
from calib.study import Study
from calib.summary import Interval, Summary
from tests.calib_studies import PICKED, record, sample, study, summaries, summary

NAN = float("nan")


def plain(text: str) -> str:
    """With blanks that may break."""
    return text.replace("\N{NO-BREAK SPACE}", " ")


@pytest.mark.parametrize(
    ("share", "shown"),
    [(0.987, "98.7 %"), (1.0, "100 %"), (0.9999, "99.9 %"), (0.0, "0 %"), (0.0001, "0.1 %"), (NAN, "–")],
)
def test_percent_never_rounds_to_all_or_nothing(share: float, shown: str) -> None:
    assert plain(as_percent(share)) == shown


@pytest.mark.parametrize(
    ("ratio", "shown"), [(0.25, "25 %"), (0.126, "12.6 %"), (1.0, "100 %"), (0.05, "5 %")]
)
def test_ratios(ratio: float, shown: str) -> None:
    assert plain(as_ratio(ratio)) == shown


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0.1521, "152 ms"), (0.0034, "3.4 ms"), (2.14, "2.1 s"), (123.4, "123 s"), (NAN, "–")],
)
def test_seconds(seconds: float, shown: str) -> None:
    assert plain(as_seconds(seconds)) == shown


@pytest.mark.parametrize(
    ("size", "shown"),
    [
        (100, "100 B"),
        (2048, "2.0 KiB"),
        (3.14 * 2**20, "3.1 MiB"),
        (200 * 2**20, "200 MiB"),
        (2**31, "2.0 GiB"),
    ],
)
def test_bytes(size: float, shown: str) -> None:
    assert plain(as_bytes(size)) == shown


def test_times_divergences_and_sentences() -> None:
    assert as_times(1.8, 1.0) == "1.8"
    assert as_times(500.0, 1.0) == "500"
    assert as_times(1.0, 0.0) is None
    assert plain(as_nats(2e-5)) == "< 0.001"
    assert as_nats(0.0) == "0"
    assert as_nats(0.03041) == "0.0304"
    assert as_nats(NAN) == "–"
    assert sentence("random is better") == "Random is better."
    assert sentence("Why?") == "Why?"
    assert sentence("fp32, unpruned") == "fp32, unpruned."
    assert sentence("calib.quantize had it") == "calib.quantize had it."


def test_the_answer_names_ratio_agreement_interval_samples_time_and_memory() -> None:
    assert plain(headline(study())) == (
        "Keep 50 % of the visual tokens (selector rank): 96.0 % of first tokens are those of the unpruned "
        "model (95 % interval 94.0–97.0 %, 500 samples), first token 1.5 × sooner, KV cache 1.8 × smaller."
    )


def _with(own: Study, setting: Setting, changed: Summary) -> Study:
    return replace(own, summaries={**own.summaries, setting: changed})


def test_where_all_samples_agree_the_exact_bound_is_given() -> None:
    few = summary(1.0, 0.5, first=Interval(1.0, 1.0, 1.0), first_bound=0.7411, samples=10)
    text = plain(headline(_with(study(), PICKED, few)))
    assert "100 % of first tokens" in text
    assert "(with 95 % confidence at least 74.1 %, 10 samples)" in text


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (Interval(0.149, 0.140, 0.160), "no measurable difference in time to the first token"),
        (Interval(0.300, 0.290, 0.310), "first token 2.0 × later"),
        (Interval(0.075, 0.070, 0.080), "first token 2.0 × sooner"),
    ],
)
def test_no_gain_in_time_is_claimed_where_intervals_overlap(seconds: Interval, said: str) -> None:
    text = plain(headline(_with(study(), PICKED, summary(0.96, 0.5, ttft=seconds))))
    assert f", {said}, KV cache" in text


def test_a_cache_that_is_no_smaller_is_not_praised() -> None:
    same = summary(0.96, 0.5, kv_bytes=study().summaries[REFERENCE].kv_bytes)
    assert "KV cache" not in headline(_with(study(), PICKED, same))


@pytest.mark.parametrize(
    ("metric", "said"),
    [
        ("answer", "of answers are, to the last token, those of the unpruned model"),
        ("accuracy", "of answers are right"),
    ],
)
def test_the_answer_is_about_the_metric(metric: str, said: str) -> None:
    assert said in headline(study(metric=metric))


def test_nothing_picked_and_everything_kept_are_said() -> None:
    constraint = "first-token agreement of at least 0.9"
    assert headline(study(pick=None)) == f"Nothing that was measured meets the constraint: {constraint}."
    own = study()
    assert own.pick is not None
    whole = replace(own, pick=replace(own.pick, setting=REFERENCE))
    assert headline(whole) == f"Keep all visual tokens: no lower ratio meets the constraint, {constraint}."
    assert shown_setting(whole) == Setting("rank", 0.79)  # the best that prunes
    most = replace(whole, constraint="at most 1 MiB of KV cache", limits={"kv": 2.0**20})
    said = "Keep all visual tokens: the unpruned model meets the constraint, at most 1 MiB of KV cache."
    assert headline(most) == said


def test_a_pick_without_measurements_claims_nothing() -> None:
    own = replace(study(), summaries={})
    assert plain(headline(own)) == "Keep 50 % of the visual tokens (selector rank)."


def test_maps_and_pictures_are_of_the_pick_or_the_best_of_fopru() -> None:
    assert shown_setting(study()) == PICKED
    best = {Setting("random", 0.79): summary(1.0, 0.79), **summaries(("row", "rank"))}
    assert shown_setting(study(pick=None, summaries=best)) == Setting("row", 0.79)
    baselines = summaries(("random", "uniform"))
    assert shown_setting(study(pick=None, summaries=baselines)) == Setting("random", 0.79)
    assert shown_setting(study(pick=None, summaries={REFERENCE: summary(1.0, 1.0)})) is None


def test_what_others_do_at_the_same_ratio() -> None:
    text = beside(study(), PICKED)
    assert text is not None
    assert plain(text) == (
        "At the same ratio, first token as unpruned: row 92.0 %, cls 88.0 %, random 84.0 %, uniform 80.0 %, "
        "resize 76.0 %."
    )
    searched = {Setting("rank", 0.5, 3, "cls"): summary(0.9, 0.5)}
    assert beside(study(summaries=summaries(("rank",)) | searched), PICKED) is None


def test_cards_show_the_unpruned_model_beside() -> None:
    found = {card.name: card for card in cards(study(), PICKED)}
    assert list(found) == [
        "first token as unpruned", "answers that are right", "visual tokens", "time to first token",
        "KV cache",
    ]  # fmt: skip
    assert plain(found["first token as unpruned"].detail) == "95 % interval 94.0–97.0 %"
    assert plain(found["answers that are right"].detail) == "unpruned: 100 %"
    assert found["visual tokens"].value == "8"
    assert plain(found["time to first token"].value) == "100 ms"
    assert plain(found["time to first token"].detail) == "unpruned: 150 ms, medians"
    assert plain(found["KV cache"].value) == "614 KiB"


def test_cards_without_labels_say_nothing_about_accuracy() -> None:
    own = _with(study(), PICKED, summary(0.96, 0.5, accuracy=None))
    assert "answers that are right" not in [card.name for card in cards(own, PICKED)]
    by_answer = replace(own, metric="answer")
    names = [card.name for card in cards(by_answer, PICKED)]
    assert names[:2] == ["whole answer as unpruned", "first token as unpruned"]


def test_the_table_has_every_setting_in_order() -> None:
    layered = Setting("rank", 0.5, layer=2, aggregation="col_mean", precision="int8")
    own = _with(study(), layered, summary(0.9, 0.5, failed=2))
    table = rows(own)
    assert len(table) == len(own.summaries)
    assert {len(row.cells) for row in table} == {len(HEAD)}
    assert table[0].kind == "none"
    assert table[0].cells[0] == "unpruned"
    names = list(dict.fromkeys(row.cells[0] for row in table))
    others = ["row", "cls", "random", "uniform", "resize"]
    assert names == ["unpruned", "rank", "rank, layer 2, col_mean, int8", *others]
    (picked,) = [row for row in table if row.kind == "pick"]
    assert [plain(cell) for cell in picked.cells] == [
        "rank", "50 %", "16 → 8", "500", *["96.0 % (94.0–97.0)"] * 3, "0.04", "100 (90–120)", "614 KiB",
    ]  # fmt: skip
    assert sum(row.kind == "baseline" for row in table) == 12
    assert [row.cells[3] for row in table if "layer" in row.cells[0]] == ["500 (2 failed)"]


def test_a_setting_of_which_nothing_was_measured_has_dashes() -> None:
    nothing = Interval(NAN, NAN, NAN)
    empty = summary(0.0, 0.5, samples=0, failed=3, first=nothing, answer=nothing, ttft=nothing)
    (row,) = [row for row in rows(_with(study(), PICKED, empty)) if row.kind == "pick"]
    assert row.cells[2:5] == ("–", "0 (3 failed)", "–")
    assert set(row.cells[4:]) == {"–"}
    assert interval_text(nothing) == interval_text(None) == "–"


def test_worst_samples_are_those_whose_answer_changed_by_divergence() -> None:
    shown = tuple(sample(number) for number in range(20))
    records = [record(each, REFERENCE, text="unpruned") for each in shown]
    for number, each in enumerate(shown):
        # Even ones changed; of the odd ones, some diverge more without changing the answer.
        records.append(record(each, PICKED, same_answer=number % 2 == 1, divergence=number / 10))
    worst = worst_examples(shown, records, PICKED)
    assert [example.sample.name for example in worst] == [f"photo_{n}.png" for n in (18, 16, 14, 12, 10, 8)]
    assert {example.unpruned.text for example in worst} == {"unpruned"}
    median = median_examples(shown, records, PICKED)
    assert [example.sample.name for example in median] == [f"photo_{n}.png" for n in (7, 9, 11)]


def test_samples_without_a_measurement_are_not_shown() -> None:
    shown = tuple(sample(number) for number in range(3))
    records = [
        record(shown[0], REFERENCE),
        record(shown[0], PICKED, error="the picture is damaged", same_answer=False),
        record(shown[1], PICKED, same_answer=False),  # no reference
        record(shown[2], REFERENCE),
        record(shown[2], PICKED),
    ]
    assert worst_examples(shown, records, PICKED) == ()
    assert [example.sample for example in median_examples(shown, records, PICKED)] == [shown[2]]


def test_each_selector_has_a_look_of_its_own_and_baselines_are_thin() -> None:
    for theme in (LIGHT, DARK):
        looks = {name: look_of(name, 0, theme) for name in SELECTORS}
        assert len({look.marker for look in looks.values()}) == len(SELECTORS)
        assert len({look.colour for look in looks.values()}) == len(SELECTORS)
        strong = min(look.width for name, look in looks.items() if name not in BASELINES)
        assert all(looks[name].width < strong for name in BASELINES)
    assert look_of("rank", 1, LIGHT) != look_of("rank", 0, LIGHT)
    assert look_of("rank", 1, LIGHT).colour == look_of("rank", 0, LIGHT).colour


def test_lines_are_settings_without_their_ratio() -> None:
    series = series_of(Setting("rank", 0.5, 3, "cls", "int8"))
    assert series_of(Setting("rank", 0.1, 3, "cls", "int8")) == series
    assert series_label(series) == "rank, layer 3, cls, int8"
    assert order_of(series_of(REFERENCE)) < order_of(series_of(PICKED)) < order_of(series)
