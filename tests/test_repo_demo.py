"""The first ten minutes: what `make demo` and the README's Python do, on the bundled checkpoint."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from export import build
from runtime import __main__ as runtime_command
from runtime import check

ROOT = Path(__file__).resolve().parent.parent
PICTURE = ROOT / "demo" / "images" / "three_digits.png"
READ = "Read the digits from left to right."


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("demo") / "checkpoint"
    # the default model, found from any working directory
    assert build.main(["--ratio", "0.3", "--output", str(target)]) == 0
    return target


def test_the_build_agrees_with_pytorch_at_every_stage(bundle: Path) -> None:
    manifest = json.loads((bundle / "bundle.json").read_text())
    assert manifest["parity"]["ok"]
    assert [stage["name"] for stage in manifest["parity"]["stages"] if stage["skipped"]] == []
    assert manifest["layout"]["tokens"] == 196
    assert json.loads((bundle / "golden" / "golden.json").read_text())["ratio"] == 0.3
    with np.load(bundle / "golden" / "golden.npz") as golden:
        assert golden["kept_counts"].tolist() == [59]


def test_the_pruned_graph_adds_only_protobuf(bundle: Path) -> None:
    weights = {path.name for path in (bundle / "onnx").glob("*.onnx_data")}
    assert "vision_encoder.onnx_data" in weights
    assert "vision_encoder_fopru.onnx_data" not in weights
    assert (bundle / "onnx" / "vision_encoder_fopru.onnx").stat().st_size < 300_000


def test_the_command_answers_and_draws(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    overlay = tmp_path / "overlay.png"
    command = [str(bundle), "--image", str(PICTURE), "--prompt", READ, "--overlay", str(overlay)]
    assert runtime_command.main(command) == 0
    out, err = capsys.readouterr()
    assert out.strip() == "7 5 2"
    assert "196 → 59" in err
    assert str(overlay) in err
    with Image.open(overlay) as picture:
        assert min(picture.size) >= 600
        assert np.asarray(picture.convert("L")).std() > 10  # something is drawn


@pytest.mark.parametrize(("ratio", "tokens"), [("1", 196), ("0.5", 98), ("0.1", 20)])
def test_one_bundle_serves_every_ratio(
    bundle: Path, ratio: str, tokens: int, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [str(bundle), "--image", str(PICTURE), "--prompt", READ, "--ratio", ratio, "--json"]
    assert runtime_command.main(command) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["text"].strip() == "7 5 2"
    assert result["visual_tokens_after"] == [tokens]
    assert result["pruned"] is (tokens < 196)


def test_the_golden_check_passes_without_torch(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert check.main([str(bundle)]) == 0
    assert "tokens" in capsys.readouterr().out


def test_the_python_of_the_readme_runs(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert len(blocks) == 1
    monkeypatch.chdir(ROOT)
    exec(compile(blocks[0].replace("bundles/checkpoint", str(bundle)), "README.md", "exec"), {})
    out = capsys.readouterr().out
    assert out.startswith("3 (196,) → (59,)")
    assert out.endswith("1 2")
