"""`python -m calib.ratio` a second time: with other photos, a larger draw, or a cause of failures gone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from calib.measure.runner import _Course
from calib.ratio.__main__ import main
from calib.record import Record
from calib.settings import Setting
from tests.toy_bundle import ToyModel, toy_photo, write_photos, write_toy_bundle

pa = pytest.importorskip("pyarrow")

MEETS = ("--ratios", "0.75,0.5,0.25", "--min-agreement", "0.01", "--metric", "first")
ROUND = 16
"""Settings of a run: the unpruned model, and five selectors at three ratios."""


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return write_toy_bundle(tmp_path / "toy", ToyModel())


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    return write_photos(tmp_path / "pictures")


@pytest.fixture
def results(bundle: Path) -> Path:
    return bundle.with_name("toy-calibration") / "results.arrow"


def run(bundle: Path, data: Path, *more: str) -> int:
    quick = ("--prompt", "which one", "--max-new-tokens", "2", "--no-report")
    return main([str(bundle), "--data", str(data), *quick, *MEETS, *more])


def measured(results: Path) -> list[str]:
    """Samples of all rows, in their order."""
    names: list[str] = pa.ipc.open_stream(results.read_bytes()).read_all().column("sample").to_pylist()
    return names


def test_a_photo_more_adds_and_a_photo_less_leaves_out(
    bundle: Path, pictures: Path, results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(bundle, pictures) == 0
    first = results.read_bytes()
    Image.fromarray(toy_photo((24, 31), seed=9)).save(pictures / "1a.png")
    (pictures / "2.png").unlink()
    capsys.readouterr()
    assert run(bundle, pictures, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert [entry["samples"] for entry in found["settings"]] == [4] * ROUND
    second = results.read_bytes()
    assert second.startswith(first)
    assert measured(results)[4 * ROUND :] == ["1a.png"] * ROUND
    (pictures / "1a.png").unlink()  # all that is left is known
    assert run(bundle, pictures) == 0
    assert results.read_bytes() == second


def test_a_row_inserted_moves_the_names_of_the_others(bundle: Path, pictures: Path, results: Path) -> None:
    rows = [json.dumps({"image": f"pictures/{place}.png", "prompt": "a"}) for place in range(4)]
    data = pictures.with_name("rows.jsonl")
    data.write_text("\n".join(rows[1:]))
    assert run(bundle, data) == 0
    data.write_text("\n".join(rows))
    assert run(bundle, data) == 0
    assert len(measured(results)) == 4 * ROUND
    assert measured(results)[3 * ROUND :] == ["rows.jsonl:1"] * ROUND
    record = json.loads(results.with_name("calibration.json").read_text())
    assert [entry["samples"] for entry in record["settings"]] == [4] * ROUND


def test_a_larger_draw_only_adds(bundle: Path, pictures: Path, results: Path) -> None:
    names = []
    for count in ("2", "3", "4", "2"):
        assert run(bundle, pictures, "--samples", count) == 0
        names.append(measured(results))
    assert [len(each) for each in names] == [2 * ROUND, 3 * ROUND, 4 * ROUND, 4 * ROUND]
    assert names[1][: 2 * ROUND] == names[0]
    assert names[2][: 3 * ROUND] == names[1]


def test_what_failed_is_measured_again_and_said(
    bundle: Path, pictures: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    record = _Course.record

    def failing(self: _Course, setting: Setting, reference: Any) -> Record:
        if setting.selector == "row" and self.sample.name == "1.png":
            return Record(self.sample.name, setting, error="no memory is left")
        return record(self, setting, reference)

    with monkeypatch.context() as patch:
        patch.setattr(_Course, "record", failing)
        assert run(bundle, pictures, "--workers", "1") == 0
    assert "failed in an earlier run" not in capsys.readouterr().err
    assert run(bundle, pictures, "--json") == 0
    shown = capsys.readouterr()
    assert "measurements of these samples that failed in an earlier run: 3; those that are" in shown.err
    assert {entry["failed"] for entry in json.loads(shown.out)["settings"]} == {0}
