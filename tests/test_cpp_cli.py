"""`fopru run`, `info` and `bench` beside `python -m runtime`: the same answers, sentences and exit codes."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from runtime.__main__ import main
from runtime.version import __version__
from tests.cpp_build import cpp_tool
from tests.cpp_command import cpp_environment, fopru, fopru_json
from tests.interruptible import INTERRUPTIBLE
from tests.toy_bundle import ToyModel, toy_photo, write_toy_bundle

DATA = Path(__file__).parent / "data"
MODEL = ToyModel()
BASE = ("--prompt", "what?", "--max-new-tokens", "6", "--threads", "1")
MEASURED = ("timings", "peak_rss_bytes", "tokens_per_second")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_toy_bundle(tmp_path_factory.mktemp("bundles") / "toy", MODEL)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Pictures as people have them, by what is special about each."""
    folder = tmp_path_factory.mktemp("pictures")
    noise = Image.fromarray(toy_photo((48, 48)))
    smooth = np.linspace(0, 255, 90 * 70 * 3).reshape(90, 70, 3).astype(np.uint8)
    made = {
        "png": (Image.fromarray(toy_photo(MODEL.size)), {}),
        "jpg": (noise, {"quality": 80}),
        "bmp": (Image.fromarray(smooth), {}),
        "gray.png": (noise.convert("L"), {}),
        "alpha.png": (noise.convert("RGBA"), {}),
        "wide.png": (Image.fromarray(smooth).resize((200, 30)), {}),
    }
    for name, (picture, options) in made.items():
        picture.save(folder / f"picture.{name}", **options)
    return {name: str(folder / f"picture.{name}") for name in made}


def python_json(capsys: pytest.CaptureFixture[str], *args: str) -> dict[str, Any]:
    assert main([*args, "--json"]) == 0
    record: dict[str, Any] = json.loads(capsys.readouterr().out)
    return record


def assert_same_answer(capsys: pytest.CaptureFixture[str], *args: str) -> dict[str, Any]:
    """Equal but for what was measured; keys in the same order."""
    found, expected = fopru_json("run", *args), python_json(capsys, *args)
    assert list(found) == list(expected)
    assert list(found["timings"]) == list(expected["timings"])
    assert all(value >= 0 for value in found["timings"].values())
    assert found["peak_rss_bytes"] > 0
    for name in MEASURED:
        del found[name], expected[name]
    assert found == expected
    return found


@pytest.mark.parametrize(
    "amount", [(), ("--ratio", "1"), ("--ratio", "0.3"), ("--ratio=0.1",), ("--tokens", "3")]
)
@pytest.mark.parametrize("picture", ["png", "jpg", "gray.png"])
def test_same_answer_at_every_amount(
    root: Path,
    pictures: dict[str, str],
    capsys: pytest.CaptureFixture[str],
    amount: tuple[str, ...],
    picture: str,
) -> None:
    assert_same_answer(capsys, str(root), "--image", pictures[picture], *BASE, *amount)


def test_same_answer_about_every_picture(
    root: Path, pictures: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    images = [part for file in pictures.values() for part in ("--image", file)]
    record = assert_same_answer(capsys, str(root), *images, *BASE, "--ratio", "0.5")
    assert record["visual_tokens_after"] == [8] * len(pictures)


def test_same_answer_without_a_picture(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert assert_same_answer(capsys, str(root), *BASE)["reason"] == "the prompt has no image"


@pytest.mark.parametrize("seed", range(4))
def test_same_sampled_answer(
    root: Path, pictures: dict[str, str], capsys: pytest.CaptureFixture[str], seed: int
) -> None:
    options = ["--temperature", "1.5", "--top-k", "50", "--top-p", "0.95", "--min-p", "0.001"]
    options += ["--repetition-penalty", "1.3", "--stop", "zzz", "--stop", "\n\n", "--seed", str(seed)]
    assert_same_answer(
        capsys,
        str(root),
        "--image",
        pictures["png"],
        *BASE,
        *options,
        "--max-new-tokens",
        "24",
        "--no-verify",
    )


@pytest.mark.parametrize("selector", ["none", "rank", "row", "random", "uniform"])
def test_same_answer_with_every_selector(
    root: Path, pictures: dict[str, str], capsys: pytest.CaptureFixture[str], selector: str
) -> None:
    options = ("--selector", selector, "--tokens", "8", "--seed", "5")
    assert_same_answer(capsys, str(root), "--image", pictures["png"], *BASE, *options)


@pytest.mark.parametrize("name", ["bundle_v1", "bundle_v2_tiles", "bundle_v3", "bundle_v3_q4"])
def test_same_answer_of_bundles_in_the_tests(
    pictures: dict[str, str], capsys: pytest.CaptureFixture[str], name: str
) -> None:
    assert_same_answer(capsys, str(DATA / name), "--image", pictures["jpg"], *BASE, "--ratio", "0.3")


def test_answer_on_stdout_and_figures_on_stderr(
    root: Path, pictures: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    args = (str(root), "--image", pictures["png"], "--image", pictures["jpg"], "--ratio", "0.3", *BASE)
    assert main([*args]) == 0
    expected = capsys.readouterr()
    done = fopru("run", *args)
    assert (done.returncode, done.stdout) == (0, expected.out)
    assert [masked(line) for line in done.stderr.splitlines()] == [
        masked(line) for line in expected.err.splitlines()
    ]


def masked(line: str) -> str:
    """A line of the summary without what was measured."""
    measured = line.startswith(("first token", "peak memory", "answer"))
    return re.sub(r"[\d.]+|inf", "N", line) if measured else line


CHATS = {
    "turns": ["what?", "more?", "", "  spaces  "],
    "commands": [
        "/help",
        "/image",
        "/ratio x",
        "/what",
        "/ratio 0.5",
        "what?",
        "/clear",
        "what?",
        "/quit",
        "no",
    ],
    "image": [
        "/image {png}",
        "what?",
        "/image {jpg}",
        "and this?",
        "/ratio 0.25",
        "again?",
        "/ratio 1",
        "all?",
    ],
    "errors": ["/image missing.png", "/ratio 7", "what <image>?", "what?"],
}


@pytest.mark.parametrize("name", CHATS)
def test_same_chat(
    root: Path,
    pictures: dict[str, str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    name: str,
) -> None:
    text = "".join(line.format(**pictures) + "\n" for line in CHATS[name])
    args = [str(root), "--interactive", "--max-new-tokens", "5", "--threads", "1", "--image", pictures["bmp"]]
    monkeypatch.setattr("sys.stdin", io.StringIO(text))
    code = main(args)
    expected = capsys.readouterr()
    done = fopru("run", *args, text=text)
    assert (done.returncode, done.stdout, done.stderr) == (code, expected.out, expected.err)
    assert code == (2 if name == "errors" else 0)


# ---- what is refused ----


@pytest.mark.parametrize(
    "args",
    [
        (),
        ("--prompt", "what?", "--ratio", "0"),
        ("--prompt", "what?", "--ratio", "nan"),
        ("--prompt", "what?", "--selector", "best"),
        ("--prompt", "what?", "--max-new-tokens", "0"),
        ("--prompt", "what?", "--temperature", "-1"),
        ("--prompt", "what?", "--top-p", "2"),
        ("--prompt", "what?", "--top-k", "-1"),
        ("--prompt", "what?", "--min-p", "2"),
        ("--prompt", "what?", "--repetition-penalty", "0"),
        ("--prompt", "what?", "--seed", "-1"),
        ("--prompt", "what?", "--stop", ""),
        ("--prompt", "what?", "--threads", "0"),
        ("--prompt", "what?", "--image", "missing.png"),
        ("--prompt", "what?", "--image", "."),
        ("--prompt", "what?", "--max-new-tokens", "100000"),
        ("--prompt", "what?", "--tokens", "17", "--image", "{png}"),
        ("--prompt", "the token <image>"),
        ("--prompt", "what?", "--interactive"),
        ("--interactive", "--json"),
    ],
)
def test_same_sentence_for_what_is_refused(
    root: Path, pictures: dict[str, str], capsys: pytest.CaptureFixture[str], args: tuple[str, ...]
) -> None:
    given = [str(root), *(arg.format(**pictures) for arg in args)]
    assert main(given) == 2
    done = fopru("run", *given)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", capsys.readouterr().err)


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        (("run", "B", "--ratoi", "1"), "unknown option --ratoi of fopru run: did you mean --ratio?"),
        (
            ("run", "B", "--max-tokens=3"),
            "unknown option --max-tokens of fopru run: did you mean --max-new-tokens?",
        ),
        (("check", "B", "--jsno"), "unknown option --jsno of fopru check: did you mean --json?"),
        (("run", "B", "--ratio", "x"), "--ratio is 'x', expected a number: see --help"),
        (("run", "B", "--tokens", "0.3"), "--tokens is '0.3', expected a whole number: see --help"),
        (("run", "B", "--seed", "x"), "--seed is 'x', expected a whole number below 2^64: see --help"),
        (("run", "B", "--prompt"), "--prompt lacks its value: give --prompt TEXT"),
        (("run", "B", "--image", "--json"), "--image lacks its value: give --image FILE"),
        (("run", "B", "--json=1"), "--json takes no value: leave out '=1'"),
        (("run", "B", "C"), "unexpected 'C' behind the bundle: fopru run takes one, and options"),
        (("run",), "there is no bundle: fopru run BUNDLE"),
        (("bench", "B"), "there is no --prompt: give one"),
        (("bench", "B", "--prompt", "x", "--rounds", "0"), "rounds is 0, expected at least 1"),
        (("bench", "B", "--prompt", "x", "--ratios", "1,"), "--ratios is '', expected a number: see --help"),
        (
            ("bench", "B", "--prompt", "x", "--ratios", "1,2"),
            "ratio is 2.0, but it is the fraction of tokens kept",
        ),
        (("rnu",), "unknown command 'rnu', expected one of run, check, info, bench: did you mean run?"),
        (("info", "nowhere"), "there is no bundle at nowhere: build one"),
    ],
)
def test_sentences_about_arguments(args: tuple[str, ...], sentence: str) -> None:
    done = fopru(*args)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"error: {sentence}")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("command", ["run", "check", "info", "bench"])
def test_help_lists_every_option(command: str) -> None:
    done = fopru(command, "nowhere", "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"usage: fopru {command} BUNDLE [options]\n")
    options = re.findall(r"^  (--[a-z-]+)", done.stdout, re.MULTILINE)
    assert options[-1] == "--help"
    assert len(options) == len(set(options))
    assert max(map(len, done.stdout.split("\n\n")[2].splitlines())) <= 100


def test_help_has_the_options_of_python() -> None:
    from runtime.__main__ import _parser

    ours = set(re.findall(r"^  (--[a-z-]+)", fopru("run", "--help").stdout, re.MULTILINE))
    python = {flag for action in _parser()._actions for flag in action.option_strings}
    assert ours == (python - {"-h", "--overlay"}) | {"--engines"}
    defaults = {
        action.option_strings[0]: action.default
        for action in _parser()._actions
        if action.option_strings and isinstance(action.default, (int, float)) and action.default is not False
    }
    text = " ".join(fopru("run", "--help").stdout.split())
    for flag, default in defaults.items():
        assert re.search(rf"{flag} [A-Z](?:(?! --).)*\(default {default}\)", text), flag


def test_version_and_usage() -> None:
    assert fopru("--version").stdout == f"fopru {__version__}\n"
    assert "  check   " in fopru("--help").stdout
    assert fopru().returncode == 2


# ---- how it ends ----


@pytest.fixture(scope="module")
def endless(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A toy with room for an answer that goes on for seconds, as its end token never wins."""
    return write_toy_bundle(
        tmp_path_factory.mktemp("bundles") / "endless",
        MODEL,
        lambda manifest: replace(manifest, decoder=replace(manifest.decoder, max_positions=1 << 20)),
    )


@contextlib.contextmanager
def started(*args: str) -> Iterator[subprocess.Popen[bytes]]:
    """`fopru` under way, and gone in the end."""
    command = [*INTERRUPTIBLE, str(cpp_tool("fopru")), *args]
    pipes = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipes, stdout=pipes, stderr=pipes, env=cpp_environment()) as process:
        try:
            yield process
        finally:
            process.kill()


@pytest.fixture
def answering(endless: Path) -> Iterator[subprocess.Popen[bytes]]:
    options = ["--prompt", "what?", "--max-new-tokens", "200000", "--threads", "1"]
    with started("run", str(endless), *options) as process:
        yield process


def test_ctrl_c_cancels_the_answer(answering: subprocess.Popen[bytes]) -> None:
    assert answering.stdout is not None
    assert answering.stdout.read(1)  # the first piece has come
    answering.send_signal(signal.SIGINT)
    out, err = answering.communicate(timeout=30)
    assert (answering.returncode, err) == (130, b"\n")
    assert len(out) < 200000


@pytest.mark.parametrize("command", ["run", "bench"])
def test_ctrl_c_before_the_images_are_read(
    endless: Path, pictures: dict[str, str], tmp_path: Path, command: str
) -> None:
    pipe = tmp_path / "picture.png"
    os.mkfifo(pipe)
    options = ["--image", str(pipe), "--prompt", "what?", "--max-new-tokens", "100000", "--threads", "1"]
    with started(command, str(endless), *options) as process:
        with pipe.open("wb") as picture:  # once the program waits for it
            process.send_signal(signal.SIGINT)
            time.sleep(0.1)
            picture.write(Path(pictures["png"]).read_bytes())
        out, err = process.communicate(timeout=30)
    assert (process.returncode, out, err) == (130, b"", b"\n")


def test_reader_that_leaves_early(answering: subprocess.Popen[bytes]) -> None:
    assert answering.stdout is not None
    assert answering.stderr is not None
    assert answering.stdout.read(1)
    answering.stdout.close()
    assert answering.wait(timeout=30) == 141
    assert answering.stderr.read() == b""


def test_ctrl_c_before_the_answer(root: Path) -> None:
    """At the prompt of a chat, where nothing is under way."""
    with started("run", str(root), "--interactive") as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(b"/help\n")
        process.stdin.flush()
        assert process.stdout.readline().startswith(b"commands: ")
        time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (130, b"\n")


def test_onnxruntime_reports_nothing(root: Path, tmp_path: Path) -> None:
    """Its telemetry would begin with an identifier of the device under the home directory."""
    environment = {"PATH": os.environ["PATH"], "FOPRU_ORT_LIB": cpp_environment()["FOPRU_ORT_LIB"]}
    done = subprocess.run(
        [str(cpp_tool("fopru")), "run", str(root), *BASE],
        capture_output=True,
        check=False,
        timeout=60,
        env=environment | {"HOME": str(tmp_path)},
    )
    assert (done.returncode, list(tmp_path.iterdir())) == (0, []), done.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("args", [("run", *BASE), ("run", *BASE, "--json"), ("check",), ("info",)])
def test_full_disk_behind_stdout(root: Path, args: tuple[str, ...]) -> None:
    with open("/dev/full", "w") as full:  # noqa: PTH123
        done = subprocess.run(
            [str(cpp_tool("fopru")), args[0], str(root), *args[1:]],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
            timeout=60,
            env=cpp_environment(),
        )
    expected = "error: the output cannot be written ([Errno 28] No space left on device): free some space, or"
    assert done.returncode == 2
    assert done.stderr.startswith(expected)
    assert done.stderr.count("\n") == 1


def test_bytes_that_are_no_text(root: Path) -> None:
    command = [os.fsencode(cpp_tool("fopru")), b"run", os.fsencode(root), b"--prompt", b"what\xff?"]
    done = subprocess.run(command, capture_output=True, check=False, timeout=60, env=cpp_environment())
    assert done.returncode == 2
    assert b"is not valid Unicode at character 4: write it in UTF-8" in done.stderr


# ---- info and bench ----


def test_info(root: Path) -> None:
    manifest = json.loads((root / "bundle.json").read_text(encoding="utf-8"))
    record = fopru_json("info", str(root))
    assert record["bundle"] == str(root)
    assert record["format_version"] == manifest["format_version"]
    assert record["model"] == manifest["model"]
    assert record["layout"]["kind"] == manifest["layout"]["kind"]
    assert {name: record["pruning"][name] for name in manifest["pruning"]} == manifest["pruning"]
    for name in ("layers", "kv_heads", "head_dim", "hidden_size", "vocab_size", "caches"):
        assert record["decoder"][name] == manifest["decoder"][name]
    assert {name: graph["bytes"] for name, graph in record["graphs"].items()} == {
        name: manifest["files"][graph["file"]]["bytes"] for name, graph in manifest["graphs"].items()
    }
    assert record["bytes"] == sum(info["bytes"] for info in manifest["files"].values())
    import onnxruntime

    assert record["libraries"]["onnxruntime"]["version"] == onnxruntime.__version__
    assert record["libraries"]["fopru"] == __version__
    assert record["libraries"]["tensorrt"] is ("tensorrt" in record["libraries"]["backends"])
    text = fopru("info", str(root)).stdout
    assert all(graph in text for graph in manifest["graphs"])


def test_info_of_precisions() -> None:
    manifest = json.loads((DATA / "bundle_v3_q4" / "bundle.json").read_text(encoding="utf-8"))
    record = fopru_json("info", str(DATA / "bundle_v3_q4"))
    for name, graph in manifest["graphs"].items():
        assert record["graphs"][name]["precision"] == graph.get("precision", "fp32")
    for graph in record["graphs"].values():
        weights = graph["weights"]
        assert graph["weight_bytes"] == (manifest["files"][weights]["bytes"] if weights else 0)


def test_info_without_a_library(root: Path, tmp_path: Path) -> None:
    """It says what was looked for; the bundle is shown all the same."""
    done = subprocess.run(
        [str(cpp_tool("fopru")), "info", str(root), "--json"],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env={**os.environ, "FOPRU_ORT_LIB": str(tmp_path / "nowhere.so")},
    )
    library = json.loads(done.stdout)["libraries"]["onnxruntime"]
    assert done.returncode == 0
    assert library["path"] is None
    assert "nowhere.so" in library["error"]


def test_bench(root: Path, pictures: dict[str, str]) -> None:
    options = ["--image", pictures["png"], "--prompt", "what?", "--max-new-tokens", "8", "--threads", "1"]
    record = fopru_json("bench", str(root), *options, "--ratios", "1,0.5,0.25", "--rounds", "3")
    assert record["rounds"] == 3
    assert [row["ratio"] for row in record["ratios"]] == [1, 0.5, 0.25]
    assert [row["visual_tokens_after"] for row in record["ratios"]] == [[16], [8], [4]]
    assert [row["new_tokens"] for row in record["ratios"]] == [8, 8, 8]
    assert (record["ratios"][0]["ttft_to_first"], record["ratios"][0]["tokens_per_second_to_first"]) == (1, 1)
    assert record["peak_rss_bytes"] > 1 << 20
    for row in record["ratios"]:
        seconds = row["seconds"]
        assert set(seconds) == {"preprocess", "vision", "embed", "prefill", "decode", "ttft"}
        assert min(seconds.values()) > 0
        assert seconds["ttft"] >= max(seconds["vision"], seconds["prefill"])
    table = fopru("bench", str(root), *options, "--ratios", "1,0.5", "--rounds", "1").stdout.splitlines()
    assert [line.split()[:2] for line in table[2:4]] == [["1", "16"], ["0.5", "8"]]
    assert table[-1].startswith("peak memory ")
