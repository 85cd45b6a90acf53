"""`python -m calib.ratio` on a bundle with attention: layers, aggregations, and what results depend on."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import jsonschema
import onnxruntime
import pytest
from PIL import Image

from calib.data import open_data
from calib.errors import OptionError
from calib.ratio.__main__ import main
from calib.ratio.calibrate import Task, calibrate, encoder_layers, key_parts
from calib.ratio.options import parse_options
from calib.ratio.search import Measure
from calib.record import Record
from calib.settings import Setting
from runtime.bundle import load_bundle
from runtime.check import main as check
from tests.calib_records import measure_from
from tests.measuring import edited, noise

SCHEMA = Path(__file__).resolve().parent.parent / "docs" / "bundle.schema.json"


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for place in range(4):
        noise(40, 30, place).save(folder / f"{place}.png")
    return folder


def task(bundle: Path, pictures: Path, *more: str) -> Task:
    options = parse_options([str(bundle), "--data", str(pictures), "--work", str(pictures / "w"), *more])
    return Task(options, "command", load_bundle(bundle), open_data(pictures, None, "?", None, 0))


def numbered(measure: Measure, made: Task) -> Measure:
    """Records of a double, under the names of the samples."""
    names = [sample.name for sample in made.data.samples]

    def renamed(settings: Sequence[Setting]) -> list[Record]:
        return [replace(each, sample=names[int(each.sample[1:])]) for each in measure(settings)]

    return renamed


def test_layers_of_the_encoder_end_with_the_one_that_feeds_the_features(toy_bundle_dir: Path) -> None:
    bundle = load_bundle(toy_bundle_dir)
    assert encoder_layers(bundle) == tuple(range(bundle.manifest.pruning.layer + 1))


def test_layers_and_aggregations_are_searched_and_only_the_default_is_written(
    toy_bundle_dir: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = tmp_path / "bundle"
    shutil.copytree(toy_bundle_dir, bundle)
    arguments = ["--prompt", "What?", "--max-new-tokens", "2", "--no-report", "--json"]
    arguments += ["--ratios", "0.5,0.25", "--min-agreement", "0.01", "--search", "layer,aggregation"]
    code = main([str(bundle), "--data", str(pictures), *arguments])
    record = json.loads(capsys.readouterr().out)
    pruning = load_bundle(toy_bundle_dir).manifest.pruning
    ways = {(entry["setting"]["layer"], entry["setting"]["aggregation"]) for entry in record["settings"]}
    layers = range(pruning.layer + 1)
    every = {(layer, way) for layer in layers for way in ("col_mean", "col_mean_patch", "cls")}
    assert ways == {(None, None), *every} - {(pruning.layer, pruning.aggregation)}
    assert any(note.startswith(f"of {len(every)} ways to score, ") for note in record["notes"])
    assert code == (0 if record["pick"] else 1)
    ratio = record["pick"]["setting"]["ratio"]
    assert load_bundle(bundle).manifest.pruning.default_ratio == ratio
    jsonschema.validate(json.loads((bundle / "bundle.json").read_text()), json.loads(SCHEMA.read_text()))
    assert check([str(bundle)]) == 0


def test_a_better_layer_comes_with_the_command_that_builds_it(toy_bundle_dir: Path, pictures: Path) -> None:
    for place in range(4, 40):
        Image.effect_noise((8, 8), 50 + place).save(pictures / f"{place:02}.png")
    made = task(toy_bundle_dir, pictures, "--search", "layer")
    measure = measure_from(lambda s: float(s.ratio >= (0.2 if s.layer == 0 else 0.4)), len(made.data.samples))
    study = calibrate(made, numbered(measure, made))
    assert study.pick is not None
    assert study.pick.setting == Setting("rank", 0.4)
    (note,) = [note for note in study.notes if note.startswith("it takes a new bundle: ")]
    assert "--strategy rank --aggregation col_mean --layer 0 --ratio 0.2 --output " in note
    assert note.startswith("it takes a new bundle: python -m export.build --model ")
    assert [record.sample for record in study.records] == sorted(record.sample for record in study.records)
    assert study.limits == {"agreement": 0.98}


def test_one_picture_is_too_few_for_a_search_over_layers(toy_bundle_dir: Path, pictures: Path) -> None:
    for place in range(1, 4):
        (pictures / f"{place}.png").unlink()
    made = task(toy_bundle_dir, pictures, "--search", "layer")
    with pytest.raises(OptionError, match="needs 2 pictures or more, but there is 1"):
        calibrate(made, lambda _: pytest.fail("measured"))


def test_cls_is_rank_where_the_bundle_scores_so(toy_bundle_dir: Path, pictures: Path, tmp_path: Path) -> None:
    bundle = edited(toy_bundle_dir, tmp_path / "cls", pruning={"aggregation": "cls"})
    made = task(bundle, pictures)
    study = calibrate(made, numbered(measure_from(lambda s: float(s.ratio > 0.3), 4), made))
    assert "cls" not in {setting.selector for setting in study.summaries}
    assert "rank" in {setting.selector for setting in study.summaries}


@pytest.mark.parametrize("backend", ["onnxruntime", "ort-cuda", "ort-tensorrt"])
def test_the_release_of_onnx_runtime_makes_results_comparable_whatever_brought_it(
    backend: str, toy_bundle_dir: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = task(toy_bundle_dir, pictures, "--backend", backend)
    monkeypatch.setattr(onnxruntime, "__version__", "1.2.3")
    assert key_parts(made)["backend"] == f"{backend} 1.2.3"


def test_what_makes_results_comparable(
    toy_bundle_dir: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = key_parts(task(toy_bundle_dir, pictures))
    assert set(parts) == {"bundle", "backend", "device", "max-new-tokens", "measured", "seed", "version"}
    assert parts == key_parts(task(toy_bundle_dir, pictures, "--ratios", "0.5", "--max-kv", "1MB"))

    def differing(other: Task) -> set[str]:
        return {name for name, value in key_parts(other).items() if value != parts[name]}

    assert differing(task(toy_bundle_dir, pictures, "--seed", "1")) == {"seed"}
    assert differing(task(toy_bundle_dir, pictures, "--max-new-tokens", "5")) == {"max-new-tokens"}
    for other in (("--workers", "2"), ("--ray", "auto"), ("--threads", "1")):  # other times
        assert differing(task(toy_bundle_dir, pictures, *other)) == {"measured"}
    assert differing(task(toy_bundle_dir, pictures, "--workers", "1")) == set()
    default = edited(toy_bundle_dir, tmp_path / "a", pruning={"default_ratio": 0.1})
    assert differing(task(default, pictures)) == set()
    prompt = edited(toy_bundle_dir, tmp_path / "b", prompt={"image": "<image>"})
    assert differing(task(prompt, pictures)) == {"bundle"}
    (pictures / "0.png").unlink()
    with monkeypatch.context() as patch:
        patch.setattr("calib.measure.describe.device_name", lambda: "another processor")
        assert differing(task(toy_bundle_dir, pictures)) == {"device"}
        assert "device" not in key_parts(task(toy_bundle_dir, pictures, "--ray", "auto"))
    assert differing(task(toy_bundle_dir, pictures)) == set()  # records say which sample they are about
