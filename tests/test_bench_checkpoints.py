"""Random-weight checkpoints: laid out, loaded and run like any other."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoProcessor, LlavaForConditionalGeneration

from bench import checkpoints
from bench.checkpoints import Recipe, ensure_checkpoint, main, weight_bytes, write_checkpoint
from bench.configurations import CONFIGURATIONS, configuration, hf_config
from bench.errors import BenchError
from bench.processors import PROMPT, special_token_ids


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny checkpoint, in several shards."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoints, "SHARD_BYTES", 400_000)
        return write_checkpoint(Recipe("tiny"), tmp_path_factory.mktemp("bench") / "tiny")


def test_checkpoint_loads_whole_and_answers(tiny: Path) -> None:
    model, info = LlavaForConditionalGeneration.from_pretrained(tiny, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    processor = AutoProcessor.from_pretrained(tiny)
    content = [{"type": "image"}, {"type": "text", "text": PROMPT}]
    text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    picture = np.random.default_rng(0).integers(0, 256, (90, 130, 3), dtype=np.uint8)
    inputs = processor(images=[picture], text=text, return_tensors="pt")
    assert int((inputs["input_ids"] == special_token_ids()["image"]).sum()) == 64
    with torch.inference_mode():
        logits = model.eval()(**inputs, logits_to_keep=1).logits
    assert logits.shape == (1, 1, 512)
    assert torch.isfinite(logits).all()


def test_attention_tells_tokens_apart(tiny: Path) -> None:
    # Scores that are all equal would make every selection a tie.
    model = LlavaForConditionalGeneration.from_pretrained(tiny, attn_implementation="eager").eval()
    with torch.inference_mode():
        pixels = torch.randn(1, 3, 112, 112, generator=torch.Generator().manual_seed(0))
        attention = model.model.vision_tower(pixels, output_attentions=True).attentions[-2]
    scores = attention.mean(dim=(1, 2))[0, 1:] * attention.shape[-1]  # in units of 1/Q
    assert scores.std() > 0.05
    assert attention.max() < 0.9


def test_shards_are_indexed(tiny: Path) -> None:
    index = json.loads((tiny / "model.safetensors.index.json").read_text())
    files = sorted(path.name for path in tiny.glob("*.safetensors"))
    assert len(files) > 1
    assert sorted(set(index["weight_map"].values())) == files
    assert files[0] == f"model-00001-of-{len(files):05d}.safetensors"
    # each file adds a header to its tensors
    assert index["metadata"]["total_size"] < weight_bytes(tiny) < 1.02 * index["metadata"]["total_size"]


def test_seed_decides_the_weights(tiny: Path, tmp_path: Path) -> None:
    other = write_checkpoint(Recipe("tiny", seed=1), tmp_path / "other")
    models = [LlavaForConditionalGeneration.from_pretrained(path) for path in (tiny, other)]
    weights = [model.model.multi_modal_projector.linear_1.weight for model in models]
    assert not torch.equal(*weights)


def test_fewer_decoder_layers_and_half_precision(tmp_path: Path) -> None:
    path = write_checkpoint(Recipe("tiny", decoder_layers=1, dtype="float16"), tmp_path / "short")
    model = LlavaForConditionalGeneration.from_pretrained(path)
    assert model.config.text_config.num_hidden_layers == 1
    assert model.dtype == torch.float16


def test_same_recipe_is_not_written_again(tmp_path: Path) -> None:
    path = ensure_checkpoint(Recipe("tiny", decoder_layers=1), tmp_path / "c")
    written = (path / "config.json").stat().st_mtime_ns
    assert ensure_checkpoint(Recipe("tiny", decoder_layers=1), path) == path
    assert (path / "config.json").stat().st_mtime_ns == written
    ensure_checkpoint(Recipe("tiny", decoder_layers=2), path)
    assert json.loads((path / "bench.recipe").read_text())["decoder_layers"] == 2


def test_a_changed_configuration_is_another_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = ensure_checkpoint(Recipe("tiny", decoder_layers=1), tmp_path / "c")
    tiny = CONFIGURATIONS["tiny"]
    wider = replace(tiny, vision=tiny.vision | {"intermediate_size": 192})
    monkeypatch.setitem(CONFIGURATIONS, "tiny", wider)
    ensure_checkpoint(Recipe("tiny", decoder_layers=1), path)
    assert json.loads((path / "config.json").read_text())["vision_config"]["intermediate_size"] == 192


def test_a_directory_that_cannot_be_made_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    assert main(["tiny", str(tmp_path / "file" / "c")]) == 2
    assert capsys.readouterr().err.startswith("error: [Errno 20] Not a directory")


def test_a_directory_of_somebody_else_is_left_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(
        BenchError, match="exists and is not a checkpoint of this script: give another directory"
    ):
        write_checkpoint(Recipe("tiny"), tmp_path)
    assert main(["tiny", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith("error: ")
    assert (tmp_path / "mine.txt").read_text() == "mine"


def test_recipes_are_checked() -> None:
    with pytest.raises(BenchError, match=r"no configuration is called 'llava': choose one of llava-1"):
        Recipe("llava")
    with pytest.raises(BenchError, match=r"llava-1\.5-7b has 32 decoder layers, not 33: give 1 to 32"):
        Recipe("llava-1.5-7b", decoder_layers=33)
    with pytest.raises(
        BenchError, match="weights cannot be written as 'int8': choose one of float32, float16"
    ):
        Recipe("tiny", dtype="int8")


@pytest.mark.parametrize("name", sorted(CONFIGURATIONS))
def test_configurations_have_their_published_size(name: str) -> None:
    with torch.device("meta"):
        model = LlavaForConditionalGeneration(hf_config(configuration(name), special_token_ids()))
    billions = {
        "llava-1.5-7b": 7.06,
        "llava-onevision-0.5b": 0.89,
        "clip-l-336": 0.30,
        "clip-l-336-qwen2-0.5b": 0.80,
        "smolvlm-256m-decoder": 0.16,  # 256 M less the tower of SigLIP base, 93 M
        "tiny": 0.00,
    }
    assert round(sum(parameter.numel() for parameter in model.parameters()) / 1e9, 2) == billions[name]
