"""`python -m export.info`: counts by hand, for checkpoints and bundles, without weights."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from export.costs import DecoderShape, VisionShape, decoder_shape, mlp_projector_macs
from export.info import count_costs, main
from export.options import BuildOptions
from tests.conftest import Maker, ToyBuild
from tests.toy_llava_next import write_toy_llava_next


@pytest.fixture(scope="module")
def tiled(torch_threads: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_toy_llava_next(tmp_path_factory.mktemp("info") / "next")


def told(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    assert main([*arguments, "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_one_picture_by_hand(toy_checkpoint: Maker, capsys: pytest.CaptureFixture[str]) -> None:
    folder = toy_checkpoint("clip-llama")
    found = told(capsys, str(folder), "--image-size", "70x50", "--ratio", "0.3", "--text-tokens", "10")
    config = json.loads((folder / "config.json").read_text())
    text, tower = config["text_config"], config["vision_config"]
    decoder = DecoderShape(
        width=text["hidden_size"],
        mlp=text["intermediate_size"],
        layers=2,
        heads=text["num_attention_heads"],
        kv_heads=text["num_key_value_heads"],
        head_dim=text["hidden_size"] // text["num_attention_heads"],
        vocabulary=text["vocab_size"],
    )
    encoder = VisionShape(
        width=tower["hidden_size"],
        mlp=tower["intermediate_size"],
        layers=2,
        patches=16,
        patch_inputs=3 * 8 * 8,
        special=1,
        prefix=0,
    )
    projector = mlp_projector_macs(16, tower["hidden_size"], text["hidden_size"])
    assert found["images"] == [
        {
            "width": 70,
            "height": 50,
            "units": 1,
            "grids": [[4, 4]],
            "placeholders": 16,
            "placeholders_kept": 5,
            "prunable": 16,
            "prunable_kept": 5,
            "kv_bytes": decoder.kv_bytes(16),
            "kv_bytes_kept": decoder.kv_bytes(5),
            "encoder_macs": encoder.encoder() + projector,
            "prefill_macs": decoder.prefill(26),
            "prefill_macs_kept": decoder.prefill(15),
        }
    ]


def test_prefix_rows_count_but_are_not_pruned(toy_checkpoint: Maker) -> None:
    options = BuildOptions(model=str(toy_checkpoint("clip-full-gemma-tied")), ratio=0.3)
    (image,) = count_costs(options, [(32, 32)]).images
    assert (image.placeholders, image.placeholders_kept) == (17, 6)
    assert (image.prunable, image.prunable_kept) == (16, 5)


def test_tiles_and_newlines(
    tiled: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "140")
    sizes = ("--image-size", "64x64", "--image-size", "60x30")
    square, wide = told(capsys, str(tiled), *sizes, "--ratio", "0.5")["images"]
    # an overview and 2 x 2 tiles of 4 x 4 tokens; 8 lines end with a newline
    assert (square["units"], square["placeholders"], square["prunable"]) == (5, 5 * 16 + 8, 5 * 16)
    assert (square["placeholders_kept"], square["prunable_kept"]) == (5 * 8 + 8, 5 * 8)
    assert (wide["units"], wide["placeholders"]) == (3, 3 * 16 + 4)
    assert square["encoder_macs"] * 3 == wide["encoder_macs"] * 5
    assert main([str(tiled), *sizes, "--tokens", "20"]) == 0
    table = capsys.readouterr().out
    for part in ("next (llava_next), tokens 20", "64 x 64", "5 of 4 x 4", "88 → 28", "80 → 20"):
        assert part in table


def test_newline_policy(tiled: Path) -> None:
    options = BuildOptions(model=str(tiled), ratio=0.5, newline="drop")
    (image,) = count_costs(options, [(64, 64)]).images
    assert (image.placeholders, image.placeholders_kept) == (88, 40)
    # a request that prunes nothing keeps its newlines
    (whole,) = count_costs(replace(options, ratio=1.0), [(64, 64)]).images
    assert whole.placeholders_kept == 88


def test_a_checkpoint_without_weights(
    toy_checkpoint: Maker,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "140")
    folder = Path(shutil.copytree(toy_checkpoint("siglip-default"), tmp_path / "light"))
    (folder / "model.safetensors").unlink()
    assert main([str(folder), "--image-size", "40x40"]) == 0
    assert "1 without a grid" in capsys.readouterr().out


def test_of_a_hub_id_the_small_files_are_fetched(
    toy_checkpoint: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[str]] = []

    def fetch(_: str, *, allow_patterns: list[str]) -> str:
        asked.append(allow_patterns)
        return str(toy_checkpoint("clip-llama"))

    monkeypatch.setattr("huggingface_hub.snapshot_download", fetch)
    count_costs(BuildOptions(model="some/model"), [(10, 10)])
    assert asked
    assert not [pattern for patterns in asked for pattern in patterns if "safetensors" in pattern]


def test_a_bundle_has_its_own_defaults(toy_build: ToyBuild, capsys: pytest.CaptureFixture[str]) -> None:
    size = ("--image-size", "32x32")
    found = told(capsys, str(toy_build.bundle), *size)
    assert (found["ratio"], found["strategy"], found["images"][0]["prunable_kept"]) == (0.3, "rank", 5)
    assert told(capsys, str(toy_build.bundle), *size, "--tokens", "2")["images"][0]["prunable_kept"] == 2
    assert told(capsys, str(toy_build.bundle), *size, "--strategy", "row")["images"][0]["prunable_kept"] == 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--tokens", "17"), "tokens is 17, but an image has 16: give 1..16"),
        (("--ratio", "2"), "ratio is 2.0, but it is the fraction of tokens kept"),
        (("--image-size", "1x90000000"), "that does not fit in memory"),
    ],
)
def test_errors_are_one_line(
    toy_checkpoint: Maker, arguments: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = str(toy_checkpoint("clip-llama"))
    capsys.readouterr()  # saving a checkpoint shows a bar
    assert main([checkpoint, "--image-size", "32x32", *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert message in captured.err
    assert captured.err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "the following arguments are required: --image-size"),
        (("--image-size", "12"), "'12' is no size: give WIDTHxHEIGHT in pixels, e.g. 1280x720"),
        (("--image-size", "0x5"), "'0x5' is no size"),
        (("--image-size", "5x5", "--text-tokens", "-1"), "'-1' is no number of tokens: give 0 or more"),
    ],
)
def test_argparse_refuses(
    arguments: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["m", *arguments])
    assert message in capsys.readouterr().err


def test_shape_of_a_published_decoder() -> None:
    from transformers import Qwen2Config

    shape = decoder_shape(Qwen2Config(hidden_size=896, num_attention_heads=14, num_key_value_heads=2))
    assert (shape.head_dim, shape.kv_heads) == (64, 2)
