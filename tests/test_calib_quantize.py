"""`python -m calib.quantize`, from the command line to a bundle that answers."""

from __future__ import annotations

import importlib.metadata
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx_ir as ir
import onnxruntime
import pytest

from calib.data import open_data
from calib.data.sample import Sample
from calib.measure.runner import SampleRunner
from calib.quantize import bundle as bundle_module
from calib.quantize import decoder as decoder_module
from calib.quantize import vision as vision_module
from calib.quantize.__main__ import main
from calib.quantize.graphs import Recipe
from calib.quantize.options import parse_options
from calib.quantize.ranges import _Observer as Collecting
from calib.quantize.ranges import products_by_graph, ranges_of
from calib.quantize.split import split_samples
from calib.quantize.task import Task, open_task
from calib.quantize.trial import VisionFidelity, judge_vision
from calib.quantize.vision import References
from calib.ranges import Collector
from calib.ratio.options import DEFAULT_PROMPT
from runtime import NO_REUSE, Generator, Request, contract, load_bundle
from runtime.bundle import sha256_of
from runtime.check import main as check
from runtime.layouts.single import SingleLayout
from tests.measuring import PROMPT, edited, noise

VISION = (contract.VISION_ENCODER, contract.VISION_ENCODER_FOPRU)


@dataclass(frozen=True)
class Made:
    """A run of the command."""

    bundle: Path
    output: Path
    work: Path
    pictures: Path
    report: dict[str, Any]


def photos(folder: Path, count: int = 4) -> Path:
    folder.mkdir()
    for number in range(count):
        noise(60 + number, 80, seed=number).save(folder / f"{number}.png")
    return folder


def run(bundle: Path, pictures: Path, *more: str, precision: str = "vision=int8,decoder=int8") -> int:
    words = ["--precision", precision, "--data", str(pictures), "--threads", "1", "--max-new-tokens", "3"]
    return main([str(bundle), *words, *more])


def hashes(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): sha256_of(path) for path in folder.rglob("*") if path.is_file()
    }


@pytest.fixture(scope="module")
def made(toy_bundle_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Made:
    root = tmp_path_factory.mktemp("quantised")
    bundle = root / "toy"
    shutil.copytree(toy_bundle_dir, bundle)
    pictures, output, work = photos(root / "photos"), root / "new", root / "work"
    assert run(bundle, pictures, "--output", str(output), "--work", str(work), "--keep-float", "none") == 0
    report = json.loads((work / "precision" / "quantize.json").read_text())
    return Made(bundle, output, work, pictures, report)


def test_the_new_bundle_says_what_it_holds_and_checks_itself(
    made: Made, toy_bundle_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = load_bundle(made.output).manifest
    assert {name: info.precision for name, info in manifest.graphs.items()} == {
        "vision_encoder": "w8a8",
        "vision_encoder_fopru": "w8a8",
        "embed_tokens": "int8",
        "decoder_model_merged": "int8",
    }
    assert manifest.parity is not None
    assert manifest.parity["ok"]
    assert [each["name"] for each in manifest.parity["components"]][:1] == ["vision"]
    assert str(manifest.created_by["quantize"]).startswith("python -m calib.quantize toy --precision")
    assert check([str(made.output)]) == 0
    assert "every stage agrees with the reference, or costs what" in capsys.readouterr().out
    assert hashes(made.bundle) == hashes(toy_bundle_dir)  # the bundle is left as it is


def test_it_answers(made: Made) -> None:
    request = Request(PROMPT, (made.pictures / "0.png",), max_new_tokens=3)
    wanted, got = (
        Generator(load_bundle(path), "onnxruntime", 1, NO_REUSE).generate(request)
        for path in (made.bundle, made.output)
    )
    assert len(got.token_ids) == len(wanted.token_ids)
    assert got.visual_tokens_after == wanted.visual_tokens_after
    assert sum(got.visual_tokens_after) < sum(got.visual_tokens_before)


def test_quantised_weights_are_written_once_for_both_encoders(made: Made) -> None:
    places = []
    for name in VISION:
        graph = ir.load(load_bundle(made.output).graph(name)).graph
        tensors = {value.name: value.const_value for value in graph.initializers.values()}
        assert {node.op_type for node in graph if node.op_type == "Conv"} == {"Conv"}
        places.append(
            {
                key: (tensor.location, tensor.offset, tensor.dtype)
                for key, tensor in tensors.items()
                if isinstance(tensor, ir.ExternalTensor) and str(key).endswith("_int8")
            }
        )
    assert len(places[0]) >= 8
    assert places[0] == places[1]
    assert {dtype for _, _, dtype in places[0].values()} == {ir.DataType.INT8}
    assert len(list((made.output / "onnx").glob("vision*.onnx_data"))) == 1


def test_the_report_has_every_number(made: Made) -> None:
    report = made.report
    assert report["samples"] == {"collect": 3, "judge": 1}
    assert report["vision"]["ranges"]["graphs"]["vision_encoder_fopru"] == {
        "used": 3,
        "failed": 0,
        "found": 0,
    }
    losses = [group["loss"] for group in report["vision"]["groups"]]
    assert losses == sorted(losses, reverse=True)
    assert min(losses) > 0
    # 8 bits of a random toy; a broken graph would be far below.
    assert 0.99 < report["vision"]["fidelity"]["cosine"] < 1.0
    assert report["loss"]["positions"] > 3
    assert report["bytes"]["after"]["decoder"] < report["bytes"]["before"]["decoder"]
    assert report["parity"]["ok"]
    assert report["failures"] == []


def test_layers_behind_selection_see_kept_tokens_alone(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, list[int]] = {}
    update, bundle = Collector.update, load_bundle(made.bundle)

    def spy(self: Collector, tensors: Mapping[str, Any]) -> None:
        for name, values in tensors.items():
            seen.setdefault(name, []).append(values.shape[-2])
        update(self, tensors)

    monkeypatch.setattr(Collector, "update", spy)
    observed = {}
    for graph in VISION:
        task = open_task(
            parse_options(words(made, tmp_path)), bundle, open_data(made.pictures, None, "?", 4, 0)
        )
        products = products_by_graph(task, (graph,))[graph]
        seen.clear()
        ranges_of(task, graph, products, lambda *_: None)
        observed[graph] = {product.weight: set(seen[product.activation]) for product in products}
    assert isinstance(bundle.manifest.layout, SingleLayout)
    tokens = bundle.manifest.layout.tokens
    kept = round(0.3 * tokens)
    whole, pruned = observed[VISION[0]], observed[VISION[1]]
    behind = [name for name in whole if name.startswith("multi_modal_projector")]
    assert len(behind) == 2
    for name in behind:
        assert (whole[name], pruned[name]) == ({tokens}, {kept})
    first = next(name for name in whole if "layers.0.self_attn.q_proj" in name)
    assert pruned[first] == whole[first]


def test_nothing_is_judged_on_pictures_that_it_comes_from(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, set[str]] = {}
    compared: list[set[str]] = []

    def spy(owner: Any, name: str, place: int, title: str) -> None:
        """Notes the pictures of the sample, or samples, at a place of a function's arguments."""
        function = getattr(owner, name)

        def spied(*given: Any) -> Any:
            samples = [given[place]] if isinstance(given[place], Sample) else given[place]
            seen.setdefault(title, set()).update(sample.group for sample in samples)
            return function(*given)

        monkeypatch.setattr(owner, name, spied)

    def judged(task: Task, recipe: Recipe, key: str, references: References) -> VisionFidelity:
        compared.append({sample.group for sample, _ in references})
        return judge_vision(task, recipe, key, references)

    spy(Collecting, "observe", 1, "ranges")
    spy(decoder_module, "decoder_cases", 1, "scales")
    monkeypatch.setattr(vision_module, "judge_vision", judged)
    spy(bundle_module, "decoder_cases", 1, "logits")
    spy(SampleRunner, "run", 1, "answers")
    more = ("--output", str(tmp_path / "o"), "--work", str(tmp_path / "w"))
    assert run(made.bundle, made.pictures, *more) == 0
    split = split_samples(open_data(made.pictures, None, DEFAULT_PROMPT, 64, 0).samples, 0)
    collect, tune, judge = (
        {sample.group for sample in part} for part in (split.collect, split.tune, split.judge)
    )
    assert (len(collect), len(judge), collect & judge) == (3, 1, set())
    assert tune < collect
    assert compared == [tune, judge]  # 8 bits are enough for all groups of the toy
    assert seen == {
        "ranges": collect,
        "scales": collect,
        "logits": judge,
        "answers": judge,
    }


def words(made: Made, folder: Path) -> list[str]:
    given = ["--precision", "vision=int8", "--data", str(made.pictures), "--threads", "1"]
    return [str(made.bundle), *given, "--work", str(folder), "--output", str(folder / "o")]


def test_a_second_run_runs_no_graph_and_writes_the_same(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise AssertionError("a graph is run")

    monkeypatch.setattr(onnxruntime.InferenceSession, "run", fail)
    again = ("--output", str(tmp_path / "again"), "--work", str(made.work), "--keep-float", "none", "--json")
    assert run(made.bundle, made.pictures, *again) == 0
    assert hashes(tmp_path / "again") == hashes(made.output)
    found = json.loads(capsys.readouterr().out)
    assert found["vision"]["ranges"]["graphs"]["vision_encoder"] == {"used": 3, "failed": 0, "found": 3}
    for key in ("loss", "whole", "parity"):
        assert found[key] == made.report[key]
    with pytest.raises(AssertionError, match="a graph is run"):  # the spy works
        run(made.bundle, made.pictures, *again, "--fresh")


def test_files_that_did_not_change_are_judged_by_the_pictures_that_were_given(
    made: Made, tmp_path: Path
) -> None:
    """What a decoder becomes without AWQ does not depend on data; what it costs does."""
    for count in (4, 9):
        more = ("--output", str(tmp_path / "o"), "--work", str(tmp_path / "w"), "--no-awq")
        assert run(made.bundle, photos(tmp_path / str(count), count), *more, precision="decoder=int8") == 0
        loss = json.loads((tmp_path / "w" / "precision" / "quantize.json").read_text())["loss"]
        parity = load_bundle(tmp_path / "o").manifest.parity
        assert parity is not None
        assert parity["loss"] == loss
        assert parity["components"][-1]["cosine"] == loss["mean_cosine"]


def test_a_ratio_that_is_given_becomes_the_default(made: Made, tmp_path: Path) -> None:
    """As `calib.joint` says: once more with the ratio that it picked, which must not be lost by that."""
    more = ("--output", str(tmp_path / "o"), "--work", str(tmp_path / "w"), "--no-awq", "--ratio", "0.5")
    assert run(made.bundle, made.pictures, *more, precision="decoder=int8") == 0
    pruning = load_bundle(tmp_path / "o").manifest.pruning
    assert (pruning.default_ratio, pruning.default_tokens) == (0.5, None)
    assert load_bundle(made.output).manifest.pruning == load_bundle(made.bundle).manifest.pruning


def test_onnx_runtime_may_come_in_another_package(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As onnxruntime-gpu, which is not to be installed beside onnxruntime."""
    version = importlib.metadata.version

    def found(package: str) -> str:
        if package == "onnxruntime":
            raise importlib.metadata.PackageNotFoundError(package)
        return version(package)

    monkeypatch.setattr(importlib.metadata, "version", found)
    again = ("--output", str(tmp_path / "again"), "--work", str(made.work), "--keep-float", "none")
    assert run(made.bundle, made.pictures, *again) == 0
    assert load_bundle(tmp_path / "again").manifest.created_by["onnxruntime"] == onnxruntime.__version__


def test_groups_by_name_stay_float32(made: Made, tmp_path: Path) -> None:
    more = (
        "--output",
        str(tmp_path / "o"),
        "--work",
        str(made.work),
        "--keep-float",
        "projector,layers.0.mlp",
    )
    assert run(made.bundle, made.pictures, *more, precision="vision=int8") == 0
    for name in VISION:
        names = set(ir.load(load_bundle(tmp_path / "o").graph(name)).graph.initializers)
        floats = {each for each in names if "projector" in each or "layers.0.mlp" in each}
        assert floats
        assert not any(each.endswith("_int8") for each in floats)
        assert any(each.endswith("_int8") for each in names)
    manifest = load_bundle(tmp_path / "o").manifest
    assert (
        manifest.graphs["decoder_model_merged"]
        == load_bundle(made.bundle).manifest.graphs["decoder_model_merged"]
    )
    assert "decoder_model_portable" in manifest.graphs


def test_a_group_that_is_not_there_is_told_at_once(
    made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ("--output", str(tmp_path / "o"), "--work", str(tmp_path / "w"), "--keep-float", "layers.9.mlp")
    said = refused(capsys, made.bundle, made.pictures, *more, precision="vision=int8")
    assert "keep-float names 'layers.9.mlp', which the graph does not have: expected auto, none or" in said
    assert not (tmp_path / "w" / "precision" / "ranges").exists()


def test_samples_that_cannot_be_run_are_counted_and_named(
    made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"image": str(picture), "prompt": "What?"} for picture in sorted(made.pictures.iterdir())]
    long = [dict(row, prompt="far too long " * 3000) for row in rows]
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows + long))
    more = ("--output", str(tmp_path / "o"), "--work", str(tmp_path / "w"), "--no-awq")
    for _ in range(2):  # found again, they are named again
        assert run(made.bundle, data, *more, precision="decoder=int8") == 0
        said = capsys.readouterr().out
        assert "note: 1 samples could not be run and are left out: " in said, said
        assert "tokens" in said.split("left out: ")[1]
    assert run(made.bundle, data, *more[:-1], precision="decoder=int8") == 0
    assert "note: 4 samples could not be run and are left out: " in (said := capsys.readouterr().out)
    assert "), and 1 more" in said


def test_below_what_was_asked_for_is_exit_code_1(
    made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    more = ("--output", str(tmp_path / "o"), "--work", str(made.work), "--keep-float", "none")
    assert run(made.bundle, made.pictures, *more, "--min-cosine", "1", precision="vision=int8") == 1
    said = capsys.readouterr().out
    assert "below what was asked for: vision has the cosine 0.99" in said
    assert "below --min-cosine 1.0 or 0.98, on pictures held out: give --keep-float auto, or ask for" in said
    assert check([str(tmp_path / "o")]) == 0
    # What auto found enough for its pictures may not be for those held out.
    monkeypatch.setattr(vision_module, "choose_float", lambda *_: ((), frozenset()))
    assert run(made.bundle, made.pictures, *more[:4], "--min-cosine", "1", precision="vision=int8") == 1
    assert "on pictures held out: give more pictures with --samples, or ask" in capsys.readouterr().out


@pytest.mark.parametrize("precision", ["vision=int8", "decoder=int8"])
def test_one_picture_is_not_called_held_out(
    made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str], precision: str
) -> None:
    more = ("--output", str(tmp_path / "o"), "--work", str(tmp_path / "w"), "--no-awq", "--min-cosine", "0.5")
    assert run(made.bundle, photos(tmp_path / "one", 1), *more, precision=precision) == 0
    said = capsys.readouterr().out
    assert "on 1 sample, which ranges and scales are from, at ratio " in said
    assert "note: the data is of one picture, which is judged by too: give more for a fair number" in said


# --- what cannot be done


def refused(
    capsys: pytest.CaptureFixture[str], bundle: Path, pictures: Path, *more: str, **given: str
) -> str:
    assert run(bundle, pictures, *more, **given) == 2
    said = capsys.readouterr()
    assert said.out == ""
    lines = said.err.splitlines()
    assert lines[-1].startswith("error: ")
    return lines[-1]


def test_a_bundle_that_is_quantised_already(
    made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ("--output", str(tmp_path / "o"), "--work", str(tmp_path / "w"))
    said = refused(capsys, made.output, made.pictures, *more, precision="vision=fp16")
    assert "vision_encoder of" in said
    assert said.endswith(
        "is in int8 already, and only float32 is converted: build the bundle again with --precision "
        "vision=fp32, or leave vision out"
    )
    said = refused(capsys, made.output, made.pictures, *more, precision="vision=int8")
    assert "has the precision vision=int8 already: give a bundle in float32, or another --precision" in said
    assert not (tmp_path / "o").exists()


def test_questions_and_skipped_rows_are_those_of_the_other_commands(
    made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pictures, questions = photos(tmp_path / "photos"), tmp_path / "questions"
    questions.write_text("Why?\n")
    (pictures / "broken.png").write_bytes(b"no picture")
    more = ("--output", str(tmp_path / "o"), "--work", str(tmp_path / "w"))
    both = refused(capsys, made.bundle, pictures, *more, "--prompt", "Why?", "--prompts", str(questions))
    assert both == "error: --prompt and --prompts both say what is asked: leave one of the two out"
    assert run(made.bundle, pictures, *more, "--prompt", "Why?", precision="decoder=int8") == 0
    assert (
        "skipped, as they cannot be used: 1 row; samples left: 4\n  broken.png: " in capsys.readouterr().err
    )
    assert (tmp_path / "w" / "precision" / "skipped.txt").read_text().startswith("broken.png: ")
    command = str(load_bundle(tmp_path / "o").manifest.created_by["quantize"])
    assert "--ratio 0.3 " in command
    assert command.endswith("--prompt 'Why?'")


def test_an_output_that_is_no_bundle(made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "o").mkdir()
    (tmp_path / "o" / "letter.txt").touch()
    said = refused(capsys, made.bundle, made.pictures, "--output", str(tmp_path / "o"))
    assert "exists, is not empty and is not a bundle (it has no bundle.json)" in said
    assert [file.name for file in (tmp_path / "o").iterdir()] == ["letter.txt"]


def test_data_without_a_usable_sample(made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    (folder / "broken.png").write_bytes(b"no picture")
    said = refused(
        capsys, made.bundle, folder, "--output", str(tmp_path / "o"), "--work", str(tmp_path / "w")
    )
    assert "none of the 1 rows of" in said


def test_a_bundle_without_a_default_ratio(
    made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = edited(made.bundle, tmp_path / "b", pruning={"default_ratio": None, "default_tokens": 4})
    more = ("--output", str(tmp_path / "o"), "--work", str(tmp_path / "w"))
    said = refused(capsys, bundle, made.pictures, *more)
    assert said.endswith("has 4 tokens as default, not a ratio: give --ratio, as 0.3")
    assert (
        run(bundle, made.pictures, *more, "--ratio", "0.4", "--min-cosine", "0.9", precision="vision=int8")
        == 0
    )


def test_weights_that_are_hard_links(made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(made.bundle, tmp_path / "b", copy_function=os.link)
    more = ("--output", str(tmp_path / "o"), "--work", str(tmp_path / "w"))
    said = refused(capsys, tmp_path / "b", made.pictures, *more, precision="decoder=int8")
    assert said.endswith(
        "is a link to a file that something else has too, and weights are not read through links: copy the "
        "bundle with `cp -rL`"
    )


def test_an_opset_without_the_operators(
    made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = tmp_path / "b"
    shutil.copytree(made.bundle, bundle)
    for name in VISION:
        path = bundle / contract.graph_file(name)
        model = ir.load(path)
        model.opset_imports[""] = 18
        ir.save(model, path)
    edited(made.bundle, bundle)
    said = refused(capsys, bundle, made.pictures, "--output", str(tmp_path / "o"))
    assert said.endswith("has opset 18, and quantised activations need 19: build it again with --opset 20")
