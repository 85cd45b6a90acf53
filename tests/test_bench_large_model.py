"""The script of the large model, on the tiny one, and its arithmetic; never its times."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx_ir as ir
import pytest

from bench import large_model
from bench.configurations import configuration, hf_config
from bench.errors import BenchError
from bench.memory import ChildUsage
from bench.processors import special_token_ids


def test_both_answers_have_a_cache_of_their_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = [
        "--model",
        "tiny",
        "--work",
        str(tmp_path / "work"),
        "--results",
        str(tmp_path),
        "--threads",
        "1",
    ]
    assert large_model.main(options) == 0
    found = json.loads((tmp_path / "large-tiny.json").read_text())["figures"]
    whole, pruned = found["answers"]["1.0"], found["answers"]["0.3"]
    assert (whole["visual_tokens"], pruned["visual_tokens"]) == (64, 19)
    assert whole["prompt_tokens"] - pruned["prompt_tokens"] == 64 - 19
    row = 2 * 2 * 2 * 16 * 4  # keys and values of 2 layers, 2 heads of 16 numbers
    assert whole["kv_bytes"] - pruned["kv_bytes"] == row * (64 - 19)
    assert whole["kv_bytes"] % row == 0
    assert whole["weight_bytes_read"] > 0
    build = found["build"]
    assert "--precision decoder=int4" in build["command"]
    assert "tiny-float16-int4 " in build["command"]  # `tiny-int4` is that of bench.vlm, from float32
    assert build["checkpoint_bytes"] < build["bundle_bytes"]  # float32 towers, from a checkpoint in 16 bits
    assert found["loss"]["positions"] >= 500
    assert "One answer of 32 tokens" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "prompt", "bytes_"),
    [
        ("llava-1.5-7b", 600, 32 * 512 * 600 * 4),  # scores of a chunk of the prompt
        ("llava-1.5-7b", 100, 16 * 577 * 577 * 4),  # scores of the tower, with its CLS row
        ("llava-onevision-0.5b", 30, 16 * 729 * 729 * 4),  # and without one
    ],
)
def test_largest_activation(name: str, prompt: int, bytes_: int) -> None:
    config = hf_config(configuration(name), special_token_ids())
    assert large_model.largest_activation(config, prompt) == bytes_


def test_a_file_that_two_graphs_read_counts_once(tmp_path: Path) -> None:
    (tmp_path / "weights").write_bytes(np.zeros(64, np.float32).tobytes())
    for name, offset in (("a", 0), ("b", 0), ("c", 128)):
        tensor = ir.ExternalTensor(
            "weights", offset, 128, ir.DataType.FLOAT, shape=ir.Shape([32]), name="w", base_dir=tmp_path
        )
        weight = ir.Value(name="w", const_value=tensor, type=ir.TensorType(tensor.dtype), shape=tensor.shape)
        node = ir.node("Identity", [weight])
        graph = ir.Graph(
            [], [node.outputs[0]], nodes=[node], initializers=[weight], opset_imports={"": 20}, name=name
        )
        ir.save(ir.Model(graph, ir_version=10), tmp_path / f"{name}.onnx")
    files = [tmp_path / f"{name}.onnx" for name in "abc"]
    assert large_model.read_bytes(files[:2]) == 128
    assert large_model.read_bytes(files) == 256


def test_a_failed_answer_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(large_model, "run_measured", lambda _: ChildUsage(1, 1.0, 1, None, ""))
    with pytest.raises(
        BenchError, match=r"the answer of bundles/x at ratio 0.3 ended with status 1: see its"
    ):
        large_model.answer(Path("bundles/x"), 0.3, 1)


def test_floor_is_weights_cache_and_activation() -> None:
    said = {"kv_bytes": 30, "timings": {"decode": 6.2}, "token_ids": list(range(32))}
    found = large_model.Answer(0.3, said, SimpleNamespace(), 100, 7)  # type: ignore[arg-type]  # not looked at
    assert found.floor == 137
    assert found.token_seconds == pytest.approx(0.2)
