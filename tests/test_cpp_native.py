"""`Generator(bundle, backend="native")`: the C++ runtime with Python's face gives Python's answers."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from runtime import NO_REUSE, Generator, Request, Turn, load_bundle
from runtime import native as native_runtime
from runtime.__main__ import main
from runtime.check import main as check
from runtime.errors import BackendError, ImageError, RequestError
from runtime.native import NativeGenerator, load_native, result_of
from runtime.result import Result
from tests.cpp_build import python_module

PHOTO = str(Path(__file__).parent.parent / "demo" / "images" / "three_digits.png")
FAMILIES = ("llava", "llava_next", "smolvlm", "qwen2_5_vl", "internvl")
Bundles = Callable[[str], Path]


@pytest.fixture(scope="module")
def built() -> Iterator[None]:
    """The extension module, where imports find it."""
    folder = python_module()
    sys.path.insert(0, str(folder))
    yield
    sys.path.remove(str(folder))


@pytest.fixture
def native(built: None, toy_bundle_dir: Path) -> NativeGenerator:
    generator = Generator(load_bundle(toy_bundle_dir), "native", threads=1)
    assert isinstance(generator, NativeGenerator)
    return generator


@pytest.fixture
def python(toy_bundle_dir: Path) -> Generator:
    return Generator(load_bundle(toy_bundle_dir), threads=1)


def comparable(result: Result) -> dict[str, object]:
    """What does not hang on the clock, nor on what else this process has done."""
    measured = ("timings", "peak_rss_bytes", "tokens_per_second")
    return {name: value for name, value in result.to_dict().items() if name not in measured}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_answers_as_in_python(built: None, family_bundle: Bundles, family: str) -> None:
    bundle = load_bundle(family_bundle(family))
    one, other = (Generator(bundle, name, threads=1, reuse=NO_REUSE) for name in ("onnxruntime", "native"))
    rng = np.random.default_rng(5)
    pictures = tuple(rng.integers(0, 256, (size, 70, 3), np.uint8) for size in (40, 90))
    for ratio in (1.0, 0.5):
        for options in ({}, {"temperature": 1.2, "seed": 11}):
            request = Request(
                "How many?", pictures, ratio=ratio, max_new_tokens=12, ignore_eos=True, **options
            )
            assert comparable(other.generate(request)) == comparable(one.generate(request))


def test_pictures_come_as_files_arrays_and_pillow(native: NativeGenerator, python: Generator) -> None:
    opened = Image.open(PHOTO)
    for picture in (
        PHOTO,
        Path(PHOTO),
        opened,
        np.asarray(opened.convert("RGB")),
        np.asarray(opened.convert("L")),
    ):
        request = Request("Read.", (picture,), max_new_tokens=5)
        assert comparable(native.generate(request)) == comparable(python.generate(request))
    with pytest.raises(ImageError, match=r"an image array is float64 \[4, 4, 3\], expected uint8"):
        native.generate(Request("x", (np.zeros((4, 4, 3)),)))


def test_a_chat_goes_on_from_the_cache(native: NativeGenerator, python: Generator) -> None:
    first = Request("Read.", (PHOTO,), max_new_tokens=6, ignore_eos=True)
    for generator in (native, python):
        generator.generate(first)
    history = (Turn("Read.", (PHOTO,), native.generate(first).text.strip() or "none"),)
    second = Request("And now?", history=history, max_new_tokens=6)
    one, other = python.generate(second), native.generate(second)
    assert comparable(other) == comparable(one)
    assert other.reused_images == 1
    native.forget()
    assert native.generate(second).reused_images == 0


def test_pieces_and_cancellation(native: NativeGenerator, monkeypatch: pytest.MonkeyPatch) -> None:
    request = Request("Read.", (PHOTO,), max_new_tokens=40, ignore_eos=True)
    whole = native.generate(request)
    stream = native.stream(request)
    assert "".join(stream) == whole.text
    assert stream.result.token_ids == whole.token_ids
    # The answer waits behind its first piece, or it could be done before it is cancelled.
    cancelled, tell = threading.Event(), native_runtime._Answer._tell

    def tell_and_wait(answer: native_runtime._Answer, piece: str) -> bool:
        tell(answer, piece)
        assert cancelled.wait(60)
        return answer._ends()

    monkeypatch.setattr(native_runtime._Answer, "_tell", tell_and_wait)
    stopped = native.stream(request)
    next(stopped)
    stopped.cancel()
    cancelled.set()
    assert stopped.result.finish_reason == "cancelled"
    assert 0 < len(stopped.result.token_ids) < 40
    assert native.generate(request).token_ids == whole.token_ids


def test_an_abandoned_stream_ends(native: NativeGenerator) -> None:
    stream = native.stream(Request("Read.", (PHOTO,), max_new_tokens=400, ignore_eos=True))
    next(stream)
    stream._steps.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "fopru-native"]


def test_two_generators_in_two_threads(built: None, toy_bundle_dir: Path) -> None:
    bundle = load_bundle(toy_bundle_dir)
    request = Request("Read.", (PHOTO,), max_new_tokens=30, ignore_eos=True)
    wanted = Generator(bundle, threads=1).generate(request).token_ids
    found: list[tuple[int, ...]] = []

    def work() -> None:
        generator = Generator(bundle, "native", threads=1)
        found.extend(generator.generate(request).token_ids for _ in range(5))

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [wanted] * 10


def test_stages_give_arrays(native: NativeGenerator, python: Generator) -> None:
    request = Request("Read.", (PHOTO,), ratio=0.4, max_new_tokens=4)
    encoded = native.encode(request)
    stream = python.stream(request)
    text = "".join(stream)
    (wanted,) = stream.encoded
    np.testing.assert_array_equal(encoded.kept(0), wanted.kept_indices)
    # The same library runs the same graph on the same pixels.
    np.testing.assert_array_equal(np.from_dlpack(encoded.features), np.asarray(wanted.features))
    with pytest.raises(IndexError, match="no image with this number"):
        encoded.kept(1)
    fields = native.fields_of(request)
    image = fields["images"][0]
    np.testing.assert_array_equal(image.pixels, python.preprocess([PHOTO])[0].pixel_values)
    assert image.tokens == stream.result.visual_tokens_before[0]
    ids = native.native.prompt_ids(fields, encoded)
    assert len(ids) == stream.result.prompt_tokens
    logits, tokens = native.native.prefill(fields, encoded), []
    for _ in range(3):
        tokens.append(int(logits.argmax()))
        logits = native.native.step(tokens[-1])
    assert tuple(tokens) == stream.result.token_ids[:3]
    assert native.decode_text(stream.result.token_ids).strip() == text.strip()
    np.testing.assert_array_equal(
        native.native.tokenize("Read digits"),
        python._prompter._tokenizer.encode("Read digits", add_special_tokens=False).ids,
    )


def test_errors_are_those_of_the_runtime(native: NativeGenerator, tmp_path: Path) -> None:
    missing = str(tmp_path / "nowhere.png")
    with pytest.raises(ImageError, match=f"there is no image file at {missing}: check the path"):
        native.generate(Request("x", (missing,)))
    with pytest.raises(RequestError, match="tokens is 4000, but an image has"):
        native.generate(Request("x", (PHOTO,), tokens=4000))
    with pytest.raises(RequestError, match="leave encoded out"):
        native.stream(Request("x"), encoded=(object(),))  # type: ignore[arg-type]
    for call in (native.encode_images, native.encode_unpruned, native.decoder_run, native.session):
        with pytest.raises(BackendError, match="is a stage of its own in C\\+\\+"):
            call("x")
    assert native.generate(Request("x", (PHOTO,), max_new_tokens=1)).finish_reason in ("length", "eos")


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"prompt": "a\0b"}, "the prompt has the character 0 at 1"),
        ({"history": (("a", (), "b\0"),)}, "the prompt has the character 0 at 1"),
        ({"stop": ("x", "\0")}, "the stop string has the character 0 at 0"),
        ({"tokens": 0}, "tokens is 0, expected at least 1"),
        ({"tokens": -3}, "tokens is -3, but an image has"),
        ({"tokens": 2**70}, "tokens is 9223372036854775807, but an image has"),
        ({"max_new_tokens": 2**70}, "the answer up to 9223372036854775807"),
        ({"seed": 2**64}, "seed is 18446744073709551616, expected one below 2\\^64"),
    ],
    ids=lambda value: ",".join(value) if isinstance(value, dict) else "",
)
def test_what_c_would_read_as_something_else_is_refused(
    native: NativeGenerator, fields: dict[str, object], words: str
) -> None:
    request = Request(**{"prompt": "x", "images": (PHOTO,), **fields})  # type: ignore[arg-type]
    with pytest.raises(RequestError, match=words):
        native.generate(request)


def test_a_path_with_the_character_0_is_refused(native: NativeGenerator) -> None:
    with pytest.raises(ImageError, match="the image file has the character 0 at"):
        native.generate(Request("x", (PHOTO + "\0.png",)))


def test_top_k_may_be_any_number(native: NativeGenerator, python: Generator) -> None:
    request = Request("x", (PHOTO,), max_new_tokens=4, temperature=1.0, top_k=2**70, seed=2**64 - 1)
    assert comparable(native.generate(request)) == comparable(python.generate(request))


def test_an_answer_may_begin_before_another_one_has_ended(native: NativeGenerator, python: Generator) -> None:
    first = Request("Read.", (PHOTO,), max_new_tokens=60, ignore_eos=True)
    second = Request("Count.", (PHOTO,), max_new_tokens=5, ignore_eos=True)
    for generator in (native, python):
        whole = generator.generate(first).text
        stream = generator.stream(first)
        pieces = [next(stream)]
        assert generator.generate(second).token_ids == python.generate(second).token_ids
        generator.forget()
        assert "".join([*pieces, *stream]) == whole


def test_ctrl_c_does_not_wait_for_the_answer() -> None:
    class Endless:
        """Answers until it is cancelled."""

        ended = threading.Event()
        warning = ""

        def generate(self, *_: object) -> str:
            assert self.ended.wait(timeout=20)
            return "{}"

        def cancel(self) -> None:
            self.ended.set()

    def cancelled() -> bool:
        raise KeyboardInterrupt

    generator = SimpleNamespace(native=Endless(), turn=threading.Lock(), fields_of=lambda _: {})
    run = native_runtime._NativeRun(generator, Request("x"))  # type: ignore[arg-type]
    with pytest.raises(KeyboardInterrupt):
        next(run.pieces(cancelled))
    assert generator.native.ended.is_set()


def test_a_program_may_end_in_the_middle_of_an_answer(built: None, toy_bundle_dir: Path) -> None:
    program = f"""
import sys
sys.path[:0] = {sys.path!r}
from runtime import Generator, Request, load_bundle
generator = Generator(load_bundle({str(toy_bundle_dir)!r}), "native", threads=1)
stream = generator.stream(Request("Read.", ({PHOTO!r},), max_new_tokens=400, ignore_eos=True))
next(stream)
sys.exit(3)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (3, "")


def test_an_exception_of_the_reader_ends_the_answer(native: NativeGenerator) -> None:
    def broken(piece: str) -> bool:
        raise KeyError(piece)

    fields = native.fields_of(Request("Read.", (PHOTO,), max_new_tokens=9, ignore_eos=True))
    with pytest.raises(KeyError):
        native.native.generate(fields, broken)


def test_warmup_batches_and_release(native: NativeGenerator, python: Generator) -> None:
    requests = [Request(text, (PHOTO,), max_new_tokens=4) for text in ("Read.", "Count.")]
    native.warmup(requests[0])
    assert [comparable(each) for each in native.generate_batch(requests)] == [
        comparable(native.generate(each)) | {"reused_images": 1} for each in requests
    ] or native.batches is False
    native.release("vision_encoder")
    answer = native.generate(replace(requests[0], ratio=1.0))
    assert answer.token_ids == python.generate(replace(requests[0], ratio=1.0)).token_ids


def test_a_warning_is_passed_on(native: NativeGenerator, monkeypatch: pytest.MonkeyPatch) -> None:
    class Slow:
        @property
        def warning(self) -> str:
            assert native.turn.locked()  # another thread's answer would write it meanwhile
            return "steps are slow"

        def __getattr__(self, name: str) -> Any:
            return getattr(quick, name)

    quick = native.native
    assert quick.warning == ""
    monkeypatch.setattr(native, "native", Slow())
    for ask in (native.generate, native.warmup):
        with pytest.warns(UserWarning, match="^steps are slow$"):
            ask(Request("hi", (), max_new_tokens=2))


def test_the_command_line_takes_it(
    built: None, toy_bundle_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [str(toy_bundle_dir), "--image", PHOTO, "--prompt", "Read.", "--max-new-tokens", "4"]
    outputs = []
    for backend in ("onnxruntime", "native"):
        assert main([*arguments, "--backend", backend]) == 0
        outputs.append(capsys.readouterr().out)
    assert outputs[0] == outputs[1]
    assert main([*arguments, "--backend", "native", "--overlay", "kept.png"]) == 2
    assert "--overlay needs the pictures in Python" in capsys.readouterr().err
    assert check([str(toy_bundle_dir), "--backend", "native"]) == 2
    assert f"run `fopru check {toy_bundle_dir}`" in capsys.readouterr().err


def test_without_the_module_the_message_says_how(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("runtime._fopru_native", "_fopru_native"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if Path(path).name != "python_module"])
    if importlib.util.find_spec("runtime._fopru_native") is not None:
        pytest.skip("the module lies beside the package here")
    with pytest.raises(BackendError, match="has not been built for this Python: run `make cpp-python`"):
        load_native()


def test_an_unknown_name(toy_bundle_dir: Path) -> None:
    bundle = load_bundle(toy_bundle_dir)
    with pytest.raises(BackendError, match=r'backend is "natve", expected one of .*native:tensorrt'):
        Generator(bundle, "natve")
    with pytest.raises(BackendError, match='backend is "cpu", expected one of native,'):
        NativeGenerator(bundle, "cpu")


def test_a_result_of_json_is_a_result() -> None:
    times = dict.fromkeys(("load", "preprocess", "vision", "embed", "prefill", "decode", "ttft"), 0.25)
    counts = dict.fromkeys(("kv_bytes", "kv_bytes_unpruned", "kv_bytes_allocated", "peak_rss_bytes"), 7)
    record = {
        **counts,
        "text": "a",
        "token_ids": [1],
        "finish_reason": "eos",
        "prompt_tokens": 3,
        "visual_tokens_before": [4],
        "visual_tokens_after": [2],
        "kept_indices": [[0, 3]],
        "pruned": True,
        "reason": None,
        "timings": times,
        "tokens_per_second": None,
    }
    result = result_of(record)
    assert (result.kept_indices, result.timings.ttft, result.reused_tokens) == (((0, 3),), 1.0, 0)
