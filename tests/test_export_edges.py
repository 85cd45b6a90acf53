"""Export: requests, checkpoints and disks at the edge of what is allowed."""

from __future__ import annotations

import io
import itertools
import json
import shlex
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

import fopru_graph.options
from calib.bundle_writer import BundleWriter
from calib.errors import OutputError
from export.build import BuildOptions
from export.checkpoint import load_config, open_checkpoint
from export.errors import CheckpointError, OptionError
from export.families import family_for
from export.manifest import _command
from export.options import AGGREGATIONS, STRATEGIES
from export.parity import ParityOptions, compare_with_torch
from export.plan import plan_build
from export.prompt_template import prompt_from_processor
from export.report import print_report
from export.steps import quiet_libraries
from runtime.bundle import load_bundle
from tests.conftest import Maker, ToyBuild
from tests.test_export_cli import REPORT
from tests.test_export_options import SINGLE
from tests.toy_llava import ToySpec, toy_processor


@pytest.fixture
def copied(toy_checkpoint: Maker, tmp_path: Path) -> Path:
    return Path(shutil.copytree(toy_checkpoint("clip-llama"), tmp_path / "checkpoint"))


def edit_json(path: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    data = json.loads(path.read_text())
    edit(data)
    path.write_text(json.dumps(data))


def plan(folder: Path, **options: Any) -> Any:
    with quiet_libraries(False):
        return plan_build(BuildOptions(model=str(folder), **options), open_checkpoint(str(folder)))


def test_choices_are_among_those_of_the_rewriter() -> None:
    # bundles know FoPru's own; the rewriter has selectors that the manifest's format 1 does not name
    assert fopru_graph.options.STRATEGIES[: len(STRATEGIES)] == STRATEGIES
    assert fopru_graph.options.AGGREGATIONS[: len(AGGREGATIONS)] == AGGREGATIONS


def test_a_full_disk_that_numpy_reports_without_a_number(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"the disk is full while writing"), BundleWriter(tmp_path / "b"):
        raise OSError("1536 requested and 512 written")
    assert list(tmp_path.iterdir()) == []


def test_brackets_in_paths_and_notes_are_printed_as_they_are() -> None:
    console = Console(file=io.StringIO(), width=200)
    odd = replace(REPORT, bundle=Path("/b[1]x/[old]/b"), model="[red]m[/]", notes=("a [/] note",))
    print_report(odd, console)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    for part in ("/b[1]x/[old]/b", "[red]m[/]", "a [/] note"):
        assert part in text


def test_image_token_in_the_prompt_is_refused_before_the_weights(copied: Path) -> None:
    with pytest.raises(OptionError, match=r"the prompt contains the image token '<image>': leave it out"):
        plan(copied, prompt="<image> hi")


def test_a_request_longer_than_the_model_is_refused_before_the_weights(copied: Path) -> None:
    edit_json(copied / "config.json", lambda c: c["text_config"].update(max_position_embeddings=40))
    with pytest.raises(OptionError, match=r"more than the 40 positions of this language model: give a small"):
        plan(copied, ratio=0.9)


def test_row_budget_that_is_no_whole_row_is_noted(copied: Path) -> None:
    asked = plan(copied, strategy="row", tokens=7)
    assert asked.kept == (4,)
    assert asked.notes == ("7 tokens were asked for; strategy 'row' keeps 4, the most whole rows in it",)
    assert plan(copied, strategy="row", tokens=8).notes == ()


def test_outer_blanks_of_a_prompt_are_dropped(copied: Path) -> None:
    assert plan(copied, prompt=" Hi there? ").question == "Hi there?"


def test_the_recorded_command_makes_the_bundle_again() -> None:
    policies = {"position_ids": "original", "row_scope": "stitched", "newline": "drop"}
    options = BuildOptions(
        "my model", Path("out dir"), tokens=4, strategy="row", layer=1, prompt="a b?", **policies
    )
    words = shlex.split(_command(options))
    assert words[:5] == ["python", "-m", "export.build", "--model", "my model"]
    pairs = [("--tokens", "4"), ("--layer", "1"), ("--prompt", "a b?"), ("--output", "out dir")]
    pairs += [("--position-ids", "original"), ("--row-scope", "stitched"), ("--newline", "drop")]
    for pair in pairs:
        assert pair in list(itertools.pairwise(words))


def test_a_template_that_writes_the_date_is_noted() -> None:
    processor = toy_processor(ToySpec())
    processor.chat_template = "{% set today = strftime_now('%Y') %}" + processor.chat_template
    token = processor.tokenizer.convert_tokens_to_ids("<image>")
    note = prompt_from_processor(processor, token, SINGLE).note
    assert note is not None
    assert note.endswith("the chat template writes the date: the bundle keeps today's")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model_type": ["llava"], "vision_config": {}}, r"model_type \['llava'\]\), and the supported"),
        ({"model_type": "llava_llama", "mm_vision_tower": "x"}, r"format of the original LLaVA code"),
        (
            {"model_type": "phi3_v", "img_processor": {}},
            r"'phi3_v'\), and the supported families are: ",
        ),
        ({"model_type": "llama"}, r"which has no image encoder"),
    ],
)
def test_families_that_are_refused(config: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        family_for(config)


@pytest.mark.parametrize("weight_map", [[], {"a": 3}, {}])
def test_index_that_names_no_file(copied: Path, weight_map: Any) -> None:
    (copied / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(CheckpointError, match=r"names no weight file"):
        open_checkpoint(str(copied))


def test_weight_offsets_that_are_no_numbers(copied: Path) -> None:
    header = json.dumps({"w": {"data_offsets": ["a", "b"]}}).encode()
    (copied / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(CheckpointError, match=r"its header is damaged"):
        open_checkpoint(str(copied))


def test_towers_that_are_not_square(copied: Path) -> None:
    checkpoint = open_checkpoint(str(copied))
    config = load_config(checkpoint)
    config.vision_config.image_size = [32, 48]
    with pytest.raises(CheckpointError, match=r"image_size \[32, 48\].*towers of this family are square"):
        checkpoint.family.encoder_info(config)


def test_a_bundle_finds_its_checkpoint_from_anywhere(
    toy_build: ToyBuild, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    bundle = load_bundle(toy_build.bundle)
    assert Path(bundle.manifest.model.source).is_absolute()
    with quiet_libraries(False):
        assert compare_with_torch(bundle, ParityOptions(new_tokens=2)).ok


def test_parity_needs_no_golden_tensors_when_everything_is_given(toy_build: ToyBuild, tmp_path: Path) -> None:
    bundle = load_bundle(toy_build.bundle)
    for name in list(bundle.manifest.files):
        if name.startswith("golden/golden"):
            del bundle.manifest.files[name]
    picture = bundle.path / "golden" / "image_0.png"
    options = ParityOptions(images=(picture,), prompt=" What is it? ", new_tokens=2)
    with quiet_libraries(False):
        assert compare_with_torch(bundle, options).ok


def test_parity_refuses_another_model(toy_build: ToyBuild, copied: Path) -> None:
    edit_json(copied / "config.json", lambda c: c["vision_config"].update(num_hidden_layers=2))
    edit_json(copied / "config.json", lambda c: c["text_config"].update(num_hidden_layers=7))
    bundle = load_bundle(toy_build.bundle)
    with pytest.raises(OptionError, match=r"is not the model of .* \(.*\): give --model the bundle's"):
        compare_with_torch(bundle, ParityOptions(model=str(copied)))
