"""Checkpoints that cannot be exported: one sentence each, before weights are loaded where possible."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from export.checkpoint import Checkpoint, load_config, load_model, load_processor, open_checkpoint
from export.errors import CheckpointError
from export.families import FAMILIES, family_for
from export.families.llava import feature_states
from export.steps import quiet_libraries
from tests.conftest import Maker
from tests.toy_llava import LLAVA_TEMPLATE, ToySpec, toy_model

Editor = Callable[[dict[str, Any]], None]


@pytest.fixture
def copied(toy_checkpoint: Maker, tmp_path: Path) -> Path:
    return Path(shutil.copytree(toy_checkpoint("clip-llama"), tmp_path / "checkpoint"))


def edit_config(folder: Path, edit: Editor) -> None:
    config = json.loads((folder / "config.json").read_text())
    edit(config)
    (folder / "config.json").write_text(json.dumps(config))


def encoder_and_layout(folder: Path) -> tuple[Any, Any]:
    checkpoint = open_checkpoint(str(folder))
    config = load_config(checkpoint)
    with quiet_libraries(False):
        processor = load_processor(checkpoint)
    return checkpoint.family.encoder_info(config), checkpoint.family.layout(config, processor)


def loaded(folder: Path) -> Any:
    with quiet_libraries(False):
        return load_model(open_checkpoint(str(folder)))


def test_registry_is_by_model_type() -> None:
    assert all(name == family.model_type for name, family in FAMILIES.items())
    assert {"llava", "llava_next"} <= set(FAMILIES)


def test_unknown_family_lists_the_supported() -> None:
    config = {"model_type": "qwen9_vl", "architectures": ["Qwen9VL"], "vision_config": {}}
    with pytest.raises(
        CheckpointError,
        match=r"Qwen9VL .*'qwen9_vl'\), and the supported families are: .*llava.*; CONTRIB",
    ):
        family_for(config)


def test_text_only_model_says_so() -> None:
    config = {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}
    with pytest.raises(
        CheckpointError, match=r"LlamaForCausalLM .* has no image encoder.* supported family \(.*llava.*\)"
    ):
        family_for(config)


@pytest.mark.parametrize("source", ["./no/such/dir", "/no/such/dir", "nothing", "a/b/c"])
def test_missing_directory(source: str) -> None:
    with pytest.raises(CheckpointError, match="there is no checkpoint directory"):
        open_checkpoint(source)


def test_default_checkpoint_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("export.checkpoint._ROOT", tmp_path)
    with pytest.raises(
        CheckpointError, match=r"there is no checkpoint directory demo/checkpoint: give --model"
    ):
        open_checkpoint("demo/checkpoint")


def test_a_file_is_no_checkpoint(copied: Path) -> None:
    with pytest.raises(CheckpointError, match=r"config\.json is a file, but a checkpoint is a directory"):
        open_checkpoint(str(copied / "config.json"))


def test_hub_id_without_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: object, **__: object) -> str:
        raise ConnectionError("no route to host")

    monkeypatch.setattr("huggingface_hub.snapshot_download", offline)
    with pytest.raises(
        CheckpointError,
        match=r"could not be fetched from the hub \(no route to host\).*hf download some/model",
    ):
        open_checkpoint("some/model")


def test_hub_id_with_network(monkeypatch: pytest.MonkeyPatch, copied: Path) -> None:
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: str(copied))
    checkpoint = open_checkpoint("some/model")
    assert (checkpoint.path, checkpoint.name) == (copied, "model")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, r"has no config\.json: give the directory that save_pretrained wrote"),
        ("{", r"config\.json is not readable JSON"),
        ("[]", r"config\.json holds a list instead of an object"),
    ],
)
def test_config_missing_or_damaged(copied: Path, text: str | None, message: str) -> None:
    (copied / "config.json").unlink()
    if text is not None:
        (copied / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(str(copied))


def test_config_that_transformers_refuses(copied: Path) -> None:
    edit_config(copied, lambda config: config.update(vision_feature_select_strategy="some"))
    with pytest.raises(CheckpointError, match=r"config\.json is not a usable configuration"):
        encoder_and_layout(copied)


def test_weights_missing(copied: Path) -> None:
    (copied / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"has no model\.safetensors: give a checkpoint saved with"):
        open_checkpoint(str(copied))
    (copied / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(CheckpointError, match=r"\(pytorch_model\.bin is of another format\)"):
        open_checkpoint(str(copied))


def test_weights_truncated(copied: Path) -> None:
    path = copied / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(
        CheckpointError, match=r"model\.safetensors is truncated: it has \d+ bytes of the \d+"
    ):
        open_checkpoint(str(copied))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "its header is damaged: copy"),
        (b"\x10\x00\x00\x00\x00\x00\x00\x00not json at all!", "its header is damaged: copy"),
        (b"version https://git-lfs.github.com/spec/v1\n", "it is a git-lfs pointer"),
    ],
)
def test_weights_damaged(copied: Path, content: bytes, message: str) -> None:
    (copied / "model.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(str(copied))


def test_sharded_weights(toy_checkpoint: Maker, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(toy_checkpoint("clip-llama-sharded"), tmp_path / "sharded"))
    shards = sorted(folder.glob("model-*.safetensors"))
    assert len(shards) > 1
    assert sum(value.numel() for value in loaded(folder).parameters()) > 50_000
    shards[1].unlink()
    with pytest.raises(
        CheckpointError, match=rf"names {shards[1].name}, which is missing \({len(shards)} weight files"
    ):
        open_checkpoint(str(folder))
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {}}')
    with pytest.raises(CheckpointError, match="names no weight file"):
        open_checkpoint(str(folder))


def test_weights_incomplete_or_of_another_shape(copied: Path) -> None:
    weights = load_file(copied / "model.safetensors")
    name = next(name for name in weights if name.endswith("linear_1.weight"))
    save_file({key: value for key, value in weights.items() if key != name}, copied / "model.safetensors")
    with pytest.raises(
        CheckpointError, match=r"lacks 1 weights that its config\.json asks for, e\.g\. .*linear_1\.weight"
    ):
        loaded(copied)
    save_file(weights | {name: weights[name][:5].clone()}, copied / "model.safetensors")
    with pytest.raises(
        CheckpointError, match=r"1 weights of another shape .* is \[5, 32\] instead of \[32, 32\]"
    ):
        loaded(copied)


def test_half_precision_weights_are_widened(copied: Path) -> None:
    import torch

    weights = load_file(copied / "model.safetensors")
    save_file({name: value.half() for name, value in weights.items()}, copied / "model.safetensors")
    assert {value.dtype for value in loaded(copied).parameters()} == {torch.float32}


def test_weights_that_transformers_refuses(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import LlavaForConditionalGeneration

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("no\nluck")

    monkeypatch.setattr(LlavaForConditionalGeneration, "from_pretrained", fail)
    with pytest.raises(CheckpointError, match=r"the weights of .* cannot be loaded \(no luck\)"):
        loaded(copied)


def test_processor_missing(copied: Path) -> None:
    (copied / "processor_config.json").unlink()
    (copied / "tokenizer_config.json").unlink()
    (copied / "tokenizer.json").unlink()
    with (
        quiet_libraries(False),
        pytest.raises(CheckpointError, match=r"the processor of .* cannot be loaded"),
    ):
        load_processor(open_checkpoint(str(copied)))


@pytest.mark.parametrize(
    ("processor", "message"),
    [
        (type("TextOnly", (), {})(), "has a TextOnly instead of a processor for text and images"),
        (
            type("Both", (), {"image_processor": 1, "tokenizer": type("Slow", (), {"is_fast": False})()})(),
            r"\(Slow\) has no fast form",
        ),
    ],
)
def test_processor_of_another_kind(
    copied: Path, monkeypatch: pytest.MonkeyPatch, processor: object, message: str
) -> None:
    monkeypatch.setattr("transformers.AutoProcessor.from_pretrained", lambda *_, **__: processor)
    with pytest.raises(CheckpointError, match=message):
        load_processor(open_checkpoint(str(copied)))


@pytest.mark.parametrize("name", ["Qwen2_5_VLProcessor", "SmolVLMProcessor"])
@pytest.mark.parametrize("recorded", [True, False])
def test_processors_with_a_part_for_videos(copied: Path, name: str, recorded: bool) -> None:
    """They load without torchvision and num2words, by the name in a file or by the model type."""
    import transformers
    from PIL import Image

    kinds = {"Qwen2_5_VLProcessor": "qwen2_5_vl", "SmolVLMProcessor": "smolvlm"}
    settings: dict[str, object] = {"size": {"longest_edge": 64}} if name.startswith("Smol") else {}
    settings["image_processor_type"] = {
        "Qwen2_5_VLProcessor": "Qwen2VLImageProcessor",
        "SmolVLMProcessor": "SmolVLMImageProcessor",
    }[name]
    (copied / "processor_config.json").unlink()
    tokenizer = json.loads((copied / "tokenizer_config.json").read_text())
    tokenizer.pop("processor_class", None)
    (copied / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    (copied / "preprocessor_config.json").write_text(
        json.dumps(settings | ({"processor_class": name} if recorded else {}))
    )
    checkpoint = Checkpoint(copied, str(copied), "m", FAMILIES[kinds[name]])
    with quiet_libraries(False):
        processor = load_processor(checkpoint)
    assert isinstance(processor, getattr(transformers, name))
    made = processor(text="a <image> b", images=[Image.new("RGB", (60, 40))])
    assert made["input_ids"][0].count(3) > 1
    messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Hm?"}]}]
    assert "<image>" in processor.apply_chat_template(messages, chat_template=LLAVA_TEMPLATE)


def set_in(section: str, **values: object) -> Editor:
    return lambda config: config[section].update(values)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (
            set_in("vision_config", model_type="pixtral"),
            r"'pixtral', and the supported towers of a llava checkpoint are",
        ),
        (set_in("text_config", max_position_embeddings=0), r"\(llama\) has no max_position_embeddings"),
        (
            lambda config: config.update(vision_feature_layer=4),
            r"is 4, but the tower has 3 layers: give -4\.\.3",
        ),
        (
            lambda config: config.update(vision_feature_layer=[-2, -5]),
            r"is \[-2, -5\], but the tower has 3 layers",
        ),
        (lambda config: config.update(vision_feature_layer=0), r"is 0, so no attention reaches the features"),
    ],
)
def test_settings_that_cannot_be_exported(copied: Path, edit: Editor, message: str) -> None:
    edit_config(copied, edit)
    with pytest.raises(CheckpointError, match=message):
        encoder_and_layout(copied)


@pytest.mark.parametrize(
    ("name", "layers", "tokens", "prefix", "grid"),
    [
        ("clip-llama", 2, 16, 0, (4, 4)),
        ("siglip-qwen2", 3, 16, 0, (4, 4)),
        ("clip-mistral-list", 2, 16, 0, (4, 4)),
        ("clip-full-gemma-tied", 2, 16, 1, (4, 4)),
        ("siglip-default", 2, 15, 0, None),
    ],
)
def test_layouts(
    toy_checkpoint: Maker, name: str, layers: int, tokens: int, prefix: int, grid: object
) -> None:
    encoder, layout = encoder_and_layout(toy_checkpoint(name))
    assert (encoder.layers, encoder.special_tokens) == (layers, 1 if name.startswith("clip") else 0)
    assert (layout.tokens, layout.prefix_tokens, layout.grid) == (tokens, prefix, grid)


def test_feature_layers_are_counted_from_the_embeddings() -> None:
    assert feature_states(-2, 3) == (2,)
    assert feature_states([1, -1], 3) == (1, 3)


def test_a_state_space_language_model_has_no_such_cache(torch_threads: None) -> None:
    model = toy_model(ToySpec(text="mamba"))
    model.config.text_config.max_position_embeddings = 512
    with pytest.raises(
        CheckpointError, match=r"\(mamba\) does not keep one key and one value tensor of equal shape"
    ):
        FAMILIES["llava"].decoder_info(model)


def test_layers_with_caches_of_their_own_shape(torch_threads: None, monkeypatch: pytest.MonkeyPatch) -> None:
    model = toy_model(ToySpec())
    model.config.text_config.num_hidden_layers = 2  # one layer answers
    with pytest.raises(CheckpointError, match=r"\(llama\) does not keep one key and one value tensor"):
        FAMILIES["llava"].decoder_info(model)


def test_checkpoint_record_names_its_source(copied: Path) -> None:
    assert open_checkpoint(str(copied)) == Checkpoint(copied, str(copied), "checkpoint", FAMILIES["llava"])
