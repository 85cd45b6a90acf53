"""The C functions answer as `runtime.Generator` does: tokens, text, counts, reasons, messages."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from runtime.bundle import load_bundle
from runtime.errors import BackendError, BundleError, EngineError, FopruError, ImageError, RequestError
from runtime.generator import Generator
from runtime.request import Request, Turn
from runtime.reuse import NO_REUSE, Reuse
from tests.cpp_build import cpp_tool
from tests.cpp_command import cpp_environment

DATA = Path(__file__).parent / "data"
FROZEN = ["bundle_v1", "bundle_v2", "bundle_v2_tiles", "bundle_v3", "bundle_v3_q4"]
STATUS: dict[type[FopruError], int] = {
    BundleError: 1,
    ImageError: 2,
    RequestError: 3,
    BackendError: 4,
    EngineError: 5,
}
MEASURED = ("timings", "tokens_per_second", "peak_rss_bytes")
SELECTORS = ["graph", "graph", "graph", "rank", "row", "random", "uniform", "none"]
PROMPTS = ["What is this?", "", "Wie viele Ziffern?\nSag es kurz.", "数一数 🙂 ok", "a b  c " * 6]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder, random = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    paths = []
    for number, (height, width) in enumerate([(64, 64), (40, 100), (90, 33), (56, 56)]):
        path = folder / f"{number}.png"
        Image.fromarray(random.integers(0, 256, (height, width, 3), np.uint8)).save(path)
        paths.append(str(path))
    return paths


def theirs(bundle: Path, lines: Sequence[dict[str, Any]], *options: str) -> list[dict[str, Any]]:
    """What the C functions answer, one generator for all lines."""
    text = "".join(json.dumps(line) + "\n" for line in lines)
    command = [str(cpp_tool("probe_generate")), str(bundle), *options]
    done = subprocess.run(
        command, input=text.encode(), capture_output=True, env=cpp_environment(), check=False
    )
    assert done.returncode == 0, done.stderr.decode()
    return [json.loads(line) for line in done.stdout.split(b"\n") if line]


def request_of(line: dict[str, Any]) -> Request:
    fields = {name: value for name, value in line.items() if name not in ("op", "cancel_after")}
    history = tuple(
        Turn(prompt, tuple(images), answer) for prompt, images, answer in fields.pop("history", ())
    )
    fields = {name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()}
    return Request(history=history, **fields)


def ours(generator: Generator, line: dict[str, Any]) -> dict[str, Any]:
    try:
        pieces = []
        stream = generator.stream(request_of(line))
        for piece in stream:
            pieces.append(piece)
            if len(pieces) == line.get("cancel_after"):
                stream.cancel()
                break
        return {"result": json.loads(json.dumps(stream.result.to_dict())), "pieces": pieces}
    except FopruError as error:
        return {"status": STATUS[type(error)], "message": str(error)}


def plain(answer: dict[str, Any], *left_out: str) -> dict[str, Any]:
    if "result" not in answer:
        return answer
    result = {name: value for name, value in answer["result"].items() if name not in (*MEASURED, *left_out)}
    return {**answer, "result": result}


def random_line(random: np.random.Generator, photos: list[str], chats: bool) -> dict[str, Any]:
    def some(most: int) -> list[str]:
        return [
            photos[int(place)] for place in random.integers(0, len(photos), int(random.integers(0, most + 1)))
        ]

    line: dict[str, Any] = {
        "op": "generate",
        "prompt": str(random.choice(PROMPTS)),
        "images": some(2),
        "max_new_tokens": int(random.choice([1, 2, 9, 17])),
        "ignore_eos": bool(random.random() < 0.6),
    }
    amount = random.random()
    if amount < 0.6:
        line["ratio"] = float(random.choice([1.0, 0.3, 0.1]))
    elif amount < 0.8:
        line["tokens"] = int(random.choice([1, 5, 11, 4000]))
    line["selector"] = str(
        random.choice(["graph", "graph", "graph", "rank", "row", "random", "uniform", "none"])
    )
    if random.random() < 0.5:
        line |= {"temperature": 1.3, "seed": int(random.integers(2**62)), "top_p": 0.9}
    if random.random() < 0.3:
        line["repetition_penalty"] = 1.2
    if random.random() < 0.4:
        line["stop"] = [str(stop) for stop in random.choice(["e", "�", " ", "An", "\n", "the"], 2)]
    if chats and random.random() < 0.4:
        line["history"] = [["first?", some(1), "one two"]]
    return line


def assert_same(bundle: Path, lines: list[dict[str, Any]], reuse: Reuse, *left_out: str) -> int:
    """Returns how many lines had a result."""
    generator = Generator(load_bundle(bundle), threads=1, reuse=reuse)
    options = str(reuse.features), str(int(reuse.prefix))
    answered = 0
    for line, answer in zip(lines, theirs(bundle, lines, *options), strict=True):
        expected = ours(generator, line)
        assert plain(answer, *left_out) == plain(expected, *left_out), line
        answered += "result" in answer
        if "result" in answer:
            assert list(answer["result"]) == list(expected["result"])  # the order of the keys, too
            assert list(answer["result"]["timings"]) == list(expected["result"]["timings"])
    return answered


@pytest.mark.parametrize("name", FROZEN)
def test_frozen_bundles_answer_as_in_python(name: str, photos: list[str]) -> None:
    random = np.random.default_rng(FROZEN.index(name))
    lines = [random_line(random, photos, chats=True) for _ in range(60)]
    assert assert_same(DATA / name, lines, NO_REUSE) > 20
    # A run that is kept for another prompt may have a larger cache, and is then judged by that.
    varies = ("kv_bytes_allocated", "reused_tokens")
    assert assert_same(DATA / name, lines, Reuse(), *varies) > 20


@pytest.mark.parametrize("family", ["llava_next", "smolvlm", "qwen2_5_vl", "internvl"])
def test_families_answer_as_in_python(
    family_bundle: Callable[[str], Path], family: str, photos: list[str]
) -> None:
    random = np.random.default_rng(len(family))
    lines = [random_line(random, photos, chats=True) for _ in range(25)]
    assert assert_same(family_bundle(family), lines, NO_REUSE) > 8


def test_reuse_is_that_of_python(photos: list[str]) -> None:
    first = {"op": "generate", "prompt": "one?", "images": photos[:1], "ratio": 0.5, "max_new_tokens": 6}
    chat = {**first, "prompt": "two?", "images": [], "history": [["one?", photos[:1], "yes"]]}
    lines = [
        first,
        first,
        chat,
        {**chat, "history": [["one?", photos[:1], "no"]], "images": photos[1:2]},
        {**first, "ratio": 0.25},
        {**first, "images": [photos[0], photos[2], photos[0]]},
        {**first, "images": photos[3:4], "selector": "random", "seed": 1},
        {**first, "images": photos[3:4], "selector": "random", "seed": 2},
        first,
    ]
    for reuse in (Reuse(), Reuse(prefix=False), Reuse(features=0), Reuse(features=3000)):
        assert assert_same(DATA / "bundle_v3", lines, reuse, "kv_bytes_allocated") == len(lines)


def test_cancelling_ends_before_the_next_token(photos: list[str]) -> None:
    line = {"op": "generate", "prompt": "?", "images": photos[:1], "max_new_tokens": 40, "ignore_eos": True}
    lines = [{**line, "cancel_after": after} for after in (1, 2, 3)]
    # What was held back when the answer was cancelled is in the text, but no piece of it is told any more.
    for reuse in (NO_REUSE, Reuse()):
        answers = theirs(DATA / "bundle_v3", lines, str(reuse.features), str(int(reuse.prefix)))
        generator = Generator(load_bundle(DATA / "bundle_v3"), threads=1, reuse=reuse)
        for one, answer in zip(lines, answers, strict=True):
            expected = ours(generator, one)
            assert answer["result"]["finish_reason"] == "cancelled"
            assert plain(answer) == plain(expected)


def test_stages_and_encoded_tokens_give_the_same_answer(photos: list[str]) -> None:
    line = {"prompt": "?", "images": photos[:2], "ratio": 0.4, "max_new_tokens": 8, "ignore_eos": True}
    whole, encoded, staged = theirs(
        DATA / "bundle_v3", [{**line, "op": op} for op in ("generate", "encoded", "stages")]
    )
    assert encoded["result"]["token_ids"] == whole["result"]["token_ids"] == staged["tokens"]
    assert encoded["result"]["kept_indices"] == whole["result"]["kept_indices"]
    assert encoded["result"]["reused_images"] == 2

    generator = Generator(load_bundle(DATA / "bundle_v3"), threads=1)
    stream = generator.stream(request_of(line))
    list(stream)
    assert list(stream.result.token_ids) == staged["tokens"]
    plain_ids = generator.tokenize(request_of(line), [image.plan for image in stream.encoded])
    assert staged["ids"] == generator.prompt(plain_ids, stream.encoded).ids[0].tolist()
    features = np.concatenate([np.asarray(image.features) for image in stream.encoded])
    assert staged["rows"] == len(features)
    # Sums of a few hundred float32 values near 1, added up in another order.
    assert abs(staged["sum"] - float(features.astype(np.float64).sum())) < 1e-3


def test_warmup_forget_and_release_change_no_answer(photos: list[str]) -> None:
    line = {"op": "generate", "prompt": "?", "images": photos[:1], "ratio": 0.4, "max_new_tokens": 5}
    steps: list[dict[str, Any]] = [
        line,
        {"op": "forget"},
        {**line, "op": "warmup"},
        line,
        {"op": "release", "graph": "vision_encoder_fopru"},
        {**line, "images": photos[1:2]},
        {"op": "release", "graph": "embed_tokens"},
        {"op": "release", "graph": "no_such_graph"},
        line,
    ]
    answers = theirs(DATA / "bundle_v3", steps)
    results = [answer["result"] for answer in answers if answer and "result" in answer]
    first, warm, _, last = results
    assert first["token_ids"] == warm["token_ids"] == last["token_ids"]
    assert (first["reused_tokens"], warm["reused_tokens"]) == (0, 0)
    assert (warm["timings"]["load"], warm["reused_images"]) == (pytest.approx(0, abs=1e-4), 0)  # all was open
    assert last["reused_images"] == 1


@pytest.mark.parametrize(
    "fields",
    [
        {"ratio": 0.5, "tokens": 3},
        {"ratio": 1.5},
        {"ratio": -0.25},
        {"ratio": float("1e-320"), "max_new_tokens": 0},
        {"tokens": -4, "images": ["0"]},
        {"selector": "Graph"},
        {"max_new_tokens": 0},
        {"max_new_tokens": 100_000},
        {"max_new_tokens": 100_000, "images": ["0"]},
        {"max_new_tokens": 100_000, "images": ["0"], "ratio": 0.01},
        {"max_new_tokens": 2**62},
        {"temperature": -0.5},
        {"temperature": 1e-5, "top_p": 0.0},
        {"top_p": 1.5},
        {"top_k": -1},
        {"min_p": 2.0},
        {"repetition_penalty": 0.0},
        {"repetition_penalty": 1e16},
        {"stop": ["a", ""]},
        {"prompt": "look: <image> here"},
        {"prompt": "x", "history": [["a <image>", [], "b"]]},
        {"tokens": 10_000, "images": ["0"]},
        {"tokens": 3, "images": ["0"], "selector": "row"},
    ],
    ids=lambda fields: ",".join(fields),
)
def test_requests_are_refused_in_the_words_of_python(fields: dict[str, Any], photos: list[str]) -> None:
    line = {"op": "generate", "prompt": "?", "max_new_tokens": 2, **fields}
    if "images" in line:
        line["images"] = photos[:1]
    (answer,) = theirs(DATA / "bundle_v3", [line])
    expected = ours(Generator(load_bundle(DATA / "bundle_v3"), threads=1), line)
    assert plain(answer, "reused_tokens") == plain(expected, "reused_tokens")
