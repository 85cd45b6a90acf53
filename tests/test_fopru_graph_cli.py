"""`python -m fopru_graph` as a user meets it: what it prints, and how it ends."""

# ruff: noqa: E501  (a case per line reads better than a broken one)
from __future__ import annotations

import argparse
import dataclasses
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import NoReturn

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest

from fopru_graph import PruneOptions, PruneReport
from fopru_graph.__main__ import main
from fopru_graph.commands import COMMANDS
from fopru_graph.commands import lint as lint_command
from fopru_graph.commands import prune as prune_command
from fopru_graph.commands import splice as splice_command
from fopru_graph.commands.sizes import byte_size, bytes_text, grid_size
from fopru_graph.errors import OptionError
from fopru_graph.lint import Finding
from fopru_graph.lint.rtx import BuildReport, Engine, Point
from fopru_graph.splice import SpliceOptions, SpliceReport
from runtime.counts import kept_count
from tests.toy_encoders import Toy, export, pixels, text_encoder

ROOT = Path(__file__).resolve().parent.parent
FILES = {"encoder", "output", "help", "json"}


@pytest.fixture
def encoder(tmp_path: Path) -> Path:
    """One layer, 6 tokens on a 2x3 grid, a class token that is cut off."""
    path = tmp_path / "encoder.onnx"
    ir.save(text_encoder(), path)
    return path


def ends(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    """(exit code, stdout, stderr); runs of blanks and line breaks of tables are one blank."""
    code = main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return code, " ".join(captured.out.split()), captured.err


def stops(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """What argparse says before anything runs."""
    with pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in arguments])
    assert stop.value.code == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    return captured.err


def options_of(add_arguments: object, *arguments: str) -> tuple[argparse.Namespace, set[str]]:
    parser = argparse.ArgumentParser()
    add_arguments(parser)  # type: ignore[operator]
    dests = [action.dest for action in parser._actions]
    assert len(dests) == len(set(dests))  # no field has two options
    return parser.parse_args(arguments), set(dests)


# prune


def test_prune_tells_what_was_found_done_and_is_to_be_fed(
    encoder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = ends(capsys, "prune", encoder, "-o", encoder.with_name("p.onnx"))
    assert (code, err) == (0, "")
    for part in (
        "scored by layer 0, known from the order of attentions in the graph",
        "not by scope: 'Softmax_12' carries no layer number",
        "attention Softmax between two MatMuls, 2 heads, node 'Softmax_12'",
        "tokens 6 per image, in output 'image_features'",
        "special rows 1 leading attention rows are no patches",
        "dropped rows 1 leading attention rows never become features",
        "prefix rows 0 leading rows of the features are always kept",
        "col_mean, QK^T is computed once and its softmax is tapped; 392 bytes of probabilities per image",
        "strategy rank (docs/selectors.md)",
        "gather early: from MatMul 'MatMul_13' on, only kept rows are computed rows are taken from p, x",
        "nodes 24 added, 1 removed",
        "passes prepare 0, locate 0, score 3, select 2, gather 25, clean 3",
        "feed x float32 [images, 7, 8] feed num_keep int64 [1]",
        "get image_features float32 [images, num_keep, 8]",
        "get token_scores float32 [images, 6]",
        "get kept_indices int64 [images, num_keep]",
        "num_keep = clamp(floor(N * ratio + 0.5), 1, N), N tokens, ratio = fraction kept",
        "N = 6: ratio 0.5 → num_keep 3, ratio 0.3 → num_keep 2, ratio 0.1 → num_keep 1",
    ):
        assert part in out
    assert "note " not in out


def test_what_prune_wrote_runs_as_it_was_told(encoder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = encoder.with_name("p.onnx")
    assert ends(capsys, "prune", encoder, "-o", target)[0] == 0
    session = ort.InferenceSession(target, providers=["CPUExecutionProvider"])
    feeds = {"x": np.ones((2, 7, 8), np.float32), "num_keep": np.array([3], np.int64)}
    found = {each.name: value.shape for each, value in zip(session.get_outputs(), session.run(None, feeds), strict=True)}  # fmt: skip
    assert found == {"image_features": (2, 3, 8), "token_scores": (2, 6), "kept_indices": (2, 3)}


def test_prune_json_is_the_report_and_nothing_else(encoder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["prune", str(encoder), "-o", str(encoder.with_name("p.onnx")), "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert set(content) == {field.name for field in dataclasses.fields(PruneReport)}
    assert (content["tokens"], content["strategy"], content["gather"]) == (6, "rank", "early")


def test_every_field_of_the_options_has_one_option() -> None:
    fields = {field.name for field in dataclasses.fields(PruneOptions)}
    args, dests = options_of(prune_command.add_arguments, "e.onnx", "-o", "p.onnx")
    assert dests - FILES == fields
    assert prune_command.options_from(args) == PruneOptions()
    fields = {field.name for field in dataclasses.fields(SpliceOptions)}
    args, dests = options_of(splice_command.add_arguments, "v.onnx", "d.onnx", "-o", "s.onnx")
    assert dests - FILES - {"vision", "decoder"} == fields
    assert SpliceOptions(**{name: getattr(args, name) for name in fields}) == SpliceOptions()


def test_every_option_reaches_its_field() -> None:
    line = (
        "e.onnx -o p.onnx --strategy row --aggregation cls_sum --layer 4 --first-layer 2 --features f "
        "--grid 24x12 --prefix-tokens 1 --special-tokens 5 --dropped-rows 3 --similarity s --seed 7 "
        "--score-memory 64MiB --drop-other-outputs --scores-only"
    )
    args, _ = options_of(prune_command.add_arguments, *line.split())
    assert prune_command.options_from(args) == PruneOptions(
        strategy="row",
        aggregation="cls_sum",
        layer=4,
        first_layer=2,
        features="f",
        grid=(24, 12),
        prefix_tokens=1,
        special_tokens=5,
        dropped_rows=3,
        similarity="s",
        seed=7,
        score_memory=64 * 2**20,
        keep_other_outputs=False,
        scores_only=True,
    )
    line = "e.onnx -o p.onnx --tap probabilities --grid input --no-scores-output"
    args, _ = options_of(prune_command.add_arguments, *line.split())
    assert prune_command.options_from(args) == PruneOptions(
        tap="probabilities", grid="input", scores_output=False
    )


@pytest.mark.parametrize(
    ("line", "parts"),
    [
        (
            "--strategy row --grid 2x3",
            [
                "num_keep = C * clamp(floor(R * ratio + 0.5), 1, R), R x C tokens",
                "N = 6: ratio 0.5 → num_keep 3, ratio 0.3 → num_keep 3, ratio 0.1 → num_keep 3",
            ],
        ),
        ("--strategy row --grid input", ["feed grid int64 [2]", "num_keep = C * clamp"]),
        (
            "--strategy none",
            [
                "num_keep is read and ignored: strategy none keeps every token",
                "scores none, as the strategy needs none",
                "get image_features float32 [images, N, 8]",
            ],
        ),
        ("--strategy uniform_grid --grid 2x3", ["ratio 0.5 → num_keep 3, ratio 0.3 → num_keep 2"]),
        ("--aggregation cls", ["scores cls, "]),
        ("--prefix-tokens 1", ["get image_features float32 [images, 1 + num_keep, 8]", "tokens 5 per image"]),
        ("--tap p", ["layer 0, known from the tensor you named"]),
        (
            "--scores-only",
            [
                "pruned nothing: only scores were asked for",
                "get image_features float32 [images, 6, 8] get token_scores float32 [images, 6]",
            ],
        ),
        ("--score-memory 300", ["a block of queries at a time; block: 2 queries, instead of 392 bytes of"]),
    ],
)
def test_the_table_follows_the_options(
    line: str, parts: list[str], encoder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = ends(capsys, "prune", encoder, "-o", encoder.with_name("p.onnx"), *line.split())
    assert (code, err) == (0, "")
    assert [part for part in parts if part not in out] == []


def test_counts_are_those_of_the_runtime() -> None:
    for tokens in (1, 4, 6, 196, 575, 576, 729, 4096):
        (line,) = prune_command._examples(tokens, 1)
        counts = re.findall(r"ratio (\S+) → num_keep (\d+)", line)
        assert [int(count) for _, count in counts] == [kept_count(tokens, float(each)) for each, _ in counts]
        assert len(counts) == 3


def test_varying_sizes_and_their_note(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "encoder.onnx"
    whole = text_encoder(rows="rows", kept="rows", tail="image_features = Identity(y)")  # type: ignore[arg-type]
    ir.save(whole, path)
    code, out, err = ends(capsys, "prune", path, "-o", tmp_path / "p.onnx", "--score-memory", "1KB")
    assert (code, err) == (0, "")
    assert "tokens as many as an image has" in out
    assert "block: a computed number of queries" in out
    assert "get token_scores float32 [images, N]" in out
    assert "note TensorRT's TopK takes at most 3839" in out
    assert "N = " not in out


def test_outputs_that_go_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = text_encoder()
    model.graph.outputs.append(
        next(value for node in model.graph for value in node.outputs if value.name == "p")
    )
    model.graph.outputs[-1].shape = ir.Shape(["images", 2, 7, 7])
    model.graph.outputs[-1].type = ir.TensorType(ir.DataType.FLOAT)
    ir.save(model, tmp_path / "e.onnx")
    arguments = ("prune", tmp_path / "e.onnx", "-o", tmp_path / "p.onnx", "--drop-other-outputs")
    assert "outputs gone p" in ends(capsys, *arguments)[1]


# lint


def test_lint_ends_with_1_on_errors(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ir.save(text_encoder(attention="a = com.microsoft.Attention(q, k, v)"), tmp_path / "f.onnx")
    code, out, err = ends(capsys, "lint", tmp_path / "f.onnx", "--target", "jetpack6")
    assert (code, err) == (1, "")
    for part in ("severity", "custom-domain", "Attention_10", "error 1 error, 0 warnings, 0 notes"):
        assert part in out
    assert main(["lint", str(tmp_path / "f.onnx"), "--target", "jetpack6", "--json"]) == 1
    content = json.loads(capsys.readouterr().out)
    assert (content["ok"], content["counts"]["error"]) == (False, 1)
    assert "build" not in content


def test_lint_ends_with_0_without(encoder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = ends(capsys, "lint", encoder, "--target", "jetpack6")
    assert code == 0
    assert out.endswith("ok 0 errors, 0 warnings, 0 notes")


@pytest.mark.parametrize("broken", [False, True])
def test_lint_builds_if_asked(
    broken: bool, encoder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    findings = (Finding("rtx-parse", "error", "Foo", "n", "", "no such op", "leave it"),) if broken else ()
    build = BuildReport(
        "1.7", 0.25, (Point("min", {"x": (1, 7, 8)}, {"y": (1, 3, 8)}),), (Engine("SM86", 2.0, 2**20),), findings
    )  # fmt: skip
    seen: list[Path] = []
    monkeypatch.setattr(lint_command, "build_check", lambda path: seen.append(path) or build)
    code, out, _ = ends(capsys, "lint", encoder, "--target", "jetpack6", "--build")
    assert (code, seen) == (int(broken), [encoder])
    for part in ("TensorRT for RTX 1.7", "parsed in 0.25 s", "min x [1, 7, 8] → y [1, 3, 8]", "SM86 built in 2.0 s, 1.0 MiB"):  # fmt: skip
        assert part in out
    assert ("no such op" in out, "error not built" in out, "ok built" in out) == (broken, broken, not broken)
    assert main(["lint", str(encoder), "--target", "jetpack6", "--build", "--json"]) == int(broken)
    content = json.loads(capsys.readouterr().out)
    assert (content["ok"], content["build"]["ok"]) == (not broken, not broken)


# the way out


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("prune no.onnx -o p.onnx", "error: there is no file 'no.onnx': give the path of an ONNX vision encoder"),
        ("inspect no.onnx", "error: there is no file 'no.onnx'"),
        ("lint no.onnx --target ort", "error: there is no file 'no.onnx'"),
        ("splice no.onnx d.onnx -o s.onnx", "error: there is no file 'no.onnx'"),
        ("splice v.onnx v.onnx -o s.onnx --logits -1", "error: logits is -1: give a number of last positions"),
        ("prune encoder.onnx -o encoder.onnx", "error: target 'encoder.onnx' is the source: name another file"),
        ("prune encoder.onnx -o p.onnx --layer 5", "error: layer is 5, but the attentions behind"),
        ("prune encoder.onnx -o p.onnx --layer 0 --tap p", "error: layer 0 and tap 'p' both name the scoring"),
        ("prune encoder.onnx -o p.onnx --strategy row", "error: strategy 'row' works on a grid of tokens"),
        ("prune encoder.onnx -o p.onnx --grid 0x3", "error: grid is (0, 3), but it is (rows, columns), both >= 1"),
        ("prune encoder.onnx -o nowhere/p.onnx", "error: cannot write 'nowhere/p.onnx': No such file or directory"),
    ],
)  # fmt: skip
def test_bad_input_is_one_sentence_and_leaves_nothing(
    line: str, message: str, encoder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:  # fmt: skip
    monkeypatch.chdir(encoder.parent)
    before = encoder.read_bytes()
    code, out, err = ends(capsys, *line.split())
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith(message)
    assert [path.name for path in encoder.parent.iterdir()] == ["encoder.onnx"]
    assert encoder.read_bytes() == before


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("", "the following arguments are required: COMMAND"),
        ("prune e.onnx", "the following arguments are required: -o/--output"),
        ("prune e.onnx -o p.onnx --strategy best", "invalid choice: 'best'"),
        ("prune e.onnx -o p.onnx --score-memory much", "--score-memory: 'much' is no size: give a number of bytes"),
        ("prune e.onnx -o p.onnx --grid 24", "--grid: '24' is no grid: give ROWSxCOLUMNS of the tokens"),
        ("lint e.onnx --target abacus", "invalid choice: 'abacus'"),
    ],
)  # fmt: skip
def test_a_wrong_command_line_ends_with_2(
    line: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    err = stops(capsys, *line.split())
    assert err.startswith("usage: python -m fopru_graph")
    assert message in err


def test_ctrl_c_ends_with_130(
    encoder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object, **__: object) -> NoReturn:
        raise KeyboardInterrupt

    monkeypatch.setattr("fopru_graph.files.ir.save", interrupted)
    code, out, err = ends(capsys, "prune", encoder, "-o", encoder.with_name("p.onnx"))
    assert (code, out, err) == (130, "", "interrupted\n")
    assert [path.name for path in encoder.parent.iterdir()] == ["encoder.onnx"]


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(13, "Permission denied", "f"), "error: Permission denied (f): check the path and its permissions\n"),
        (OSError("odd"), "error: odd: check the path and its permissions\n"),
        (OptionError("a sentence"), "error: a sentence\n"),
    ],
)  # fmt: skip
def test_errors_on_purpose_are_sentences_and_bugs_are_not(
    error: Exception, message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> NoReturn:
        raise error

    def broken(*_: object) -> NoReturn:
        raise IndexError("a bug")

    monkeypatch.setattr(prune_command, "prune_file", fail)
    assert ends(capsys, "prune", "e.onnx", "-o", "p.onnx") == (2, "", message)
    monkeypatch.setattr(prune_command, "prune_file", broken)
    with pytest.raises(IndexError, match="a bug"):
        main(["prune", "e.onnx", "-o", "p.onnx"])


def test_missing_packages_and_an_old_python_are_sentences(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    present = {"numpy", "onnx", "onnx_ir"}
    monkeypatch.setattr(
        "fopru_graph.__main__.importlib.util.find_spec", lambda name: object() if name in present else None
    )
    assert ends(capsys, "inspect", "e.onnx") == (
        2,
        "",
        "error: fopru_graph needs onnx_shape_inference, rich, not installed here: run "
        "`pip install 'fopru-edge[graph]'`\n",
    )
    monkeypatch.setattr("sys.version_info", (3, 10, 12))
    code, _, err = ends(capsys, "inspect", "e.onnx")
    assert code == 2
    assert err.startswith(
        "error: fopru_graph needs Python 3.11 or newer, and this is 3.10: use a newer Python"
    )


def run_module(*arguments: str, **options: object) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "fopru_graph", *arguments]
    return subprocess.run(command, env=environment, text=True, check=False, **options)  # type: ignore[call-overload,no-any-return]


def test_help_of_the_module(tmp_path: Path) -> None:
    done = run_module("--help", cwd=tmp_path, capture_output=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert all(name in done.stdout for name in ("inspect", "prune", "lint", "splice", "Exit codes: 0 done"))


def test_packages_that_are_really_missing_are_a_sentence(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-S", "-m", "fopru_graph", "inspect", "e.onnx"]  # -S: no site-packages
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert done.stderr.startswith("error: fopru_graph needs numpy, onnx, onnx_ir, ")


def test_nothing_is_imported_before_ctrl_c_can_be_handled(tmp_path: Path) -> None:
    code = "import sys, fopru_graph.__main__; print({'numpy', 'onnx', 'onnx_ir', 'rich'} & set(sys.modules))"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "set()\n"


def test_a_reader_that_left_is_no_traceback(encoder: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = run_module("inspect", str(encoder), stdout=writing, stderr=subprocess.PIPE)
    os.close(writing)
    assert (done.returncode, done.stderr) == (141, "")


# sizes


@pytest.mark.parametrize(
    ("text", "size"),
    [("64MiB", 67108864), ("1GiB", 2**30), ("512KB", 512000), ("12345", 12345), ("1.5 gb", 1500000000), ("8B", 8)],
)  # fmt: skip
def test_sizes(text: str, size: int) -> None:
    assert byte_size(text) == size


@pytest.mark.parametrize("text", ["", "MiB", "-1", "0", "0.1", "1TiB", "1e3", "64 MiB of it", "٣"])
def test_no_sizes(text: str) -> None:
    with pytest.raises(
        argparse.ArgumentTypeError, match=r"is no size: give a number of bytes >= 1, or one with"
    ):
        byte_size(text)


def test_grids() -> None:
    assert [grid_size(text) for text in ("24x12", "3X4", "input")] == [(24, 12), (3, 4), "input"]
    for text in ("", "24", "24x", "axb", "-1x2", "1x2x3"):
        with pytest.raises(argparse.ArgumentTypeError, match="is no grid: give ROWSxCOLUMNS of the tokens"):
            grid_size(text)


def test_bytes_for_people() -> None:
    texts = [bytes_text(count) for count in (0, 1023, 1024, 20 * 2**20, 2**30)]
    assert texts == ["0 bytes", "1023 bytes", "1.0 KiB", "20.0 MiB", "1.0 GiB"]


def test_an_exported_encoder_from_end_to_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    toy = Toy()
    source = tmp_path / "clip.onnx"
    ir.save(ir.load(export(toy)), source, external_data="clip.onnx.data")
    code, out, _ = ends(capsys, "prune", source, "-o", tmp_path / "pruned.onnx")
    assert code == 0
    assert "layer 1, known from the name scopes of torch's exporter" in out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["clip.onnx", "clip.onnx.data", "pruned.onnx"]
    session = ort.InferenceSession(tmp_path / "pruned.onnx", providers=["CPUExecutionProvider"])
    feeds = {"pixel_values": pixels(toy, 2), "num_keep": np.array([5], np.int64)}
    assert session.run(["kept_indices"], feeds)[0].shape == (2, 5)


# docs/prune_your_encoder.md


def test_the_walk_through_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (ROOT / "docs" / "prune_your_encoder.md").read_text()
    ir.save(ir.load(export(Toy())), tmp_path / "encoder.onnx", external_data="encoder.onnx.data")
    monkeypatch.chdir(tmp_path)
    commands = re.findall(r"python -m fopru_graph ([^`\n]+)", text)
    assert [command.split()[0] for command in commands] == ["inspect", "prune", "lint"]
    for command in commands:
        assert main(command.split()) == 0
    capsys.readouterr()
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(blocks) == 2
    names: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, "prune_your_encoder.md", "exec"), names)
    assert capsys.readouterr().out.splitlines() == [
        "['image_features', 'token_scores', 'kept_indices'] (2, 5) (2, 16)",
        "True",
    ]


def test_the_walk_through_names_real_options_and_fields() -> None:
    text = (ROOT / "docs" / "prune_your_encoder.md").read_text()
    known: set[str] = set()
    for name, command in COMMANDS.items():
        parser = argparse.ArgumentParser(name)
        command.add_arguments(parser)
        known.update(option for action in parser._actions for option in action.option_strings)
    assert set(re.findall(r"--[a-z][a-z-]+", text)) - known == {"--json"}
    report = text.split("## The report of prune")[1].split("## Run it")[0]
    fields = {field.name for field in dataclasses.fields(PruneReport)}
    assert {name for name in fields if f"`{name}`" not in report} == set()


def test_the_refusals_of_the_walk_through_are_sentences_of_the_package() -> None:
    text = (ROOT / "docs" / "prune_your_encoder.md").read_text().split("## When it refuses")[1]
    cells = [line.split("|")[1] for line in text.splitlines() if line.startswith("|")][2:]
    assert len(cells) >= 12
    code = "".join(path.read_text() for path in (ROOT / "fopru_graph").rglob("*.py"))
    said = re.sub(r'"\s*\n\s*f?"', "", code)  # sentences over several lines of code
    parts = [part.strip(" ',") for cell in cells for part in re.split("…|com.microsoft::", cell)]
    assert [part for part in parts if part and part not in said] == []


def test_a_late_gather_beside_other_outputs_gets_a_hint(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tail = (
        "image_features = Slice(y, one, many, one, one) pooled = ReduceMean<keepdims=0>(image_features, one)"
    )
    model = text_encoder(tail=tail)
    pooled = next(value for node in model.graph for value in node.outputs if value.name == "pooled")
    pooled.shape, pooled.type = ir.Shape(["images", 8]), ir.TensorType(ir.DataType.FLOAT)
    model.graph.outputs.append(pooled)
    ir.save(model, tmp_path / "e.onnx")
    hint = "hint an output besides the features may be why the gather is late: try --drop-other-outputs"
    arguments = ("prune", tmp_path / "e.onnx", "-o", tmp_path / "p.onnx")
    assert hint in ends(capsys, *arguments)[1]
    assert hint in ends(capsys, "inspect", tmp_path / "e.onnx")[1]
    out = ends(capsys, *arguments, "--drop-other-outputs")[1]
    assert "gather early" in out
    assert "hint" not in out


# splice


def test_splice_shows_and_passes_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    report = SpliceReport(
        opset=20,
        inputs=(("pixel_values", ("images", 3, 16, 16)), ("prefix_embeds", ("batch", "prefix", None))),
        outputs=(("logits", ("batch", 1, 32)),),
        computed=("attention_mask", "position_ids"),
        casts=("image_features: FLOAT to FLOAT16",),
        nodes=99,
        weight_files=("v.data",),
    )
    seen: list[tuple[object, ...]] = []
    monkeypatch.setattr(splice_command, "splice_files", lambda *given: seen.append(given) or report)
    line = "splice v.onnx d.onnx -o s.onnx --features f --embeds e --images-per-prompt 2 --logits 0"
    code, out, err = ends(capsys, *line.split())
    assert (code, err) == (0, "")
    options = SpliceOptions(features="f", embeds="e", images_per_prompt=2, logits=0)
    assert seen == [(Path("v.onnx"), Path("d.onnx"), Path("s.onnx"), options)]
    for part in (
        "v.onnx + d.onnx → s.onnx graph 99 nodes, opset 20",
        "feed pixel_values [images, 3, 16, 16] feed prefix_embeds [batch, prefix, ?]",
        "get logits [batch, 1, 32]",
        "made inside attention_mask, position_ids",
        "cast image_features: FLOAT to FLOAT16",
        "weights v.data",
    ):
        assert part in out
    assert main([*line.split(), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads(json.dumps(report.to_dict()))
