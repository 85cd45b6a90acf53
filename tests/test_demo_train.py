"""Training goes on after an interruption as if there had been none, and measures what it says."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from demo import evaluate, train
from demo import pretrain as pretrain_module
from demo.curve import Point, draw_curve, points_table
from demo.evaluate import Setting, plan_points
from demo.model import build_model
from demo.pretrain import pretrain
from demo.questions import Question
from demo.sequences import build_sequences
from demo.training import Options, learning_rate

STEPS = 4


@pytest.fixture(autouse=True)
def small_measurements(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pretrain_module, "MEASURE_SCENES", 4)


def options(work: Path) -> Options:
    return Options(
        work=work, batch_size=2, pretrain_steps=STEPS, tune_steps=STEPS, joint_steps=STEPS, store_every=2
    )


def test_an_interrupted_stage_continues_to_the_same_weights(tmp_path: Path) -> None:
    def stop_after_three(step: int, figures: dict[str, float]) -> None:
        if step == 3:
            raise KeyboardInterrupt

    def ignore(step: int, figures: dict[str, float]) -> None:
        pass

    def remember(step: int, figures: dict[str, float]) -> None:
        steps.append(step)

    steps: list[int] = []
    whole, parts = build_model(1), build_model(1)
    pretrain(whole, options(tmp_path / "whole"), ignore)
    with pytest.raises(KeyboardInterrupt):
        pretrain(parts, options(tmp_path / "parts"), stop_after_three)
    again = build_model(2)  # its weights must come from the stored state
    pretrain(again, options(tmp_path / "parts"), remember)
    assert steps == [3, 4]  # the state was stored after step 2
    for left, right in zip(
        whole.model.vision_tower.parameters(), again.model.vision_tower.parameters(), strict=True
    ):
        assert torch.equal(left, right)


def test_the_command_trains_writes_and_measures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    steps = [f"--{stage}-steps={STEPS}" for stage in ("pretrain", "tune", "joint")]
    places = [f"--work={tmp_path / 'work'}", f"--output={tmp_path / 'checkpoint'}"]
    command = [*steps, *places, "--batch-size=2", "--scenes=2", "--precision=fp32"]
    assert train.main(command) == 0
    assert (tmp_path / "checkpoint" / "model.safetensors").exists()
    assert "exact match on 2 held-out scenes" in capsys.readouterr().out
    assert train.main([*command, "--seed=8"]) == 2
    assert "use the same options to continue, or --restart" in " ".join(capsys.readouterr().err.split())


def test_options_out_of_range_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="precision must be fp32 or bf16"):
        Options(work=tmp_path, precision="fp8")
    with pytest.raises(ValueError, match="must be >= 1"):
        Options(work=tmp_path, batch_size=0)


def test_the_rate_rises_then_falls() -> None:
    rates = [learning_rate(step, 100, 1.0) for step in range(100)]
    assert rates.index(max(rates)) in (4, 5)
    assert rates[-1] < 0.03


class Words:
    """A tokenizer of characters: enough to see the layout."""

    bos_token_id, eos_token_id, pad_token_id = 1, 2, 0

    def encode(self, text: str, add_special_tokens: bool) -> list[int]:
        assert not add_special_tokens
        return [ord(character) for character in text]


def test_packed_questions_share_the_image_and_do_not_see_each_other() -> None:
    questions = [[Question("count", "a", "1"), Question("count", "bb", "2")]]
    packed = build_sequences(Words(), questions, 5, chained=False)  # type: ignore[arg-type]
    prefix = 1 + len("USER: ") + 5 + len("\n")
    first = len("a ASSISTANT: 1") + 1  # and the end token
    mask = packed.attention_mask[0, 0]
    assert packed.position_ids[0, prefix] == packed.position_ids[0, prefix + first] == prefix
    assert mask[prefix + first, :prefix].all()
    assert not mask[prefix + first, prefix : prefix + first].any()
    assert packed.answer_ids.tolist() == [ord(" "), ord("1"), 2, ord(" "), ord("2"), 2]
    chained = build_sequences(Words(), questions, 5, chained=True)  # type: ignore[arg-type]
    length = chained.position_ids.shape[1]
    assert chained.position_ids[0].tolist() == list(range(length))
    assert torch.equal(chained.attention_mask[0, 0], torch.ones(length, length, dtype=torch.bool).tril())


def test_settings_of_the_evaluation_name_ratio_one_once() -> None:
    assert plan_points(("rank", "row"), (1.0, 0.3)) == [
        Setting("none", 1.0),
        Setting("rank", 0.3),
        Setting("row", 0.3),
    ]


def test_the_evaluation_without_a_selector_is_ratio_one() -> None:
    assert plan_points(("none",), (0.3,)) == [Setting("none", 1.0)]
    assert plan_points(("none", "rank"), (1.0, 0.3)) == [Setting("none", 1.0), Setting("rank", 0.3)]


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--samples=0", "samples is 0: give at least 1"),
        ("--plot=nowhere/x.png", "there is no directory nowhere"),
        ("--plot=x.txt", "give a name that ends in .png, .svg, .pdf"),
    ],
)
def test_the_evaluation_checks_its_options_first(
    option: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate.main(["no-bundle", option]) == 2
    assert message in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(("raised", "status"), [(OSError("disk full"), 2), (KeyboardInterrupt(), 130)])
def test_the_evaluation_ends_without_a_traceback(
    raised: BaseException, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: Path) -> None:
        raise raised

    monkeypatch.setattr(evaluate, "load_bundle", fail)
    assert evaluate.main(["bundle"]) == status


def test_the_curve_is_a_table_and_a_picture(tmp_path: Path) -> None:
    points = [Point("none", 1.0, 196, {"count": 1.0}), Point("rank", 0.3, 59, {"count": 0.5})]
    assert points_table(points, "title").row_count == 2
    draw_curve(points, "title", tmp_path / "curve.png")
    assert (tmp_path / "curve.png").stat().st_size > 1000
