"""The command line and the chat loop."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from runtime.__main__ import main
from runtime.bundle import load_bundle
from runtime.chat import HELP, Chat
from runtime.generator import Generator
from runtime.request import Request, Turn
from runtime.reuse import NO_REUSE
from runtime.summary import summary_lines
from tests.toy_bundle import ToyModel, toy_photo, write_toy_bundle

MODEL = ToyModel()
BASE = ["--prompt", "what?", "--max-new-tokens", "4", "--threads", "1"]


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


def test_answer_on_stdout_and_figures_on_stderr(
    root: Path, photo: str, generator: Generator, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(root), "--image", photo, "--ratio", "0.3", *BASE]) == 0
    out, err = capsys.readouterr()
    expected = generator.generate(Request("what?", (photo,), ratio=0.3, max_new_tokens=4))
    assert out == expected.text + "\n"
    for line in (
        "visual tokens   16 → 5",
        "prompt          18 tokens",
        "first token     ",
        "answer          4 tokens",
    ):
        assert line in err
    assert "KV cache        2.6 KiB (4.0 KiB without pruning), 5.2 KiB allocated" in err


def test_one_json_object(root: Path, photo: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    overlay = tmp_path / "kept.png"
    args = [
        str(root),
        "--image",
        photo,
        "--image",
        photo,
        "--tokens",
        "3",
        "--json",
        "--overlay",
        str(overlay),
    ]
    assert main([*args, *BASE]) == 0
    out, err = capsys.readouterr()
    record = json.loads(out)
    assert err == ""
    assert (record["bundle"], record["overlay"]) == (str(root), str(overlay))
    assert record["visual_tokens_after"] == [3, 3]
    assert record["pruned"] is True
    assert {"load", "preprocess", "vision", "embed", "prefill", "decode", "ttft", "total"} == set(
        record["timings"]
    )
    with Image.open(overlay) as image:
        assert image.width > 2 * 672


SAMPLING = {
    "temperature": 1.5,
    "top_k": 50,
    "top_p": 0.95,
    "min_p": 0.001,
    "repetition_penalty": 1.3,
    "stop": ("zzz", "\n\n"),
    "seed": 3,
}


def sampling_flags() -> list[str]:
    flags: list[str] = []
    for name, value in SAMPLING.items():
        for item in value if isinstance(value, tuple) else (value,):
            flags += [f"--{name.replace('_', '-')}", str(item)]
    return flags


def test_sampling_flags_reach_the_request(
    root: Path,
    photo: str,
    generator: Generator,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    asked: list[Request] = []
    real = Generator.stream

    def spying(self: Generator, request: Request, *rest: object) -> object:
        asked.append(request)
        return real(self, request, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(Generator, "stream", spying)
    flags = [*BASE, "--image", photo, "--max-new-tokens", "12", *sampling_flags()]
    expected = Request("what?", (photo,), max_new_tokens=12, **SAMPLING)  # type: ignore[arg-type]
    assert main([str(root), *flags, "--json"]) == 0
    assert main([str(root), *flags]) == 0
    json_out, _, answer = capsys.readouterr().out.rpartition("}\n")
    assert asked == [expected, expected]
    record = json.loads(json_out + "}")
    assert answer == record["text"] + "\n" == generator.generate(expected).text + "\n"

    monkeypatch.setattr("sys.stdin", io.StringIO("what?\n"))
    chat = [flag for flag in flags if flag not in ("--prompt", "what?")]
    assert main([str(root), *chat, "--interactive"]) == 0
    assert asked[2] == expected


def test_a_stop_string_is_a_finish_reason(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(root), *BASE, "--json"]) == 0
    whole = json.loads(capsys.readouterr().out)
    stop = whole["text"][1:3]
    assert main([str(root), *BASE, "--json", "--stop", stop, "--stop", "never"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert (record["text"], record["finish_reason"]) == (whole["text"][: whole["text"].index(stop)], "stop")
    assert record["token_ids"] == whole["token_ids"][: len(record["token_ids"])]
    assert main([str(root), *BASE, "--stop", stop]) == 0
    assert "tokens (stop)" in capsys.readouterr().err


def test_overlay_is_named_in_the_figures(
    root: Path, photo: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    overlay = tmp_path / "kept.png"
    assert main([str(root), "--image", photo, "--overlay", str(overlay), *BASE]) == 0
    assert f"overlay         {overlay}" in capsys.readouterr().err
    assert overlay.exists()


def test_what_was_not_pruned_is_said(root: Path, photo: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(root), "--no-verify", *BASE]) == 0
    assert "not pruned      the prompt has no image" in capsys.readouterr().err
    assert main([str(root), "--image", photo, "--ratio", "1", *BASE]) == 0
    err = capsys.readouterr().err
    assert "visual tokens   16 → 16" in err
    assert "not pruned      ratio 1.0 keeps every token" in err


def test_summary_of_several_images_and_megabytes(generator: Generator, photo: str) -> None:
    result = generator.generate(Request("?", (photo, photo), tokens=3, max_new_tokens=1))
    lines = summary_lines(result)
    assert lines[0] == "visual tokens   32 → 6 (2 images, 16 → 3 each)"
    assert "answer          1 tokens (length)" in lines  # no speed from a single token
    assert lines[-1].endswith(" MiB")


def test_summary_names_what_was_reused(generator: Generator) -> None:
    generator.forget()
    request = Request("what?", max_new_tokens=1)
    fresh, again = generator.generate(request), generator.generate(request)
    count = fresh.prompt_tokens
    assert f"prompt          {count} tokens" in summary_lines(fresh)
    assert (fresh.reused_tokens, again.reused_tokens) == (0, count - 1)
    assert f"prompt          {count} tokens, {count - 1} of them from the KV cache" in summary_lines(again)


def test_summary_of_images_with_different_counts(generator: Generator, photo: str) -> None:
    result = generator.generate(Request("?", (photo, photo), tokens=3, max_new_tokens=1))
    mixed = replace(result, visual_tokens_before=(16, 88), visual_tokens_after=(3, 44))
    assert summary_lines(mixed)[0] == "visual tokens   104 → 47 (2 images: 16 → 3, 88 → 44)"


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (
            ["--ratio", "0"],
            "ratio is 0.0, but it is the fraction of tokens kept: give a number in (0, 1], e.g. 0.3",
        ),
        (["--ratio", "1.5"], "ratio is 1.5"),
        (["--ratio", "nan"], "ratio is nan"),
        (["--tokens", "0"], "tokens is 0, but an image has 16: give 1..16"),
        (["--tokens", "17"], "tokens is 17"),
        (["--selector", "best"], 'selector is "best", expected one of graph'),
        (["--backend", "npu"], 'backend is "npu", expected one of onnxruntime'),
        (["--image", "missing.png"], "there is no image file at missing.png: check the path"),
        (["--max-new-tokens", "900"], "but the model has 256 positions"),
        (["--temperature", "-1"], "temperature is -1.0"),
        (["--top-k", "-1"], "top_k is -1, expected 0 (off) or a positive integer"),
        (["--min-p", "2"], "min_p is 2.0"),
        (["--repetition-penalty", "0"], "repetition_penalty is 0.0"),
        (["--stop", ""], "a string of stop is empty"),
        (["--overlay", "no-such-folder/x.png"], "cannot write the overlay no-such-folder/x.png"),
    ],
)
def test_errors_are_one_line(
    root: Path, photo: str, capsys: pytest.CaptureFixture[str], args: list[str], message: str
) -> None:
    assert main([str(root), "--image", photo, *BASE, *args]) == 2
    out, err = capsys.readouterr()
    assert err.startswith(f"error: {message}") or message in err
    assert err.count("\n") == 1
    assert "Traceback" not in out + err


def test_errors_before_the_bundle_is_opened(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path / "none"), "--prompt", "?"]) == 2
    assert "error: there is no bundle at " in capsys.readouterr().err
    assert main([str(tmp_path)]) == 2
    assert "error: there is no --prompt: give one, or use --interactive" in capsys.readouterr().err


def test_overlay_without_an_image_is_refused_before_the_work(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(root), "--overlay", "x.png", *BASE]) == 2
    assert "an overlay shows an image, but the request has none" in capsys.readouterr().err


@pytest.mark.parametrize("flag", [["--json"], ["--overlay", "x.png"], ["--prompt", "x"]])
def test_flags_that_do_not_go_with_interactive(
    root: Path, capsys: pytest.CaptureFixture[str], flag: list[str]
) -> None:
    assert main([str(root), "--interactive", *flag]) == 2
    assert f"{flag[0]} does not go with --interactive: leave one of the two out" in capsys.readouterr().err


def test_ratio_and_tokens_exclude_each_other(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main([str(root), "--ratio", "0.5", "--tokens", "3"])
    assert "not allowed with argument --ratio" in capsys.readouterr().err


def test_help_says_what_ratio_means(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    out = capsys.readouterr().out
    assert "fraction of visual tokens KEPT, in (0, 1]" in out
    assert "--ratio 0.3 keeps 30 % of them (196 -> 59)" in out


def run_process(*args: str, text: str = "") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "runtime", *args]
    return subprocess.run(command, input=text, capture_output=True, text=True, check=False, timeout=60)


def test_interactive_from_a_pipe(root: Path, photo: str) -> None:
    text = f"hello\n\n/image {photo}\nwhat?\n/quit\nnever\n"
    done = run_process(str(root), "--interactive", "--max-new-tokens", "4", "--threads", "1", text=text)
    assert (done.returncode, done.stderr) == (0, "not pruned: the prompt has no image\n")
    assert f"image {photo} goes with the next question\n" in done.stdout
    assert "never" not in done.stdout


def test_ctrl_c_is_exit_130(root: Path, photo: str) -> None:
    args = ["--image", photo, "--prompt", "w", "--max-new-tokens", "200", "--threads", "1"]
    code = (
        # A background job of a shell starts with the signal ignored.
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "import sys, time; from runtime.sampling import Sampler; real = Sampler.pick\n"
        "def slow(*args): time.sleep(0.2); return real(*args)\n"
        "Sampler.pick = slow; import runtime.__main__ as m; sys.exit(m.main(sys.argv[1:]))"
    )
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(root), *args],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment,
    )
    assert process.stdout is not None
    assert process.stdout.read(1)  # the first piece has come
    time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert b"Traceback" not in err


def test_reader_that_leaves_early(root: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "runtime", str(root), *BASE],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    with process.stderr as errors:
        assert b"Traceback" not in errors.read()
    assert process.wait(timeout=30) == 141


def chat_of(generator: Generator, **settings: object) -> tuple[Chat, io.StringIO, io.StringIO]:
    out, err = io.StringIO(), io.StringIO()
    options = {"max_new_tokens": 4, "tokens": 4, "ignore_eos": True, **settings}
    return Chat(generator, Request("", **options), out.write, err.write), out, err


def test_chat_keeps_history_and_images(generator: Generator, photo: str) -> None:
    chat, out, _ = chat_of(generator)
    chat.run([f"/image {photo}", "what?", "more?"])
    assert [turn.images for turn in chat.history] == [(photo,), ()]
    first = generator.generate(Request("what?", (photo,), tokens=4, max_new_tokens=4, ignore_eos=True))
    history = (Turn("what?", (photo,), first.text.strip()),)
    second = generator.generate(
        Request("more?", tokens=4, max_new_tokens=4, ignore_eos=True, history=history)
    )
    assert out.getvalue() == f"image {photo} goes with the next question\n{first.text}\n{second.text}\n"
    assert chat.last is not None
    assert chat.last.prompt_tokens == second.prompt_tokens


def test_chat_encodes_each_image_once(root: Path, photo: str, monkeypatch: pytest.MonkeyPatch) -> None:
    counts: list[int] = []
    real = Generator.encode_images

    def counting(self: Generator, images: object, selection: object) -> object:
        counts.append(len(images))  # type: ignore[arg-type]
        return real(self, images, selection)  # type: ignore[arg-type]

    monkeypatch.setattr(Generator, "encode_images", counting)
    chat, _, _ = chat_of(Generator(load_bundle(root), threads=1, reuse=NO_REUSE))
    chat.run([f"/image {photo}", "a", "b", f"/image {photo}", "c", "d"])
    assert counts == [1, 1]
    assert chat.last is not None
    assert chat.last.visual_tokens_after == (4, 4)
    chat.run(["/ratio 0.5", "e"])
    assert counts == [1, 1, 2]  # another count for all of them
    assert chat.last.visual_tokens_after == (8, 8)


def test_a_ratio_used_before_encodes_nothing(root: Path, photo: str) -> None:
    generator = Generator(load_bundle(root), threads=1)
    chat, _, _ = chat_of(generator)
    chat.run([f"/image {photo}", "a", "/ratio 0.5", "b", "/ratio 0.25"])
    assert chat.last is not None
    assert chat.last.reused_images == 0
    chat.run(["c", f"/image {photo}", "d"])
    assert (chat.last.visual_tokens_after, chat.last.reused_images) == ((4, 4), 2)


def test_each_turn_of_a_chat_goes_on_from_the_one_before(root: Path, photo: str) -> None:
    chat, _, _ = chat_of(Generator(load_bundle(root), threads=1))
    lengths, reused = [], []
    chat.run([f"/image {photo}"])
    for line in ("what?", "more?", "and?"):
        chat.run([line])
        assert chat.last is not None
        lengths.append(chat.last.prompt_tokens)
        reused.append(chat.last.reused_tokens)
    assert reused[0] == 0
    assert all(rows >= before for rows, before in zip(reused[1:], lengths, strict=False))
    chat.run(["/ratio 0.5", "less?"])
    assert chat.last is not None
    assert chat.last.reused_tokens == len("^Q: ")  # the rows before the picture


def test_what_was_talked_about_stays_when_its_file_goes(
    generator: Generator, photo: str, tmp_path: Path
) -> None:
    camera = tmp_path / "camera.png"
    camera.write_bytes(Path(photo).read_bytes())
    chat, _, _ = chat_of(generator)
    chat.run([f"/image {camera}", "what?"])
    camera.unlink()
    chat.run(["more?"])
    assert (chat.failures, len(chat.history)) == (0, 2)


def test_chat_ends_at_quit(generator: Generator) -> None:
    chat, out, _ = chat_of(generator)
    chat.run(["", "  ", "/quit", "never"])
    assert (out.getvalue(), chat.history) == ("", ())


def test_ctrl_c_in_process(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("runtime.__main__.load_bundle", interrupt)
    assert main([str(root), "--prompt", "?"]) == 130


def test_chat_commands(generator: Generator, photo: str) -> None:
    chat, out, _ = chat_of(generator)
    chat.run([f"/image {photo}", "a", "/clear", "/help", "/ratio", "/ratio x", "/image", "/ratio 0.5"])
    assert chat.history == ()
    assert out.getvalue().count(HELP) == 4
    assert "history and images forgotten" in out.getvalue()
    assert (chat.settings.ratio, chat.settings.tokens) == (0.5, None)
    assert "keeping 0.5 of the visual tokens from now on" in out.getvalue()


def test_an_error_ends_the_turn_not_the_chat(generator: Generator) -> None:
    chat, _, err = chat_of(generator)
    chat.run(["/image nowhere.png", "/ratio 7", "w" * 300, "fine"])
    lines = err.getvalue().splitlines()
    assert chat.failures == 3
    assert lines[0] == "error: there is no image file at nowhere.png: check the path"
    assert lines[1].startswith("error: ratio is 7.0, but it is the fraction")
    assert lines[2].startswith("error: the prompt has 307 tokens")
    assert [turn.prompt for turn in chat.history] == ["fine"]
    assert chat.pending == []


def test_ctrl_c_stops_the_answer_not_the_chat(generator: Generator) -> None:
    out = io.StringIO()
    interrupts = iter([False, True])

    def write(text: str) -> None:
        out.write(text)
        if next(interrupts, False):
            raise KeyboardInterrupt

    chat = Chat(generator, Request("", max_new_tokens=20, ignore_eos=True), write, io.StringIO().write)
    chat.run(["first", "second"])
    assert " [stopped]\n" in out.getvalue()
    assert [turn.prompt for turn in chat.history] == ["first", "second"]
    assert len(chat.history[0].answer) < len(chat.history[1].answer)
    assert chat.last is not None
    assert chat.last.reused_tokens >= len("^Q: first A:")  # goes on from the answer that was stopped
