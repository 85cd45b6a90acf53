"""`python -m calib.joint`, from the command line to the bundle that is picked."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from calib.joint.__main__ import main
from calib.record import Record
from calib.settings import REFERENCE, Setting
from calib.sweep import Sweep
from runtime.bundle import load_bundle
from tests.calib_joint import with_precisions
from tests.measuring import edited
from tests.toy_bundle import ToyModel, write_photos, write_toy_bundle

ROOT = Path(__file__).resolve().parent.parent
QUICK = ("--prompt", "which one", "--max-new-tokens", "2", "--no-report", "--ratios", "0.5,0.25")


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return write_toy_bundle(tmp_path / "toy", ToyModel())


@pytest.fixture
def int4(tmp_path: Path, bundle: Path) -> Path:
    """Says that its decoder is int4; answers as the float model does."""
    return with_precisions(bundle, tmp_path / "toy-int4", decoder="int4").path


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    return write_photos(tmp_path / "pictures")


def default_of(bundle: Path) -> float | None:
    return load_bundle(bundle).manifest.pruning.default_ratio


def run(bundle: Path, other: Path, data: Path, *more: str) -> int:
    return main([str(bundle), str(other), "--data", str(data), *QUICK, *more])


def measured_as(monkeypatch: pytest.MonkeyPatch, changed: Callable[[Record], Record]) -> None:
    """Every record as it would be, changed."""
    measure = Sweep.measure

    def spied(self: Sweep, settings: Sequence[Setting], _progress: object = None) -> list[Record]:
        return [changed(record) for record in measure(self, settings)]

    monkeypatch.setattr(Sweep, "measure", spied)


def only_the_other_agrees(record: Record) -> Record:
    """Answers of the float model do not agree when it is pruned."""
    return replace(record, same_first=record.setting.precision != "" or record.setting == REFERENCE)


def test_pick_is_written_into_its_bundle_alone(
    bundle: Path,
    int4: Path,
    pictures: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Answers of the float model do not agree when it is pruned: int4 is picked."""
    measured_as(monkeypatch, only_the_other_agrees)
    before = default_of(bundle)
    assert run(bundle, int4, pictures, "--min-agreement", "0.5") == 0
    shown = capsys.readouterr()
    assert "picked: decoder=int4, rank at 0.25" in shown.out
    assert "because decoder=int4, rank at 0.25, keeps 16 -> 4 visual tokens" in shown.out
    assert f"copy {int4} to the device: it now keeps 0.25 by default (before: 0.5)" in shown.out
    assert "4 samples x 6 settings, ratios 0.5, 0.25" in shown.err
    assert (default_of(bundle), default_of(int4)) == (before, 0.25)
    assert re.search(
        r"^ decoder=int4 +rank 0\.25 +4 +1\.000 \[1\.000, 1\.000\] .* memory(, time)? *$", shown.out, re.M
    )
    assert re.search(r"^ fp32 +all +16 +1\.000 \[1\.000, 1\.000\] ", shown.out, re.M)
    work = bundle.with_name("toy-joint")
    assert sorted(path.name for path in work.iterdir()) == ["joint.json", "results.arrow"]
    record = json.loads((work / "joint.json").read_text())
    assert (record["default_ratio"], record["picked_bundle"], record["prefer"]) == (0.25, str(int4), "memory")
    assert [entry["label"] for entry in record["bundles"]] == ["fp32", "decoder=int4"]
    assert len(record["candidates"]) == len(record["settings"]) == 6
    (picked,) = [entry for entry in record["candidates"] if entry["name"] == "decoder=int4, rank at 0.25"]
    assert picked["setting"] == record["pick"]["setting"]
    assert picked["memory"] == picked["weights"] + max(
        entry["kv_most"] for entry in record["settings"] if entry["setting"] == picked["setting"]
    )


def test_a_dry_run_writes_nothing_and_a_second_run_measures_nothing(
    bundle: Path, int4: Path, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ("--max-memory", "1GiB", "--dry-run")
    assert run(bundle, int4, pictures, *given, "--json") == 0
    first = json.loads(capsys.readouterr().out)
    results = bundle.with_name("toy-joint") / "results.arrow"
    kept = results.read_bytes()
    assert (first["default_ratio"], default_of(bundle), default_of(int4)) == (None, 0.5, 0.5)
    assert run(bundle, int4, pictures, *given, "--json") == 0
    assert json.loads(capsys.readouterr().out) == first
    assert results.read_bytes() == kept
    assert run(bundle, int4, pictures, *given) == 0
    shown = capsys.readouterr().out
    ratio = first["pick"]["setting"]["ratio"]
    assert f"copy {first['picked_bundle']} to the device, and ask it for --ratio {ratio:g}\n" in shown
    assert "all bundles are as they were" in shown


def test_results_of_other_bundles_are_not_mixed_in(
    bundle: Path, int4: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(bundle, int4, pictures, "--dry-run", "--max-kv", "1GB") == 0
    other = with_precisions(bundle, tmp_path / "half", vision="fp16").path
    capsys.readouterr()
    assert run(bundle, other, pictures, "--dry-run", "--max-kv", "1GB") == 2
    assert "bundle vision=fp16" in capsys.readouterr().err
    assert run(bundle, other, pictures, "--dry-run", "--max-kv", "1GB", "--fresh") == 0
    assert (
        "note: the backend onnxruntime computes vision=fp16 in float32 where a CPU has no such arithmetic: "
        "devices that have it are quicker, and take less memory at run time"
    ) in capsys.readouterr().out


@pytest.mark.parametrize("name", ["pictures", "others", "'pictures"])
def test_pictures_that_ranges_come_from_are_no_fair_judges(
    bundle: Path, int4: Path, pictures: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    command = f"python -m calib.quantize toy --precision decoder=int4 --data {name} --samples 64"
    edited(int4, int4, created_by={"quantize": command})
    assert run(bundle, int4, pictures, "--dry-run") == 0
    note = "note: calib.quantize was given data of the same name, pictures, for decoder=int4: give other pic"
    assert (note in capsys.readouterr().out) == (name == "pictures")


@pytest.mark.parametrize(("collected", "said"), [("0.5", True), ("0.25", False)])
def test_ranges_of_another_ratio_are_to_be_collected_again(
    bundle: Path,
    pictures: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    collected: str,
    said: bool,
) -> None:
    measured_as(monkeypatch, only_the_other_agrees)
    eight = with_precisions(bundle, tmp_path / "eight", vision="w8a8").path
    edited(eight, eight, created_by={"quantize": f"python -m calib.quantize toy --ratio {collected}"})
    limits = ("--ratios", "0.25", "--min-agreement", "0.5", "--dry-run")
    assert run(bundle, eight, pictures, *limits) == 0
    shown = capsys.readouterr().out
    assert "picked: vision=int8, rank at 0.25" in shown, shown
    note = (
        "note: ranges of vision=int8 were collected at ratio 0.5: run calib.quantize once more with --ratio"
    )
    assert (note in shown) == said


def test_nothing_meets(bundle: Path, int4: Path, pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(bundle, int4, pictures, "--max-weights", "1B") == 1
    shown = capsys.readouterr().out
    assert (
        "nothing was picked\n  note: nothing that was tried meets the limits (at most 1 B of weights)"
        in shown
    )
    assert "all bundles are as they were" in shown
    assert (default_of(bundle), default_of(int4)) == (0.5, 0.5)


def test_errors_are_one_line_before_anything_is_measured(
    bundle: Path, int4: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(*more: str, other: Path = int4) -> str:
        assert run(bundle, other, pictures, *more) == 2
        (line,) = capsys.readouterr().err.splitlines()
        return line

    assert refused("--prefer", "size") == "error: prefer is 'size', expected one of memory, ttft"
    assert refused(other=bundle) == f"error: {bundle} is given twice: give each bundle once"
    assert f"metric is accuracy, but no sample of {pictures} has an answer" in refused("--metric", "accuracy")
    assert "error: there is no bundle at" in refused(other=tmp_path / "none")
    row = write_toy_bundle(tmp_path / "other" / "toy", ToyModel(vocab=261))
    assert "its decoder.vocab_size is 261, not 260" in refused(other=row)
    assert not bundle.with_name("toy-joint").exists()


def test_a_backend_that_cannot_run_a_precision_leaves_the_others(
    bundle: Path,
    int4: Path,
    pictures: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    measured_as(
        monkeypatch,
        lambda each: (
            Record(each.sample, each.setting, error="no such kernel") if each.setting.precision else each
        ),
    )
    assert run(bundle, int4, pictures, "--max-kv", "1GB", "--dry-run") == 0
    shown = capsys.readouterr().out
    assert "picked: fp32, " in shown
    assert "note: decoder=int4 could not be measured: no such kernel" in shown
    assert re.search(r"^ decoder=int4 +all \(4 failed\) +\? +\? \[\?, \?\] ", shown, re.M)


def test_a_model_that_cannot_answer_unpruned_is_an_error(
    bundle: Path,
    int4: Path,
    pictures: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    measured_as(monkeypatch, lambda each: Record(each.sample, each.setting, error="too large"))
    assert run(bundle, int4, pictures) == 2
    sentence = (
        "error: none of the samples could be measured without pruning; the first (0.png) says: too large"
    )
    assert sentence in capsys.readouterr().err


def test_a_strategy_that_cannot_be_measured_is_an_error(
    bundle: Path,
    int4: Path,
    pictures: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(_: object, settings: Sequence[Setting]) -> dict[Setting, str]:
        return {settings[-1]: "it has no scores"}

    monkeypatch.setattr("calib.measure.runner.check_settings", refuse)
    assert run(bundle, int4, pictures) == 2
    assert (
        "error: decoder=int4 cannot be measured with its own strategy: it has no scores"
        in capsys.readouterr().err
    )


def test_the_report_is_written_and_named(
    bundle: Path, int4: Path, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [argument for argument in QUICK if argument != "--no-report"]
    assert main([str(bundle), str(int4), "--data", str(pictures), *given, "--min-agreement", "0.01"]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("report: ")]
    page = Path(line.removeprefix("report: "))
    assert page.parent == bundle.with_name("toy-joint")
    assert "decoder=int4" in page.read_text()
    assert sorted(path.name for path in page.parent.glob("*.png")) == [
        "fidelity_memory.png",
        "fidelity_ttft.png",
    ]


def test_importing_needs_numpy_alone() -> None:
    heavy = (
        "torch",
        "onnxruntime",
        "onnx_ir",
        "pyarrow",
        "scipy",
        "matplotlib",
        "jinja2",
        "PIL",
        "ray",
        "rich",
    )
    code = f"import sys, calib.joint.__main__; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
