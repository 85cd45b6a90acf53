"""The command line where something goes wrong around it: a full disk, a signal, a text that is no text."""

from __future__ import annotations

import importlib
import io
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from PIL import Image

from runtime import check
from runtime.__main__ import main
from runtime.bundle import load_bundle
from runtime.chat import Chat
from runtime.errors import ImageError, RequestError
from runtime.generator import Generator
from runtime.request import Request
from tests.toy_bundle import ToyModel, toy_photo, write_toy_bundle

MODEL = ToyModel()
BASE = ["--prompt", "what?", "--max-new-tokens", "4", "--threads", "1"]
CHAT = ["--interactive", "--max-new-tokens", "4", "--threads", "1"]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_toy_bundle(tmp_path_factory.mktemp("bundles") / "toy", MODEL)


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> str:
    file = tmp_path_factory.mktemp("photos") / "photo.png"
    Image.fromarray(toy_photo(MODEL.size)).save(file)
    return str(file)


@pytest.fixture(scope="module")
def generator(root: Path) -> Generator:
    return Generator(load_bundle(root), threads=1)


def chat_of(generator: Generator) -> tuple[Chat, io.StringIO, io.StringIO]:
    out, err = io.StringIO(), io.StringIO()
    settings = Request("", max_new_tokens=4, tokens=4, ignore_eos=True)
    return Chat(generator, settings, out.write, err.write), out, err


def run_module(module: str, *args: str, text: str = "") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", module, *args]
    return subprocess.run(command, input=text, capture_output=True, text=True, check=False, timeout=60)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize(
    ("module", "args"),
    [("runtime", BASE), ("runtime", [*BASE, "--json"]), ("runtime.check", ["--threads", "1"])],
)
def test_full_disk_behind_stdout(root: Path, module: str, args: list[str]) -> None:
    with open("/dev/full", "w") as full:  # noqa: PTH123
        done = subprocess.run(
            [sys.executable, "-m", module, str(root), *args],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
            timeout=60,
        )
    assert done.returncode == 2
    assert (
        "error: the output cannot be written ([Errno 28] No space left on device): free some" in done.stderr
    )
    assert done.stderr.count("\n") == 1


def test_reader_of_the_check_that_leaves_early(root: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "runtime.check", str(root)], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    with process.stderr as errors:
        assert errors.read() == b""
    assert process.wait(timeout=30) == 141


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--prompt", "a\udcff"], r"the prompt 'a\udcff' is not valid Unicode at character 1"),
        (["--image", "x" * 300], "cannot be opened ([Errno 36] File name too long"),
        (["--threads", "3000000000"], "threads is 3000000000, expected 1..1024, or none for all cores"),
        (["--threads", "100000"], "threads is 100000, expected 1..1024"),
        (["--overlay", ""], "the path of the overlay is empty: give a path that can be written"),
    ],
)
def test_arguments_that_are_out_of_bounds(
    root: Path, capsys: pytest.CaptureFixture[str], args: list[str], message: str
) -> None:
    assert main([str(root), *BASE, *args]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert message in err


def test_threads_of_the_check(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert check.main([str(root), "--threads", "100000"]) == 2
    assert "error: threads is 100000, expected 1..1024" in capsys.readouterr().err


def test_bundle_json_that_is_too_deep(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "bundle.json").write_text("[" * 100_000)
    assert main([str(tmp_path), *BASE]) == 2
    assert "error: bundle.json is not JSON (" in capsys.readouterr().err


def test_overlay_that_cannot_be_written_is_said_before_the_work(
    root: Path, photo: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("runtime.__main__.load_bundle", None)  # would fail when called
    assert main([str(root), *BASE, "--image", photo, "--overlay", "nowhere/x.png"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(
        "error: cannot write the overlay nowhere/x.png (there is no directory nowhere): give"
    )


@pytest.mark.parametrize("as_json", [False, True])
def test_answer_is_printed_before_the_overlay_fails(
    root: Path,
    photo: str,
    tmp_path: Path,
    generator: Generator,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    as_json: bool,
) -> None:
    def full(*_: object) -> None:
        raise RequestError("no place")

    monkeypatch.setattr("runtime.__main__.save_png", full)
    args = [str(root), *BASE, "--image", photo, "--overlay", str(tmp_path / "x.png")]
    assert main([*args, "--json"] if as_json else args) == 2
    out, err = capsys.readouterr()
    expected = generator.generate(Request("what?", (photo,), max_new_tokens=4)).text
    assert (json.loads(out)["text"] if as_json else out) == expected + "\n" * (not as_json)
    assert err.endswith("error: no place\n")


def test_overlay_uses_the_pixels_of_the_answer(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An image from a pipe can be read only once."""
    pipe, file = tmp_path / "pipe", tmp_path / "photo.png"
    os.mkfifo(pipe)
    Image.fromarray(toy_photo(MODEL.size)).save(file)
    writer = threading.Thread(target=pipe.write_bytes, args=(file.read_bytes(),), daemon=True)
    writer.start()
    calls: list[int] = []
    real = Generator.preprocess

    def counting(self: Generator, images: list[object]) -> object:
        calls.append(len(images))
        return real(self, images)  # type: ignore[arg-type]

    monkeypatch.setattr(Generator, "preprocess", counting)
    overlay = tmp_path / "kept.png"
    assert main([str(root), *BASE, "--image", str(pipe), "--overlay", str(overlay)]) == 0
    writer.join(20)
    assert calls == [1]
    assert overlay.exists()
    assert capsys.readouterr().err.endswith(f"overlay         {overlay}\n")


def test_chat_from_a_pipe_says_what_failed_and_what_was_not_pruned(root: Path, photo: str) -> None:
    text = f"/image nowhere.png\n/image {photo}\nwhat?\nmore?\n/ratio 0.5\nless?\n"
    done = run_module("runtime", str(root), *CHAT, "--ratio", "1", text=text)
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        "error: there is no image file at nowhere.png: check the path",
        "not pruned: ratio 1.0 keeps every token",
    ]
    assert "error" not in done.stdout
    assert "not pruned" not in done.stdout


def test_image_of_a_chat_is_opened_before_the_first_question(root: Path, photo: str) -> None:
    done = run_module("runtime", str(root), *CHAT, "--image", photo, "--image", "nowhere.png", text="hi\n")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: there is no image file at nowhere.png: check the path\n"


def test_clear_forgets_waiting_images(generator: Generator, tmp_path: Path) -> None:
    file = tmp_path / "gone.png"
    Image.fromarray(toy_photo(MODEL.size)).save(file)
    chat, _, err = chat_of(generator)
    chat.run([f"/image {file}"])
    file.unlink()
    chat.run(["what?"])
    hint = " (/clear forgets the history and the images that wait for the next question)\n"
    assert err.getvalue() == f"error: there is no image file at {file}: check the path{hint}"
    assert (len(chat.pending), chat.history) == (1, ())
    chat.run(["/clear", "what?"])
    assert [turn.images for turn in chat.history] == [()]


def test_image_that_cannot_be_used_is_not_added(generator: Generator) -> None:
    chat, _, _ = chat_of(generator)
    with pytest.raises(ImageError, match=r"there is no image file at nowhere.png"):
        chat.add_image("nowhere.png")
    assert chat.pending == []


def test_chat_keeps_an_image_from_a_pipe(generator: Generator, photo: str, tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_bytes, args=(Path(photo).read_bytes(),), daemon=True)
    writer.start()
    chat, _, err = chat_of(generator)
    chat.run([f"/image {pipe}", "what?", "/ratio 0.5", "more?"])
    writer.join(20)
    assert (err.getvalue(), len(chat.history)) == ("", 2)


def test_ctrl_c_before_the_first_word_leaves_no_turn(
    generator: Generator, photo: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    chat, out, _ = chat_of(generator)
    monkeypatch.setattr("runtime.sampling.Sampler.pick", interrupt)
    chat.run([f"/image {photo}", "what?"])
    assert out.getvalue().endswith(" [stopped]\n")
    assert (chat.history, chat.pending, chat.last) == ((), [photo], None)
    monkeypatch.undo()
    chat.run(["what?"])
    assert [turn.images for turn in chat.history] == [(photo,)]
    assert chat.pending == []


def test_ctrl_c_during_the_import_of_the_engine(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(name: str) -> object:
        if name == "onnxruntime":
            raise ImportError(name) from KeyboardInterrupt()
        return real(name)

    real = importlib.import_module
    monkeypatch.setattr(importlib, "import_module", interrupted)
    assert main([str(root), *BASE]) == 130
