"""OpenVINO GenAI's own pruning beside ours: the model that is measured, and what the command refuses."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bench.family_models import Cut
from bench.peers import openvino_pruning
from bench.peers.openvino_pruning import wide_model


def test_the_wide_model_is_the_published_tower_with_a_decoder_of_half_a_billion() -> None:
    config, _ = wide_model(12).build(Cut(depth=8))
    text, tower = config.text_config, config.vision_config
    assert (tower.depth, tower.hidden_size, tower.out_hidden_size) == (8, 1280, 896)
    assert (text.num_hidden_layers, text.hidden_size, len(text.layer_types)) == (12, 896, 12)
    heads = text.hidden_size // text.num_attention_heads
    assert sum(text.rope_parameters["mrope_section"]) == heads // 2  # half a head turns


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--side", "100"], "--side is 100: give a multiple of 28"),
        (["--decoder-layers", "0"], "--decoder-layers is 0: give at least 1"),
    ],
)
def test_the_pruning_command_refuses(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert openvino_pruning.main(arguments) == 2
    assert message in capsys.readouterr().err


def test_the_pruning_command_names_what_it_lacks(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lacking = replace(openvino_pruning.PEER, modules=("no_such_engine",), install="pip install fake")
    monkeypatch.setattr(openvino_pruning, "PEER", lacking)
    assert openvino_pruning.main([]) == 2
    assert "no_such_engine cannot be imported: pip install fake" in capsys.readouterr().err
