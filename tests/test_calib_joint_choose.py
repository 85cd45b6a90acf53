"""What is chosen of several precisions and ratios, and what is said about it."""

from __future__ import annotations

import math
import re

import pytest

from calib.constraints import Constraint
from calib.errors import OptionError
from calib.joint.choose import choose, explain_choice, explain_no_choice
from calib.joint.limits import Limits
from tests.calib_joint import (
    FLOAT,
    INT4,
    INT4_LOW,
    INT4_WHOLE,
    LOW,
    MB,
    WHOLE,
    choice,
    results,
)


def names(found: list[str], word: str) -> list[str]:
    return [sentence for sentence in found if word in sentence]


# --- limits


def test_limits_in_words_and_by_name() -> None:
    limits = Limits(Constraint(0.98, max_kv=1 << 20), "first", 500 << 20, 1 << 30)
    assert str(limits) == (
        "first-token agreement of at least 0.98, at most 1 MiB of KV cache, at most 500 MiB of weights, "
        "at most 1 GiB of weights and KV cache"
    )
    assert limits.limits == {"agreement": 0.98, "kv": 1 << 20, "weights": 500 << 20, "memory": 1 << 30}
    assert limits.keeps_agreement
    assert not Limits(None, max_weights=5).keeps_agreement
    assert not Limits(Constraint(max_ttft=1.0)).keeps_agreement


def test_limits_that_are_none() -> None:
    with pytest.raises(OptionError, match="there is no limit: give --min-agreement, --max-ttft, --max-kv, "):
        Limits(None)
    with pytest.raises(OptionError, match="metric is 'bleu', expected one of first, answer, accuracy"):
        Limits(None, "bleu", max_weights=1)


def test_each_limit_is_checked_against_what_it_is_about() -> None:
    limits = Limits(Constraint(0.9), "first", 2 * MB, 2 * MB)
    made = choice({INT4: 0.95}, limits)
    (of,) = [each for each in made.candidates if each.setting == INT4]
    assert [(check.name, check.met) for check in of.checks] == [
        ("agreement", True),
        ("weights", True),
        ("memory", False),
    ]
    assert of.checks[1].text == "its weights take 1.91 MiB (limit 1.91 MiB)"
    assert of.checks[2].text == "weights and the largest KV cache take 2.38 MiB (limit 1.91 MiB)"
    assert of.memory == 2 * MB + 500_000
    assert not of.meets


# --- candidates


def test_the_most_faithful_comes_first_and_of_equals_the_smallest() -> None:
    made = choice({FLOAT: 0.95, LOW: 0.5, INT4: 0.95})
    order = [each.setting for each in made.candidates]
    assert order == [INT4_LOW, INT4_WHOLE, WHOLE, INT4, FLOAT, LOW]


def test_fronts() -> None:
    made = choice({FLOAT: 0.95, LOW: 0.9, INT4_WHOLE: 0.97, INT4: 0.93, INT4_LOW: 0.8})
    memory = {each.setting for each in made.candidates if each.best_memory}
    ttft = {each.setting for each in made.candidates if each.best_ttft}
    # Weights count more than tokens: the float model is on the front where nothing else is as faithful.
    assert memory == {WHOLE, INT4_WHOLE, INT4, INT4_LOW}
    # Times depend on tokens alone here.
    assert ttft == {WHOLE, FLOAT, LOW}
    assert [each.optimal for each in made.candidates] == [
        each.setting in memory | ttft for each in made.candidates
    ]


def test_what_was_not_measured_is_last_on_no_front_and_meets_nothing() -> None:
    made = choice(found=results({}, broken=(INT4,)), limits=Limits(None, max_memory=100 * MB))
    last = made.candidates[-1]
    assert last.setting == INT4
    assert math.isnan(last.memory)
    assert not last.optimal
    assert not last.meets


# --- the choice


def test_the_cheapest_that_meets_the_limits() -> None:
    made = choice({INT4_LOW: 0.5, LOW: 0.95})
    chosen = choose(made)
    assert chosen is not None
    assert chosen.setting == INT4
    by_time = choose(choice({INT4_LOW: 0.5, LOW: 0.95}, prefer="ttft"))
    assert by_time is not None
    assert by_time.setting == LOW
    (note,) = names(list(explain_choice(made, chosen).notes), "--prefer")
    assert note == (
        "fp32, rank at 0.2, takes the least time to the first token (7.82 MiB and 20 ms to the first token): "
        "--prefer ttft picks it"
    )


def test_times_that_cannot_be_told_apart_are_no_reason() -> None:
    made = choice(found=results({INT4_LOW: 0.5}, ttft=0.03))
    chosen = choose(made)
    assert chosen is not None
    assert names(list(explain_choice(made, chosen).notes), "--prefer") == []


def test_reasons() -> None:
    made = choice({INT4_LOW: 0.5, LOW: 0.5})
    chosen = choose(made)
    assert chosen is not None
    pick = explain_choice(made, chosen)
    assert pick.setting == INT4
    assert pick.reasons == (
        "int4, rank at 0.5, keeps 100 -> 50 visual tokens",
        pick.checks[0].text,
        "it takes 2.38 MiB and 50 ms to the first token (1.91 MiB of weights, 488 KiB of KV cache); fp32, "
        "unpruned, takes 8.58 MiB and 100 ms to the first token",
        "4 of 6 that were measured meet every limit; of these it takes the least memory, before int4, "
        "unpruned (2.86 MiB and 100 ms to the first token)",
    )
    assert pick.checks == chosen.checks


def test_the_only_one() -> None:
    made = choice({FLOAT: 0.5, LOW: 0.5, INT4_WHOLE: 0.5, INT4: 0.5, INT4_LOW: 0.5})
    chosen = choose(made)
    assert chosen is not None
    assert chosen.setting == WHOLE
    pick = explain_choice(made, chosen)
    (missed,) = [each for each in made.candidates if each.setting == INT4_WHOLE]
    assert pick.reasons[-1] == "1 of 6 that were measured meet every limit: nothing else does"
    assert not any("; fp32" in reason for reason in pick.reasons)  # it is not compared with itself
    assert pick.notes == (f"int4, unpruned, does not meet the limits: {missed.checks[0].text}",)


def test_a_ratio_below_one_that_fails_is_chance() -> None:
    made = choice({INT4: 0.5})
    chosen = choose(made)
    assert chosen is not None
    assert chosen.setting == INT4_WHOLE
    assert names(list(explain_choice(made, chosen).notes), "chance") == [
        "int4, rank at 0.2, meets the limits too, but a higher ratio does not: that is taken for chance"
    ]


def test_limits_of_cost_alone_ask_for_the_most_faithful() -> None:
    made = choice({INT4: 0.9, INT4_LOW: 0.8, INT4_WHOLE: 0.95}, Limits(None, max_memory=2_600_000))
    chosen = choose(made)
    assert chosen is not None
    assert chosen.setting == INT4  # unpruned, its cache is too large
    pick = explain_choice(made, chosen)
    assert "of these it is the most faithful, before int4, rank at 0.2" in pick.reasons[-1]
    assert names(list(pick.notes), "--prefer") == []
    assert names(list(pick.notes), "fp32, unpruned, does not meet the limits: weights and the largest") != []


def test_nothing_meets_the_limits() -> None:
    made = choice({INT4_LOW: 0.85, INT4: 0.85, INT4_WHOLE: 0.85}, Limits(Constraint(0.9), max_weights=MB))
    assert choose(made) is None
    (sentence,) = explain_no_choice(made)
    assert re.fullmatch(
        r"nothing that was tried meets the limits \(first-token agreement of at least 0\.9, at most 977 KiB "
        r"of weights\); closest is int4, .*, where .* and its weights take 1\.91 MiB \(limit 977 KiB\): "
        r"0\.\d+ short, 100 % over",
        sentence,
    )


def test_what_could_not_be_measured_is_said_once() -> None:
    found = results({FLOAT: 0.5, LOW: 0.5}, broken=(INT4, INT4_LOW, INT4_WHOLE))
    made = choice(found=found)
    chosen = choose(made)
    assert chosen is not None
    assert names(list(explain_choice(made, chosen).notes), "measured") == [
        "int4 could not be measured: it broke"
    ]
    none = choice(found=found, limits=Limits(None, max_weights=MB))
    assert explain_no_choice(none)[-1] == "int4 could not be measured: it broke"


def test_few_samples_are_a_doubt() -> None:
    made = choice({}, Limits(Constraint(0.99)))
    chosen = choose(made)
    assert chosen is not None
    (doubt,) = names(list(explain_choice(made, chosen).notes), "prove")
    assert re.match(r"200 \w+ prove no more than 0\.985 ", doubt)
