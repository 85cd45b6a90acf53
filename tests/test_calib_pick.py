"""Why a ratio was picked, what speaks against it, and the default that is written into a bundle."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from calib.bundle_default import check_writable, with_default, write_default
from calib.constraints import Constraint
from calib.errors import OptionError, RunError
from calib.pick import Pick
from calib.ratio.explain import explain, explain_miss, name_of, rebuild_command
from calib.ratio.search import Question, search_ratio
from calib.record import Record
from calib.settings import REFERENCE, Setting
from runtime.bundle import load_bundle
from runtime.errors import BundleError
from tests.calib_records import groups, measure_from, record
from tests.toy_bundle import ToyModel, write_toy_bundle

OWN = Setting("rank", 0.5)
BUILD = "python -m export.build --model demo/checkpoint --ratio 0.3 --strategy rank --opset 20 --output b"


def picked(
    agreement: Callable[[Setting], float],
    constraint: Constraint | None = None,
    others: tuple[str, ...] = ("row", "random", "uniform", "resize"),
    count: int = 200,
) -> Pick:
    question = Question(OWN, others, constraint or Constraint(0.98), groups(count))
    return explain(question, search_ratio(question, measure_from(agreement, count)), BUILD, "b")


def reaches(**edges: float) -> Callable[[Setting], float]:
    """Each selector agrees on all samples down to its edge, on half of them below."""
    return lambda setting: 1.0 if setting.ratio >= edges.get(setting.selector, 1.0) else 0.5


# --- reasons and notes


def test_reasons_name_tokens_limit_and_the_rung_below() -> None:
    pick = picked(reaches(rank=0.25))
    assert pick.setting == Setting("rank", 0.25)
    assert pick.reasons[0] == "rank at 0.25 keeps 100 -> 25 visual tokens"
    assert pick.reasons[1] == (
        "first-token agreement is 1.000, and its 95 % interval begins at 1.000 (limit 0.98)"
    )
    assert pick.reasons[2].startswith(
        "at the next lower ratio that was tried, 0.2, first-token agreement is 0.5"
    )
    assert [check.met for check in pick.checks] == [True]
    assert pick.rebuild is None


def test_the_last_rung_says_that_nothing_lower_was_tried() -> None:
    assert picked(reaches(rank=0.01)).reasons[-1] == "no lower ratio was tried"
    assert picked(reaches(), Constraint(max_kv=10**9)).reasons[-1] == "no higher ratio was tried"


def test_baselines_that_lose_are_named_in_one_sentence() -> None:
    (note,) = picked(reaches(rank=0.25)).notes
    assert note == (
        "rank at 0.25 (1.000 [1.000, 1.000]) is better than "
        + ", ".join(f"{name} ({picked_interval(name)})" for name in ("random", "uniform", "resize"))
    )


def picked_interval(name: str) -> str:
    question = Question(OWN, ("random", "uniform", "resize"), Constraint(0.98), groups())
    found = search_ratio(question, measure_from(reaches(rank=0.25)))
    return str(found.results.fraction(Setting(name, 0.25), "first"))


def test_a_baseline_that_wins_is_said_to_be_better() -> None:
    pick = picked(lambda s: {"rank": 0.96, "resize": 1.0}.get(s.selector, 0.5), Constraint(0.9))
    sentence = r"resize is better than rank at 0\.05: 1\.000 \[1\.000, 1\.000\] against 0\.960 \[0\.9.*\]"
    assert any(re.fullmatch(sentence, note) for note in pick.notes), pick.notes


def test_a_baseline_as_good_is_said_not_to_be_worse() -> None:
    one = "1.000 [1.000, 1.000]"
    sentence = f"random is not significantly worse than rank at 0.25: {one} against {one}"
    assert sentence in picked(reaches(rank=0.25, random=0.25)).notes


def test_a_baseline_that_reaches_further_is_named_and_needs_no_bundle() -> None:
    pick = picked(reaches(rank=0.4, uniform=0.32))
    assert any("uniform at 0.32" in note and "where rank only reaches 0.4" in note for note in pick.notes)
    assert pick.rebuild is None


def test_another_strategy_that_reaches_further_comes_with_its_command() -> None:
    pick = picked(reaches(rank=0.4, row=0.32))
    assert pick.setting == Setting("rank", 0.4)  # all that this bundle can do
    assert pick.rebuild == (
        "python -m export.build --model demo/checkpoint --opset 20 --strategy row --ratio 0.32 --output b-row"
    )
    assert any(
        "row at 0.32 (1.000 [1.000, 1.000]) meets the constraint as well" in note for note in pick.notes
    )


def test_a_lower_ratio_that_meets_by_chance_is_mentioned() -> None:
    curve = {0.79: 1.0, 0.63: 1.0, 0.5: 0.9, 0.4: 0.9, 0.2: 1.0}
    pick = picked(lambda s: curve.get(s.ratio, 0.0), others=())
    assert pick.setting.ratio == 0.63
    assert pick.notes[0] == (
        "rank at 0.2 meets the constraint too, but a higher ratio does not: that is taken for chance"
    )


def test_few_samples_prove_little_and_the_pick_says_how_many_would() -> None:
    (note,) = picked(reaches(rank=0.25), others=(), count=50).notes
    assert note == (
        "50 pictures prove no more than 0.942 (exact one-sided bound at 95 %, independent pictures), which "
        "is below 0.98: it takes 149 that all agree"
    )
    (note,) = picked(reaches(rank=0.25), Constraint(1.0), others=()).notes
    assert note.endswith("which is below 1")  # no number of samples proves that


def test_one_picture_and_failed_samples_are_doubts() -> None:
    question = Question(OWN, (), Constraint(0.5), groups(20, per_picture=20), (0.5,))

    def measure(settings: object) -> list[Record]:
        made = [record(name, setting, True) for setting in (REFERENCE, OWN) for name in groups(20)]
        made[-1] = replace(made[-1], error="the picture is gone")
        return made

    notes = explain(question, search_ratio(question, measure), BUILD, "b").notes
    assert notes == (
        "samples that could not be measured at 0.5, and are left out: 1; the first (s019) says: the picture "
        "is gone",
        "all samples are of one picture, so that the intervals say nothing about others",
        "1 picture proves no more than 0.050 (exact one-sided bound at 95 %, independent pictures), which is "
        "below 0.5: it takes 5 that all agree",
    )


@pytest.mark.parametrize(("alike", "metric", "said"), [(9, "first", 1), (8, "first", 0), (9, "answer", 0)])
def test_first_tokens_that_are_all_alike_say_little(alike: int, metric: str, said: int) -> None:
    """As of "Describe the image.", which models answer with "The image ..." whatever they see."""
    question = Question(OWN, (), Constraint(0.1, metric), groups(10), (0.5,))

    def measure(settings: Sequence[Setting]) -> list[Record]:
        return [
            record(name, setting, True, tokens=(77 if place < alike else place, place))
            for setting in settings
            for place, name in enumerate(groups(10))
        ]

    notes = explain(question, search_ratio(question, measure), BUILD, "b").notes
    sentence = (
        "9 of 10 unpruned answers begin with the same token, so that its agreement says little about the "
        "pictures: ask questions with short answers, or give --metric answer"
    )
    assert [note for note in notes if "begin" in note] == [sentence] * said


def test_prompts_about_one_picture_prove_no_more_than_it() -> None:
    question = Question(OWN, (), Constraint(0.98), groups(200, per_picture=20))
    pick = explain(question, search_ratio(question, measure_from(reaches(rank=0.25))), BUILD, "b")
    assert pick.notes[0].startswith("10 pictures prove no more than 0.741 (exact")


def test_few_labelled_pictures_prove_little_about_accuracy() -> None:
    question = Question(OWN, (), Constraint(0.98, "accuracy"), groups(30), (0.5,))

    def measure(settings: Sequence[Setting]) -> list[Record]:
        return [
            record(name, setting, True, correct=place % 2 == 0 if place < 20 else None)
            for setting in settings
            for place, name in enumerate(groups(30))
        ]

    (note,) = explain(question, search_ratio(question, measure), BUILD, "b").notes
    assert note == (
        f"20 pictures prove no less than a drop by {1 - 0.05 ** (1 / 20):.3f} (exact one-sided bound at "
        "95 %, independent pictures), which is above 0.02: it takes 149 that all agree"
    )


def test_the_unpruned_model_needs_no_proof_and_baselines_may_still_go_below_it() -> None:
    question = Question(OWN, ("uniform",), Constraint(0.98), groups(50), (1.0, 0.5))
    found = search_ratio(question, measure_from(lambda s: float(s.selector == "uniform"), 50))
    (note,) = explain(question, found, BUILD, "b").notes
    assert found.chosen == REFERENCE
    assert note.startswith("uniform at 0.5 (1.000 [1.000, 1.000]) meets the constraint as well, where rank")


@pytest.mark.parametrize(("apart", "better"), [(5, False), (6, True)])
def test_better_takes_six_pictures_that_differ(apart: int, better: bool) -> None:
    """Five that all fall on one side are chance once in 16 times; resamples alone would not know."""
    notes = picked(lambda s: 1.0 if s.selector == "rank" else 1 - apart / 40, count=40).notes
    said = "rank at 0.05 (1.000 [1.000, 1.000]) is better than random"
    assert any(note.startswith(said) for note in notes) == better
    doubt = "random is not significantly worse than rank at 0.05"
    assert any(note.startswith(doubt) for note in notes) == (not better)


def test_with_a_budget_a_method_that_keeps_more_is_named() -> None:
    pick = picked(lambda _: 0.5, Constraint(max_ttft=0.026), others=("random",))
    assert pick.setting == Setting("rank", 0.25)
    assert pick.reasons[1].startswith(
        "the 95 % interval of the median time to the first token ends at 25 ms (limit 26 ms)"
    )
    assert pick.reasons[2].startswith(
        "at the next higher ratio that was tried, 0.32, the 95 % interval of the median time"
    )


def test_nothing_meets_says_by_how_much_and_who_does() -> None:
    question = Question(OWN, ("row",), Constraint(0.98), groups())
    found = search_ratio(question, measure_from(lambda s: 1.0 if s.selector == "row" else s.ratio))
    first, second = explain_miss(question, found)
    low = found.results.fraction(Setting("rank", 0.79), "first").low
    assert first == (
        "nothing that was tried meets the constraint (first-token agreement of at least 0.98); closest is "
        f"rank at 0.79, where first-token agreement is 0.790, and its 95 % interval begins at {low:.3f} "
        f"(limit 0.98): {0.98 - low:.3f} short"
    )
    assert second == "row at 0.05 meets it"
    with pytest.raises(ValueError, match="nothing was chosen: see explain_miss"):
        explain(question, found, BUILD, "b")


def test_a_budget_that_is_missed_says_by_how_many_percent() -> None:
    question = Question(OWN, (), Constraint(max_kv=40_000), groups())
    (sentence,) = explain_miss(question, search_ratio(question, measure_from(lambda _: 1.0)))
    assert sentence.endswith(
        "closest is rank at 0.05, where the largest KV cache is 48.8 KiB (limit 39.1 KiB): 25 % over"
    )


def test_a_miss_by_far_is_a_plain_number_and_failures_are_quoted() -> None:
    question = Question(OWN, (), Constraint(max_kv=20_000), groups(3), (0.5,))

    def measure(settings: Sequence[Setting]) -> list[Record]:
        made = [record(name, setting, True) for setting in settings for name in groups(3)]
        return [*made[:-1], replace(made[-1], error="the picture is gone")]

    first, second = explain_miss(question, search_ratio(question, measure))
    assert first.endswith("(limit 19.5 KiB): 2400 % over")
    assert second == (
        "samples that could not be measured at 0.5, and are left out: 1; the first (s002) says: the picture "
        "is gone"
    )


def test_met_only_below_a_gap() -> None:
    question = Question(OWN, (), Constraint(0.98), groups())
    found = search_ratio(question, measure_from(lambda s: float(s.ratio == 0.2)))
    assert found.chosen is None
    assert explain_miss(question, found)[0].endswith(
        "closest is rank at 0.2, where it is met, but not at every higher ratio: that is taken for chance"
    )


def test_names_and_commands() -> None:
    assert name_of(REFERENCE) == "the unpruned model"
    assert name_of(Setting("rank", 0.25, layer=5, aggregation="cls")) == "rank (layer 5, cls) at 0.25"
    build = "python -m export.build --model 'my model' --strategy=row --layer 3 --tokens 9 --target ort"
    assert rebuild_command(build, "b/", Setting("cls", 0.2)) == (
        "python -m export.build --model 'my model' --target ort --strategy rank --aggregation cls "
        "--ratio 0.2 --output b-cls"
    )
    assert rebuild_command("python -m export.build", "b", Setting("row", 0.2, 4, "col_mean")) == (
        "python -m export.build --strategy row --aggregation col_mean --layer 4 --ratio 0.2 --output b-row"
    )


# --- the default of a bundle


@pytest.fixture
def toy(tmp_path: Path) -> Path:
    return write_toy_bundle(tmp_path / "toy", ToyModel())


def test_only_the_default_changes(toy: Path) -> None:
    before = {path: path.read_bytes() for path in toy.rglob("*") if path.is_file()}
    (toy / "bundle.json").chmod(0o640)
    assert write_default(toy, 0.126)
    after = {path: path.read_bytes() for path in toy.rglob("*") if path.is_file()}
    changed = {path.name for path in before if before[path] != after[path]}
    assert (set(before), changed) == (set(after), {"bundle.json"})
    old, new = before[toy / "bundle.json"].decode(), after[toy / "bundle.json"].decode()
    assert new == old.replace('"default_ratio": 0.5,', '"default_ratio": 0.126,')
    assert new != old
    assert (toy / "bundle.json").stat().st_mode & 0o777 == 0o640
    assert load_bundle(toy).manifest.pruning.default_ratio == 0.126
    assert not write_default(toy, 0.126)


def test_a_default_in_tokens_makes_room(toy: Path) -> None:
    text = (toy / "bundle.json").read_text()
    tokens = text.replace('"default_ratio": 0.5', '"default_ratio": null')
    tokens = tokens.replace('"default_tokens": null', '"default_tokens": 4')
    assert with_default(tokens, 0.5) == text


def test_the_same_words_in_a_string_are_left_alone(toy: Path) -> None:
    data = json.loads((toy / "bundle.json").read_text())
    data["created_by"]["command"] = 'python -m export.build # "default_ratio": 0.5'
    for indent in (None, 2):
        text = json.dumps(data, indent=indent)
        changed = json.loads(with_default(text, 0.25))
        assert changed["created_by"] == data["created_by"]
        assert changed["pruning"] == data["pruning"] | {"default_ratio": 0.25}
    data["model"] = {"default_ratio": 0.9, **data["model"]}  # the key itself, elsewhere and earlier
    with pytest.raises(BundleError, match="default_ratio"):  # such a manifest is refused as a whole
        with_default(json.dumps(data), 0.25)


def test_a_manifest_without_the_keys_is_refused(toy: Path) -> None:
    data = json.loads((toy / "bundle.json").read_text())
    del data["pruning"]["default_tokens"]
    with pytest.raises(
        RunError, match=r"bundle.json has no pruning.default_tokens that could be changed: build"
    ):
        with_default(json.dumps(data), 0.25)


def test_a_link_to_a_manifest_stays_one(toy: Path, tmp_path: Path) -> None:
    (toy / "bundle.json").rename(tmp_path / "elsewhere.json")
    (toy / "bundle.json").symlink_to(tmp_path / "elsewhere.json")
    write_default(toy, 0.2)
    assert (toy / "bundle.json").is_symlink()
    assert load_bundle(toy).manifest.pruning.default_ratio == 0.2


def test_what_cannot_be_written_is_said_before_and_after(toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_writable(toy)
    before = (toy / "bundle.json").read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("calib.bundle_default.write_whole", full)
    sentence = r"bundle.json cannot be changed \(.*No space left.*\), and is as it was: allow writing and run"
    with pytest.raises(RunError, match=sentence):
        write_default(toy, 0.2)
    assert (toy / "bundle.json").read_bytes() == before
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(OptionError, match="toy may not be written, so the ratio cannot become the bundle's"):
        check_writable(toy)
