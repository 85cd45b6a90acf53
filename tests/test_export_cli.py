"""`python -m export.build` as a user meets it: what it prints, and how it ends."""

from __future__ import annotations

import errno
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import pytest
from rich.console import Console

import export
from export.build import BuildOptions, build, main
from export.errors import CheckpointError, TraceError
from export.golden import open_images
from export.report import BuildReport, GraphRow, print_report
from export.steps import Steps
from export.targets import TargetVerdict
from fopru_graph import LocateError
from runtime.check import main as check_main
from runtime.errors import ImageError
from tests.conftest import Maker, ToyBuild

ROOT = Path(__file__).resolve().parent.parent
STAGE = {
    "name": "logits",
    "max_abs_diff": 0.5,
    "tolerance": 0.1,
    "reason": "why",
    "ok": False,
    "detail": "far off",
}
REPORT = BuildReport(
    bundle=ROOT / "bundles" / "toy",
    model="toy",
    family="llava",
    sizes=((160, 160), (64, 48)),
    tokens=(196, 196),
    kept=(59, 59),
    layer=3,
    strategy="rank",
    aggregation="col_mean",
    graphs=(
        GraphRow("vision_encoder", "onnx/vision_encoder.onnx", 90, 20, 5_000, 2_000_000),
        GraphRow("vision_encoder_fopru", "onnx/vision_encoder_fopru.onnx", 110, 20, 6_000, 0),
    ),
    prune={"gather": "early", "gather_reason": "per-token tail"},
    parity={"ok": False, "first_divergence": "logits", "stages": [{**STAGE, "skipped": False}]},
    steps=(("load the weights", 1.5), ("export vision_encoder", 2.0)),
    peak_rss_bytes=700_000_000,
    weight_bytes=2_000_000,
    targets=(
        TargetVerdict("jetpack6", 0, 1, ("K may be large: keep less",)),
        TargetVerdict("tensorrt10", 0, 1, ("K may be large: keep less",)),
        TargetVerdict("ort", 0, 0, ()),
    ),
    notes=("no chat template",),
    images=(ROOT / "export" / "sample.png",),
    prompt="What?",
)


def ends(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = main(arguments)
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_json_is_all_there_is_on_stdout(toy_build: ToyBuild) -> None:
    report = toy_build.report
    assert json.loads(toy_build.stdout) == report
    assert report["ok"] is True
    assert (report["tokens"], report["kept"]) == ([16], [5])
    assert [row["name"] for row in report["graphs"]] == [
        "vision_encoder",
        "vision_encoder_fopru",
        "embed_tokens",
        "decoder_model_merged",
        "decoder_model_portable",
    ]
    assert report["seconds"] == pytest.approx(sum(step["seconds"] for step in report["steps"]), abs=0.01)
    assert report["peak_rss_bytes"] > report["weight_bytes"] > 100_000
    assert str(toy_build.bundle) in report["next_command"]


def test_progress_goes_to_stderr_and_libraries_are_silent(toy_build: ToyBuild) -> None:
    lines = toy_build.stderr.splitlines()
    assert len(lines) == len(toy_build.report["steps"])
    assert all(line.startswith("✓") and line.endswith(" s") for line in lines)


def test_bundle_checks_itself_without_torch(toy_build: ToyBuild, capsys: pytest.CaptureFixture[str]) -> None:
    assert check_main([str(toy_build.bundle)]) == 0
    assert "every stage agrees" in capsys.readouterr().out


def test_tables_for_people() -> None:
    console = Console(file=io.StringIO(), width=140)
    print_report(REPORT, console)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    for part in (
        "196 → 59",
        "layer 3, col_mean, strategy rank",
        "shared",
        "3.5 s, peak 700 MB",
        "no chat template",
        "jetpack6 1 warning, tensorrt10 1 warning, ort ok",
    ):
        assert part in text
    assert "first stage that diverges: logits" in text
    assert text.count("K may be large: keep less") == 1  # once for all targets
    assert "--image export/sample.png --prompt 'What?'" in text.replace(f"{ROOT}/", "")


def test_token_counts_by_size() -> None:
    tiled = replace(REPORT, tokens=(2928, 1176), kept=(912, 372))
    assert tiled.token_lines == ("2928 → 912 at 160 x 160", "1176 → 372 at 64 x 48")
    assert REPORT.token_lines == ("196 → 59",)


def test_divergence_ends_with_1(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("export.build.build", lambda *_, **__: REPORT)
    code, out, err = ends(capsys, "--json")
    assert code == 1
    assert json.loads(out)["ok"] is False
    assert "the bundle was written, but logits differs from PyTorch" in err.replace("\n", " ")


def test_agreement_ends_with_0(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    agreeing = replace(REPORT, parity={"ok": True, "first_divergence": None, "stages": []})
    monkeypatch.setattr("export.build.build", lambda *_, **__: agreeing)
    code, out, _ = ends(capsys)
    assert code == 0
    assert "parity with PyTorch" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--ratio", "0"), "error: ratio is 0.0, but it is the fraction of tokens kept"),
        (("--ratio", "1.5"), "error: ratio is 1.5"),
        (("--ratio", "nan"), "error: ratio is nan"),
        (("--tokens", "0"), "error: tokens is 0"),
        (("--model", "/no/such/dir"), "error: there is no checkpoint directory /no/such/dir"),
        (("--image", "no-such.png"), "error: image no-such.png is not a file"),
    ],
)
def test_errors_are_one_line(
    arguments: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = ends(capsys, *arguments)
    assert (code, out) == (2, "")
    assert err.startswith(message)
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--ratio", "0.3", "--tokens", "5"), "not allowed with argument"),
        (("--strategy", "col"), "invalid choice: 'col'"),
        (("--aggregation", "max"), "invalid choice: 'max'"),
        (("--opset", "19"), "invalid choice: 19"),
        (("--ratio", "half"), "invalid float value: 'half'"),
    ],
)
def test_argparse_refuses(
    arguments: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(arguments)
    assert message in capsys.readouterr().err


def test_refusals_that_need_the_model(
    toy_checkpoint: Maker, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = str(toy_checkpoint("siglip-default"))
    for arguments, message in (
        (("--tokens", "16"), "tokens is 16, but an image has 15"),
        (("--layer", "2"), "layer is 2, but only layers 0..1"),
        (("--aggregation", "cls"), "this tower has no CLS token"),
        (("--strategy", "row"), "make no full grid"),
    ):
        code, _, err = ends(capsys, "--model", model, "--output", str(tmp_path / "x"), *arguments)
        assert code == 2
        assert message in err.splitlines()[-1]
    assert not list(tmp_path.iterdir())


def test_text_only_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama", "architectures": ["LlamaForCausalLM"]}')
    code, _, err = ends(capsys, "--model", str(tmp_path))
    assert code == 2
    assert err.startswith("error: the checkpoint is LlamaForCausalLM")


def test_output_that_is_no_bundle(
    toy_checkpoint: Maker, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine.txt").write_text("")
    code, _, err = ends(capsys, "--model", str(toy_checkpoint("clip-llama")), "--output", str(tmp_path))
    assert code == 2
    assert "exists, is not empty and is not a bundle" in err


def test_image_that_is_no_picture(
    toy_checkpoint: Maker, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.png").write_text("not a picture")
    model = str(toy_checkpoint("clip-llama"))
    arguments = ("--model", model, "--output", str(tmp_path / "x"), "--image", str(tmp_path / "a.png"))
    code, _, err = ends(capsys, *arguments)
    assert code == 2
    assert "a.png cannot be read as a picture" in err


def raising(error: BaseException) -> Callable[..., NoReturn]:
    def fail(*_: Any, **__: Any) -> NoReturn:
        raise error

    return fail


def test_full_disk_in_the_middle(
    toy_checkpoint: Maker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        "export.pipeline.load_model", raising(OSError(errno.ENOSPC, "No space left on device"))
    )
    code, out, err = ends(
        capsys, "--model", str(toy_checkpoint("clip-llama")), "--output", str(tmp_path / "x")
    )
    assert (code, out) == (2, "")
    assert "error: the disk is full while writing" in err
    assert not list(tmp_path.iterdir())


def test_ctrl_c(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("export.build.build", raising(KeyboardInterrupt()))
    assert ends(capsys) == (130, "", "interrupted\n")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_that_a_library_turns_into_an_error(
    number: signal.Signals, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: Any, **__: Any) -> NoReturn:
        try:
            os.kill(os.getpid(), number)
            time.sleep(10)
        except KeyboardInterrupt as error:
            raise TraceError("torch cannot export Decoder") from error
        raise AssertionError("no signal came")

    before = signal.getsignal(number)
    monkeypatch.setattr("export.build.build", interrupted)
    assert ends(capsys) == (130, "", "interrupted\n")
    assert signal.getsignal(number) == before


def test_signal_that_a_library_swallows(
    toy_checkpoint: Maker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def swallows(*_: Any, **__: Any) -> list[Any]:
        with suppress(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(10)
        return []

    monkeypatch.setattr("export.plan.open_images", swallows)
    model = str(toy_checkpoint("clip-llama"))
    code, out, err = ends(capsys, "--model", model, "--output", str(tmp_path / "x"))
    assert (code, out, err) == (130, "", "interrupted\n")
    assert not list(tmp_path.iterdir())


def test_interrupt_inside_exec_ends_with_130_too() -> None:
    # CPython would die of SIGINT instead (seen when the signal arrived in the making of a dataclass)
    code = (
        "import sys, export.build as b\n"
        "def fails(*a, **k): exec('raise KeyboardInterrupt')\n"
        "b.build = fails\n"
        "sys.exit(b.main([]))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (130, "interrupted\n")


def test_commands_run_outside_the_main_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("export.build.build", raising(CheckpointError("no")))
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(main, []).result() == 2


def test_a_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("export.build.build", raising(ZeroDivisionError("bug")))
    with pytest.raises(ZeroDivisionError, match="bug"):
        main([])


@pytest.mark.parametrize("error", [LocateError("no attention"), ImageError("no picture")])
def test_errors_of_the_other_packages(
    error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("export.build.build", raising(error))
    assert ends(capsys) == (2, "", f"error: {error}\n")


def test_other_system_errors(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    denied = PermissionError(errno.EACCES, "Permission denied", "weights")
    monkeypatch.setattr("export.build.build", raising(denied))
    code, _, err = ends(capsys)
    assert (code, err) == (2, "error: Permission denied (weights): check the path and its permissions\n")


def test_old_python(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "version_info", (3, 10, 4))
    code, _, err = ends(capsys)
    assert code == 2
    assert err.startswith("error: export needs Python 3.11 or newer, and this is 3.10")


def test_missing_packages(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "onnx_ir" else object())
    code, _, err = ends(capsys)
    assert code == 2
    assert err.startswith(
        "error: export needs onnx_ir, not installed here: run `pip install 'fopru-edge[export]'`"
    )


def test_library_form_prints_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    steps = Steps()
    with pytest.raises(CheckpointError, match="there is no checkpoint directory /none"):
        build(BuildOptions(model="/none"), steps)
    captured = capsys.readouterr()
    assert captured.out + captured.err == ""
    assert steps.timings == ()


def test_verbose_leaves_the_libraries_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers.utils import logging

    seen: list[int] = []
    monkeypatch.setattr(
        "export.pipeline.run_build", lambda *_: seen.append(logging.get_verbosity()) or REPORT
    )
    logging.set_verbosity_info()
    try:
        build(BuildOptions(model="m"), verbose=True)
        build(BuildOptions(model="m"))
        assert seen == [logging.INFO, logging.ERROR]
        assert logging.get_verbosity() == logging.INFO
    finally:
        logging.set_verbosity_warning()


def test_sample_image_is_packaged() -> None:
    (sample,) = open_images([])
    assert sample.mode == "RGB"
    assert min(sample.size) >= 96


def test_public_names() -> None:
    assert set(export.__all__) == {
        "BuildOptions",
        "CheckpointError",
        "ExportError",
        "OptionError",
        "PromptError",
        "TraceError",
    }
