"""`python -m runtime.engine`: what it prints, its exit codes, and that it runs where only the runtime is."""

from __future__ import annotations

import argparse
import json
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from export.engine import main as export_main
from runtime import engine
from runtime.engine import main
from runtime.tensorrt.identity import Probe
from tests.engine_double import fake_tensorrt

ROOT = Path(__file__).resolve().parent.parent
Bundles = Callable[[str], Path]
LIMITS = ("--max-images", "2", "--max-prompt", "40", "--max-new-tokens", "10")


@pytest.fixture
def bundle(family_bundle: Bundles, tmp_path: Path) -> Path:
    return Path(shutil.copytree(family_bundle("llava"), tmp_path / "llava"))


def orin(root: Path, trt: Any = None, *, available: int = 6400000, tools: Sequence[str] = ()) -> Probe:
    """An Orin Nano: files of its kernel, and the tools that it has."""
    for name, text in (
        ("proc/device-tree/compatible", "nvidia,p3767\0nvidia,tegra234\0"),
        ("etc/nv_tegra_release", "# R36 (release), REVISION: 4.3, GCID: 1\n"),
        ("proc/meminfo", f"MemTotal: 7802400 kB\nMemAvailable: {available} kB\n"),
    ):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    answers = {"dpkg-query": "10.3.0.30-1+cuda12.5", "trtexec": "help"}

    def run(command: Sequence[str]) -> str | None:
        return answers[command[0]] if command[0] in tools else None

    return Probe(root, run, lambda: trt)


def nothing(root: Path) -> Probe:
    return Probe(root / "empty", lambda _command: None, lambda: None)


def test_a_plan_needs_no_device(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(bundle), "--plan-only", *LIMITS], probe=nothing(tmp_path)) == 0
    out, err = capsys.readouterr()
    assert "nothing to build engines with here: planned for Jetson Orin with JetPack 6.2" in err
    assert "engines/orin-sm87-trt10.3.0-jp6.2" in out
    assert "2 images, 40 text tokens, 10 new tokens, ratio up to 1" in out
    assert "KV cache  82 rows in buffers of 256; workspace 2048 MiB" in out
    assert "num_keep      1 .. 5 .. 16  (values)" in out
    assert "past_key_values.*   1x0x2x8 .. 1x0x2x8 .. 1x256x2x8" in out
    assert "not compared with free memory" in out
    # .3 of 16 tokens are 5: 2 x 5 + 50 rows.
    assert "note: --max-ratio 0.3 would save" in out
    assert "a cache of 60 instead of 82 rows" in out
    assert out.count("\ntrtexec \\\n") == 3
    assert "--profile=1" in out
    assert not (bundle / "engines").exists()


def test_a_plan_says_how_to_build_it(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [*LIMITS, "--max-ratio", "0.5", "--workspace", "512MiB", "--unpruned", "--timing-cache", "a b"]
    assert main([str(bundle), "--plan-only", *given], probe=nothing(tmp_path)) == 0
    (line,) = [
        each for each in capsys.readouterr().out.splitlines() if each.startswith("next, on the device")
    ]
    words = shlex.split(line)[shlex.split(line).index("python") :]
    assert words == ["python", "-m", "runtime.engine", str(bundle), *given]


def test_a_plan_as_json(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = [str(bundle), "--plan-only", "--json", "--target", "jetpack7", "--board", "orin-nano-8gb"]
    assert main([*command, *LIMITS], probe=nothing(tmp_path)) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["tag"] == "thor-sm110-trt10.13.3-jp7.1"
    assert found["plan"]["capacity"] == 82
    assert found["plan"]["workspace"] == 1 << 30  # a quarter of 7.4 GiB, as a power of two
    assert found["fits"] is True
    assert found["memory"]["run"] > found["memory"]["kv"] == 2 * 2 * 8 * 256 * 4
    assert len(found["trtexec"]) == 4
    assert found["engines"] is None


def test_engines_are_built_on_the_device(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    probe, trt = orin(tmp_path, fake_tensorrt()), fake_tensorrt()
    probe = Probe(probe.root, probe.run, lambda: trt)
    cache = tmp_path / "t.cache"
    command = [str(bundle), *LIMITS, "--timing-cache", str(cache), "--workspace", "512MiB"]
    assert main(command, probe=probe) == 0
    out, err = capsys.readouterr()
    folder = bundle / "engines/orin-sm87-trt10.3.0-jp6.2"
    assert f"engines in {folder}" in out
    assert f"next: python -m runtime {bundle} --backend tensorrt --image FILE --prompt TEXT" in out
    assert "building decoder_model_portable" in err
    assert cache.read_bytes() == b"+++"
    assert len(trt.built) == 3
    assert trt.built[0][1].pools == {"WORKSPACE": 512 << 20}
    assert main(command, probe=probe) == 0  # the same again: nothing to do
    assert "these engines are there already: --force builds them again" in capsys.readouterr().err
    assert len(trt.built) == 3
    assert main([*command, "--force", "--json"], probe=probe) == 0
    assert json.loads(capsys.readouterr().out)["engines"] == str(folder)
    assert len(trt.built) == 6
    assert main([*command, "--unpruned"], probe=probe) == 0  # another plan
    assert len(trt.built) == 10


def test_what_does_not_fit_is_refused(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trt = fake_tensorrt()
    probe = orin(tmp_path, trt, available=300000)
    assert main([str(bundle), *LIMITS], probe=probe) == 1
    out, err = capsys.readouterr()
    assert "does not fit: running needs" in out
    assert err.startswith("refused: running needs")
    assert err.endswith("(--force builds all the same)\n")
    assert trt.built == []
    assert main([str(bundle), *LIMITS, "--plan-only"], probe=probe) == 0  # a plan is no build
    assert main([str(bundle), *LIMITS, "--force"], probe=probe) == 0
    assert len(trt.built) == 3


def test_trtexec_alone(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    probe = orin(tmp_path, None, tools=("dpkg-query", "trtexec"))
    assert main([str(bundle), *LIMITS], probe=probe) == 2
    out, err = capsys.readouterr()
    assert "error: the Python package tensorrt is not installed here, only trtexec: run the commands" in err
    assert "--saveEngine=" in out
    folder = bundle / "engines/orin-sm87-trt10.3.0-jp6.2"
    assert f"mkdir -p {folder}" in out
    folder.mkdir(parents=True)
    for graph in ("vision_encoder_fopru", "embed_tokens", "decoder_model_portable"):
        (folder / f"{graph}.engine").write_bytes(b"built" + bytes(2048))
    assert main([str(bundle), *LIMITS, "--record"], probe=probe) == 0
    assert (folder / "engines.json").is_file()


def test_errors_are_one_sentence(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(bundle)], probe=nothing(tmp_path)) == 2
    assert main([str(tmp_path / "nowhere"), "--plan-only"], probe=nothing(tmp_path)) == 2
    assert main([str(bundle), "--plan-only", "--max-ratio", "2"], probe=nothing(tmp_path)) == 2
    assert main([str(bundle), "--target", "jetpack7"], probe=orin(tmp_path, fake_tensorrt())) == 2
    told = capsys.readouterr().err.splitlines()
    lines = [line for line in told if not line.startswith("nothing to build")]
    starts = (
        "this machine has no NVIDIA GPU",
        "there is no bundle",
        "max_ratio is 2.0",
        "target jetpack7 is thor",
    )
    assert len(lines) == 4
    for line, start in zip(lines, starts, strict=True):
        assert line.startswith(f"error: {start}")
    (bundle / "config.json").write_text("{" + " " * ((bundle / "config.json").stat().st_size - 1))
    assert main([str(bundle), "--plan-only"], probe=nothing(tmp_path)) == 2
    assert "config.json cannot be read" in capsys.readouterr().err


def test_ctrl_c_is_130(bundle: Path, tmp_path: Path) -> None:
    trt = fake_tensorrt(fails="interrupt")
    assert main([str(bundle), *LIMITS], probe=orin(tmp_path, trt)) == 130
    assert list((bundle / "engines").iterdir()) == []


def test_a_desktop_card_is_asked_for_its_memory(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/meminfo").write_text("MemTotal: 33554432 kB\nMemAvailable: 16777216 kB\n")

    def run(command: Sequence[str]) -> str | None:
        asked = command[1] if len(command) > 1 else ""
        return (
            "RTX 3090, 8.6\n" if "compute_cap" in asked else "24576, 20480\n" if "memory" in asked else None
        )

    probe = Probe(tmp_path, run, lambda: fake_tensorrt("11.1.0"))
    assert main([str(bundle), "--plan-only", "--json"], probe=probe) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["tag"] == "rtx-3090-sm86-trt11.1.0"
    assert found["free"] == {
        "total": 24 << 30,
        "available": 20 << 30,
        "cma_free": None,
        "unified": False,
        "host": 16 << 30,
        "swap": 0,
    }


@pytest.mark.parametrize(
    ("text", "size"), [("2GiB", 2 << 30), ("512MiB", 512 << 20), ("1.5g", 3 << 29), ("4194304", 4 << 20)]
)
def test_sizes(text: str, size: int) -> None:
    assert engine._bytes(text) == size


@pytest.mark.parametrize("text", ["", "much", "-1GiB", "12", "3TiB"])
def test_no_sizes(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="is no size of 1 MiB or more"):
        engine._bytes(text)


def test_the_exporter_has_it_under_its_name(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert export_main([str(bundle), "--plan-only", "--target", "jetpack6", *LIMITS]) == 0
    assert "decoder_model_portable" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        export_main(["--help"])
    assert "usage: python -m export.engine" in capsys.readouterr().out


@pytest.mark.parametrize("module", ["runtime.engine", "export.engine"])
def test_nothing_heavy_is_imported(module: str) -> None:
    heavy = ("torch", "transformers", "onnx", "onnxruntime", "tensorrt", "rich")
    code = f"import sys, {module}; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "[]"
