"""What `python -m calib.ratio` prints and writes down."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest
from rich.console import Console

from calib.data.sample import Data, Sample, Skipped
from calib.data.skipped import skipped_lines
from calib.pick import Pick
from calib.ratio.output import WIDE, pick_lines, study_json, study_table
from calib.record import Record
from calib.settings import REFERENCE, Setting
from calib.study import Study
from tests.calib_records import groups, names, record, summarise

OWN, OTHER = Setting("rank", 0.25), Setting("rank", 0.25, layer=5, aggregation="cls")
PICK = Pick(OWN, ("it is enough", "it is little"), (), ("a note",), "python -m export.build --layer 5")


def study(count: int = 400, answer: str | None = None, broken: int = 0) -> Study:
    """All but one sample agree; `broken` have no measurement."""
    samples = tuple(Sample(name, (b"",), "?", answer, name, name) for name in names(count))
    correct = None if answer is None else True
    records = [
        record(name, setting, place > 0 or setting == REFERENCE, correct=correct)
        for setting in (OTHER, OWN, REFERENCE)
        for place, name in enumerate(names(count))
    ]
    for place in range(broken):
        records[place] = Record(records[place].sample, OTHER, error="it broke")
    return Study(
        Data("photos", samples, (Skipped("a.png", "it is empty"),)),
        tuple(records),
        summarise(records, groups(count)),
        PICK,
        "a constraint",
        "first",
        "a command",
        {"numpy": "1"},
        {"name": "demo"},
        0,
        ("a remark",),
    )


def printed(shown: Study, width: int) -> list[str]:
    console = Console(width=width)
    with console.capture() as capture:
        console.print(study_table(shown, width))
    return [line for line in capture.get().splitlines() if line.strip()]


def test_wide_table() -> None:
    lines = printed(study(), WIDE)
    assert " ".join(lines[1].split()) == "selector ratio samples before tokens first token answer KL TTFT KV"
    rows = [re.split(r" {2,}", line.strip()) for line in lines[3:]]
    assert [row[0] for row in rows] == ["unpruned", "rank", "rank (layer 5, cls)"]
    assert rows[1][1:6] == ["0.25", "400", "100", "25", rows[1][5]]
    assert rows[1][5].startswith("0.998 [0.99")  # 399 of 400
    assert rows[1][6:] == ["0.998", "0.0025", "25 ms", "244 KiB"]


def test_narrow_table_fits_80_columns_and_never_rounds_up_to_one() -> None:
    lines = printed(study(answer="yes"), 80)
    assert max(map(len, lines)) <= 80
    assert "…" not in "".join(lines)
    assert " ".join(lines[1].split()) == "selector ratio tokens first token answer right TTFT KV"
    (row,) = [line for line in lines if line.strip().startswith("rank  ")]
    assert "0.99 [0.99, 1.00]" in row
    (row,) = [line for line in lines if line.strip().startswith("unpruned")]
    assert "1.00 [1.00, 1.00]" in row


def test_failed_samples_show_in_the_table_and_nothing_measured_is_a_question_mark() -> None:
    lines = printed(study(count=10, broken=3), WIDE)
    assert any("7 (3 failed)" in line for line in lines)
    lines = printed(study(count=10, broken=10), WIDE)
    (row,) = [line for line in lines if "layer 5" in line]
    assert "? [?, ?]" in row
    assert row.rstrip().endswith("unknown")


def test_pick_in_lines() -> None:
    assert pick_lines(PICK) == [
        "picked: rank at 0.25",
        "  because it is enough",
        "  because it is little",
        "  note: a note",
        "  to get there, build another bundle and calibrate it: python -m export.build --layer 5",
    ]
    assert pick_lines(replace(PICK, rebuild=None))[-1] == "  note: a note"


def test_skipped_rows_in_lines() -> None:
    assert skipped_lines([], 5, "skipped.txt") == []
    rows = [Skipped(f"row {number}", "bad") for number in range(7)]
    assert skipped_lines(rows[:1], 5, "f") == [
        "skipped, as they cannot be used: 1 row; samples left: 5",
        "  row 0: bad",
    ]
    assert len(skipped_lines(rows[:5], 5, "f")) == 6
    assert skipped_lines(rows, 5, "f")[-1] == "  and 2 more, all of them in f"


def test_json_is_strict_and_whole() -> None:
    def no_constant(name: str) -> float:
        pytest.fail(f"{name} is no JSON")

    text = study_json(study(count=10, broken=10), report=None)
    read = json.loads(text, parse_constant=no_constant)
    assert text.endswith("}\n")
    assert [entry["setting"]["selector"] for entry in read["settings"]] == ["none", "rank", "rank"]
    assert read["settings"][2]["first"] == {"mean": None, "low": None, "high": None}
    assert read["settings"][1]["first"]["mean"] == 0.9
    assert (read["data"]["samples"], read["data"]["pictures"]) == (10, 10)
    assert read["data"]["skipped"] == [{"where": "a.png", "reason": "it is empty"}]
    assert read["pick"]["rebuild"] == PICK.rebuild
    assert (read["notes"], read["report"], read["bundle"]) == (["a remark"], None, {"name": "demo"})
    assert json.loads(study_json(replace(study(count=10), pick=None)))["pick"] is None
