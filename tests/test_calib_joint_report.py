"""The table, the plots and the page of the joint choice."""

from __future__ import annotations

import io
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from calib.constraints import Constraint
from calib.data.sample import Skipped
from calib.errors import RunError
from calib.joint.candidate import Candidate
from calib.joint.limits import Limits
from calib.joint.output import JOINT_WIDE, choice_lines, joint_json, joint_table
from calib.joint.study import JointStudy
from calib.record import Record
from calib.report.joint import write_joint_report
from calib.report.joint_plots import CostPlot, cost_front_plot
from calib.report.look import DARK, LIGHT, Theme
from tests.calib_joint import ALL, INT4, INT4_LOW, INT4_WHOLE, MB, choice, joint_study, results


def joint(**changes: Any) -> JointStudy:
    """int4 at .5 is picked, at .2 it is not faithful."""
    return joint_study(choice({INT4_LOW: 0.5, INT4: 0.95}), **changes)


def none_found() -> JointStudy:
    return joint_study(choice(limits=Limits(None, max_weights=MB)))


def plot(of: JointStudy, **changes: object) -> CostPlot:
    made = CostPlot(
        of.candidates,
        [each.label for each in of.variants],
        lambda each: each.memory,
        lambda each: each.best_memory,
        "memory",
        "agreement",
    )
    return replace(made, **changes)  # type: ignore[arg-type]


def has(content: bytes, colour: str) -> int:
    """Pixels of exactly this colour."""
    pixels = np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))
    wanted = [int(colour[place : place + 2], 16) for place in (1, 3, 5)]
    return int((pixels == wanted).all(axis=2).sum())


# --- table, JSON


def printed(of: JointStudy, width: int) -> list[str]:
    console = Console(width=width, color_system="truecolor", force_terminal=True)
    with console.capture() as capture:
        console.print(joint_table(of, width))
    return capture.get().splitlines()


def plain(line: str) -> str:
    return " ".join(re.sub(r"\x1b\[[0-9;]*m", "", line).split())


def test_the_pick_is_bold_and_the_dominated_are_dim() -> None:
    lines = printed(joint(), JOINT_WIDE)
    (picked,) = [line for line in lines if plain(line).startswith("int4 rank 0.5")]
    assert "\x1b[1m" in picked
    assert (
        plain(picked) == "int4 rank 0.5 50 0.950 [0.920, 0.975] 0.950 50 ms 488 KiB 1.91 MiB 2.38 MiB memory"
    )
    (dim,) = [line for line in lines if plain(line).startswith("fp32 rank 0.5")]
    assert "\x1b[2m" in dim
    (front,) = [line for line in lines if plain(line).startswith("int4 all")]
    assert "\x1b[2m" not in front
    assert "\x1b[1m" not in front
    assert "best for: nothing else is at least as faithful for less" in "\n".join(map(plain, lines))


def test_a_narrow_table_fits() -> None:
    lines = [plain(line) for line in printed(joint(), 80)]
    assert "precision kept first token answer TTFT memory best for" in lines
    assert max(map(len, lines)) <= 80


def test_the_metric_has_the_interval() -> None:
    made = joint_study(
        choice(
            found=results({INT4: 0.9}, correct=True), limits=Limits(Constraint(0.9, "accuracy"), "accuracy")
        ),
        labelled=True,
    )
    (head,) = [plain(line) for line in printed(made, JOINT_WIDE) if "precision" in line]
    assert head == "precision kept tokens right first token answer TTFT KV weights memory best for"
    assert any("1.000 [1.000, 1.000] 0.900 0.900" in plain(line) for line in printed(made, JOINT_WIDE))


def test_lines_of_a_choice_and_of_none() -> None:
    lines = choice_lines(joint(notes=("a remark",)))
    assert lines[0] == "picked: int4, rank at 0.5"
    assert lines[1].startswith("  because int4, rank at 0.5, keeps 100 -> 50")
    assert lines[-1] == "  note: a remark"
    assert choice_lines(none_found())[0] == "nothing was picked"


def test_json_is_strict() -> None:
    made = joint_study(choice(found=results({}, broken=(INT4,))))
    record = json.loads(joint_json(made, more=1), parse_constant=pytest.fail)
    (broken,) = [entry for entry in record["candidates"] if entry["name"] == "int4, rank at 0.5"]
    assert (broken["memory"], broken["fidelity"]["low"], broken["best_memory"]) == (None, None, False)
    assert record["more"] == 1
    assert json.loads(joint_json(none_found()))["picked_bundle"] is None


# --- plots


@pytest.mark.parametrize("theme", [LIGHT, DARK], ids=["light", "dark"])
def test_each_precision_is_drawn_in_its_colour(theme: Theme) -> None:
    drawn = cost_front_plot(plot(joint()), theme)
    assert has(drawn, theme.paper) > 100_000
    for name in ("none", "rank"):
        assert has(drawn, theme.colours[name]) > 300
    assert has(drawn, theme.colours["row"]) == 0


def test_limits_and_the_pick_are_marked() -> None:
    made = joint()
    nothing = has(cost_front_plot(plot(made), LIGHT), LIGHT.accent)
    least = has(cost_front_plot(plot(made, least=0.9), LIGHT), LIGHT.accent)
    most = has(cost_front_plot(plot(made, least=0.9, most=3.0 * MB), LIGHT), LIGHT.accent)
    chosen = has(cost_front_plot(plot(made, chosen=made.chosen), LIGHT), LIGHT.accent)
    assert nothing == 0
    assert 0 < least < most
    assert chosen > 300
    far = has(cost_front_plot(plot(made, least=0.9, most=1e12), LIGHT), LIGHT.accent)
    assert far == least  # it would squeeze all else


def test_the_front_is_drawn_behind() -> None:
    def none(_: Candidate) -> bool:
        return False

    with_front, without = (
        np.asarray(Image.open(io.BytesIO(cost_front_plot(each, LIGHT))).convert("L"), np.int64)
        for each in (plot(joint()), plot(joint(), on_front=none))
    )
    assert with_front.sum() < without.sum()


def test_what_was_not_measured_is_left_out() -> None:
    made = joint_study(choice(found=results({}, broken=(INT4_WHOLE, INT4, INT4_LOW))))
    assert list(plot(made).lines()) == ["fp32"]
    assert has(cost_front_plot(plot(made), LIGHT), LIGHT.colours["rank"]) == 0


def test_many_precisions_and_one_point_can_be_drawn() -> None:
    made = joint()
    labels = [f"precision {number}" for number in range(20)]
    many = [replace(made.candidates[0], label=label) for label in labels]
    assert cost_front_plot(plot(made, candidates=many, labels=labels), LIGHT).startswith(b"\x89PNG")


# --- the page


class Page(HTMLParser):
    """A page taken apart; fails where tags do not match."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text = ""
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(path.read_text(encoding="utf-8"))
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "source"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Curves, which take a second to draw, are always the same."""
    monkeypatch.setattr("calib.report.joint.cost_front_plot", lambda *_: b"\x89PNG")


def written(folder: Path, of: JointStudy) -> Page:
    return Page(write_joint_report(folder, of))


def test_the_page_says_what_to_take_and_why(quick: None, tmp_path: Path) -> None:
    page = written(tmp_path, joint())
    text = " ".join(page.text.split())
    assert (
        "Take int4 with 50 % of the visual tokens: 95.0 % of first tokens are those of the unpruned float "
        "model, 3.6 × less memory, first token 2.0 × sooner."
    ) in text
    assert "int4, rank at 0.5, keeps 100 -> 50 visual tokens." in text
    assert "bundles/int4" in text
    assert "makes no statement about accuracy" in text
    rows = [attributes.get("class") for tag, attributes in page.tags if tag == "tr"]
    assert rows.count("pick") == 1
    assert rows.count("baseline") == sum(not each.optimal for each in joint().candidates) == 2
    assert sum(tag == "img" for tag, _ in page.tags) == 2
    # Nothing is loaded.
    assert all((attributes.get("src") or "data:").startswith("data:") for _, attributes in page.tags)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "fidelity_memory.png",
        "fidelity_ttft.png",
        "report.html",
    ]


def test_the_page_of_no_choice(quick: None, tmp_path: Path) -> None:
    page = written(tmp_path, none_found())
    assert "Nothing that was measured meets the limits: at most 977 KiB of weights." in page.text
    assert "Why this one" not in page.text


def test_the_unpruned_float_model_is_not_compared_with_itself(quick: None, tmp_path: Path) -> None:
    made = joint_study(choice(dict.fromkeys(ALL[1:], 0.1)))
    text = " ".join(written(tmp_path, made).text.split())
    assert (
        "Take fp32 with all visual tokens: 100 % of first tokens are those of the unpruned float model."
        in text
    )


def test_times_are_claimed_only_where_they_differ(quick: None, tmp_path: Path) -> None:
    same = joint_study(choice(found=results({INT4_LOW: 0.5}, ttft=0.03)))
    assert "no measurable difference in time to the first token." in written(tmp_path / "a", same).text
    later = joint_study(choice({INT4_LOW: 0.5}))
    slow = [
        replace(
            each,
            summary=replace(each.summary, ttft=replace(each.summary.ttft, mean=0.3, low=0.29, high=0.31)),
        )
        if each == later.chosen
        else each
        for each in later.candidates
    ]
    (chosen,) = [each for each in slow if each.ttft == 0.3]
    text = written(tmp_path / "b", replace(later, candidates=tuple(slow), chosen=chosen)).text
    assert "first token 3.0 × later." in text.replace("\N{NO-BREAK SPACE}", " ")


def test_accuracy_is_shown_where_there_are_labels(quick: None, tmp_path: Path) -> None:
    made = joint_study(choice(found=results({INT4_LOW: 0.5}, correct=True)), labelled=True)
    page = written(tmp_path, made)
    assert "answers that are right" in page.text
    assert "makes no statement about accuracy" not in page.text


def test_failures_skipped_rows_and_hostile_names(quick: None, tmp_path: Path) -> None:
    made = joint_study(
        choice(found=results({}, broken=(INT4,))), records=(Record("s1", INT4, error="it <broke>"),)
    )
    data = replace(made.study.data, skipped=(Skipped("<b>.png", "empty"),), source="<i>")
    page = written(tmp_path, replace(made, study=replace(made.study, data=data)))
    assert "s1, int4, rank at 0.5" in page.text
    assert "it <broke>" in page.text
    assert "<b>.png" in page.text
    assert "(200 failed)" in page.text
    assert not any(tag in ("b", "i", "broke") for tag, _ in page.tags)


def test_a_folder_that_cannot_be_written(quick: None, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match=r"cannot write the report to .*: give a folder that can be written"):
        write_joint_report(tmp_path / "file" / "folder", joint())
