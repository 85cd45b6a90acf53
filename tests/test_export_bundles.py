"""Whole builds of toy checkpoints: every kind of tower and language model answers as PyTorch does."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from export.build import BuildOptions, build
from export.checkpoint import load_model, load_processor, open_checkpoint
from export.golden import SAMPLE_IMAGE, open_images
from export.parity import ParityOptions, compare_with_torch
from export.parity import main as parity_main
from export.steps import quiet_libraries
from runtime import contract
from runtime.bundle import load_bundle
from runtime.generator import Generator
from runtime.parity import STAGES
from runtime.plan import Amount
from runtime.request import Request
from tests.conftest import Maker, ToyBuild

# combination, options, visual tokens kept of 16, layer that scores
BUILDS: dict[str, tuple[dict[str, Any], int, int]] = {
    "clip-llama": ({"ratio": 0.3}, 5, 1),
    "siglip-qwen2": ({"ratio": 0.5, "strategy": "row", "opset": 23}, 8, 2),
    "clip-mistral-list": ({"tokens": 7, "aggregation": "col_mean_patch"}, 7, 1),
    "clip-full-gemma-tied": ({"ratio": 0.3, "aggregation": "cls", "layer": 0}, 5, 0),
}


@dataclass(frozen=True)
class Built:
    name: str
    path: Path
    checkpoint: Path
    report: dict[str, Any]


@pytest.fixture(scope="module", params=sorted(BUILDS))
def built(
    request: pytest.FixtureRequest, toy_checkpoint: Maker, tmp_path_factory: pytest.TempPathFactory
) -> Built:
    name = request.param
    checkpoint = toy_checkpoint(name)
    if name == "clip-llama":  # the build that other suites share
        shared: ToyBuild = request.getfixturevalue("toy_build")
        return Built(name, shared.bundle, checkpoint, shared.report)
    target = tmp_path_factory.mktemp("built") / name
    report = build(BuildOptions(model=str(checkpoint), output=target, **BUILDS[name][0]))
    return Built(name, target, checkpoint, report.to_dict())


def load(built: Built) -> tuple[Any, Any]:
    with quiet_libraries(False):
        checkpoint = open_checkpoint(str(built.checkpoint))
        return load_model(checkpoint), load_processor(checkpoint)


def test_parity_holds_at_the_default(built: Built) -> None:
    assert built.report["ok"], built.report["parity"]
    stages = [stage["name"] for stage in built.report["parity"]["stages"] if not stage["skipped"]]
    portable = [f"{name} of {contract.DECODER_PORTABLE}" for name in ("logits", "tokens")]
    assert stages == [*(stage.name for stage in STAGES), *portable]
    prefix = load_bundle(built.path).manifest.layout.prefix_tokens
    assert list(built.report["kept"]) == [prefix + BUILDS[built.name][1]]
    assert built.report["layer"] == BUILDS[built.name][2]


def test_ratio_1_answers_as_the_unmodified_model(built: Built) -> None:
    model, processor = load(built)
    images = open_images([SAMPLE_IMAGE]) * 2
    messages = [
        {
            "role": "user",
            "content": [*({"type": "image", "image": i} for i in images), {"type": "text", "text": "Which?"}],
        }
    ]
    inputs = processor.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    made = model.generate(**inputs, do_sample=False, max_new_tokens=16, min_new_tokens=16)
    wanted = made[0, inputs["input_ids"].shape[1] :].tolist()
    # generate() suppresses the end of the answer until min_new_tokens; the toy models never choose it first
    generator = Generator(load_bundle(built.path))
    result = generator.generate(
        Request("Which?", (SAMPLE_IMAGE, SAMPLE_IMAGE), ratio=1.0, max_new_tokens=16, ignore_eos=True)
    )
    assert list(result.token_ids) == wanted
    assert not result.pruned


@pytest.mark.parametrize("ratio", [0.25, 0.75])
def test_other_ratios_and_images_need_no_rebuild(built: Built, ratio: float, tmp_path: Path) -> None:
    from PIL import Image

    noise = np.random.default_rng(7).integers(0, 256, (50, 70, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "noise.png")
    options = ParityOptions(images=(tmp_path / "noise.png", SAMPLE_IMAGE), prompt="And now?", ratio=ratio)
    with quiet_libraries(False):
        report = compare_with_torch(load_bundle(built.path), options)
    assert report.ok, report.to_dict()


def test_manifest_describes_the_build(built: Built) -> None:
    manifest = load_bundle(built.path).manifest
    options, _, layer = BUILDS[built.name]
    assert manifest.pruning.strategy == options.get("strategy", "rank")
    assert manifest.pruning.aggregation == options.get("aggregation", "col_mean")
    assert manifest.pruning.default_tokens == options.get("tokens")
    assert manifest.pruning.layer == layer
    assert manifest.parity is not None
    assert manifest.parity["ok"] is True
    assert manifest.created_by["opset"] == options.get("opset", 20)
    assert "--model" in str(manifest.created_by["command"])
    golden = json.loads((built.path / "golden" / "golden.json").read_text())
    assert (golden["ratio"], golden["tokens"]) == (options.get("ratio"), options.get("tokens"))


def test_opset_decides_the_form_of_attention(built: Built) -> None:
    import onnx

    opset = BUILDS[built.name][0].get("opset", 20)
    for row in built.report["graphs"]:
        model = onnx.load(built.path / row["file"], load_external_data=False)
        domains = {entry.domain: entry.version for entry in model.opset_import}
        contrib = {"com.microsoft": 1} if row["name"] == contract.DECODER else {}
        assert domains == {"": opset, **contrib}
        assert model.ir_version == 10
        kinds = {node.op_type for node in model.graph.node}
        if row["name"] == contract.VISION_ENCODER:
            assert ("Attention" in kinds) == (opset == 23)


def test_pruned_graph_shares_the_weights(built: Built) -> None:
    import onnx

    plain = built.path / contract.graph_file(contract.VISION_ENCODER)
    pruned = onnx.load(
        built.path / contract.graph_file(contract.VISION_ENCODER_FOPRU), load_external_data=False
    )
    located = {
        entry.value
        for tensor in pruned.graph.initializer
        for entry in tensor.external_data
        if entry.key == "location"
    }
    assert located == {plain.name + "_data"}
    assert {path.suffix for path in (built.path / "onnx").iterdir()} == {".onnx", ".onnx_data"}
    assert len(list((built.path / "onnx").glob("*.onnx_data"))) == 3


def test_measuring_never_holds_both_encoders(toy_bundle_dir: Path) -> None:
    # they would set the peak memory of a build
    from runtime.parity import measure

    generator = Generator(load_bundle(toy_bundle_dir))
    measure(generator, [SAMPLE_IMAGE], "What?", Amount(tokens=5), 1)
    assert contract.VISION_ENCODER not in generator.loaded_graphs
    assert contract.VISION_ENCODER_FOPRU in generator.loaded_graphs


def test_parity_command_on_a_bundle(toy_bundle_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert parity_main([str(toy_bundle_dir), "--tokens", "3", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["ok"] is True
    assert report["stages"][0]["name"] == "pixel_values"


def test_parity_command_prints_a_table(toy_bundle_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert parity_main([str(toy_bundle_dir), "--image", str(SAMPLE_IMAGE), "--prompt", "Hm?"]) == 0
    assert "kept_indices" in capsys.readouterr().out


def test_parity_names_the_stage_that_diverges(
    toy_bundle_dir: Path, toy_checkpoint: Maker, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from tests.toy_llava import ToySpec, write_toy_llava

    other = write_toy_llava(tmp_path / "other", ToySpec(text_layers=2), seed=1)
    assert parity_main([str(toy_bundle_dir), "--model", str(other), "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["first_divergence"] == "image_features"


def test_parity_refuses_another_model(
    toy_bundle_dir: Path, toy_checkpoint: Maker, capsys: pytest.CaptureFixture[str]
) -> None:
    assert parity_main([str(toy_bundle_dir), "--model", str(toy_checkpoint("clip-full-gemma-tied"))]) == 2
    assert "give --model the bundle's checkpoint" in capsys.readouterr().err
