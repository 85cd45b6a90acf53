"""Whole answers of the C++ TensorRT backend on its stand-in of TensorRT and CUDA, which runs graphs by ONNX
Runtime: results, reuse and copies are those of the Python backend on its own double, and the tokens those of
ONNX Runtime. Says nothing about real hardware."""

from __future__ import annotations

import json
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from runtime.bundle import load_bundle
from runtime.generator import Generator
from runtime.reuse import NO_REUSE, Reuse
from runtime.tensorrt.engines import graph_hash
from runtime.tensorrt.plan import Limits
from tests.cpp_build import cpp_tool
from tests.cpp_command import cpp_environment
from tests.tensorrt_double import Device, installed, write_engines
from tests.test_cpp_generate import ours, plain

Maker = Callable[[str], Path]
DATA = Path(__file__).parent / "data"
FROZEN = ("bundle_v3",)
FAMILIES = ("llava", "llava_next", "qwen2_5_vl", "smolvlm", "internvl")
IDENTITY = {"gpu": "rtx-3090", "sm": 86, "tensorrt": "10.3.0", "jetpack": None}
NOT_RECORDED = "decoding steps are not recorded as a CUDA graph, and run slower: CUDA failed in cudaStreamEnd"
SIZES = ((40, 33), (24, 70), (64, 64), (90, 33))


@dataclass
class Made:
    """A bundle, and its engines: JSON files that both doubles take."""

    bundle: Path
    engines: Path


@pytest.fixture(scope="module")
def make(family_bundle: Maker, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Made]:
    made: dict[Any, Made] = {}

    def build(name: str, limits: Limits | None = None) -> Made:
        if (name, limits) not in made:
            bundle = DATA / name if name in FROZEN else family_bundle(name)
            made[name, limits] = Made(bundle, with_record(bundle, tmp_path_factory.mktemp(name), limits))
        return made[name, limits]

    return build


def with_record(bundle: Path, folder: Path, limits: Limits | None) -> Path:
    write_engines(bundle, folder, limits)
    manifest = load_bundle(bundle).manifest
    engines = {
        path.stem: {
            "file": path.name,
            "bytes": path.stat().st_size,
            "onnx": graph_hash(manifest, path.stem),
        }
        for path in folder.glob("*.engine")
    }
    record = {"format": 1, "identity": IDENTITY, "plan": {"limits": {}}, "engines": engines}
    (folder / "engines.json").write_text(json.dumps(record))
    return folder


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder, random = tmp_path_factory.mktemp("photos"), np.random.default_rng(3)
    paths = []
    for number, size in enumerate(SIZES):
        path = folder / f"{number}.png"
        Image.fromarray(random.integers(0, 256, (*size, 3), np.uint8)).save(path)
        paths.append(str(path))
    return paths


def line(prompt: str, images: Sequence[str] = (), **options: Any) -> dict[str, Any]:
    return {
        "op": "generate",
        "prompt": prompt,
        "images": list(images),
        "max_new_tokens": 12,
        "ignore_eos": True,
        **options,
    }


def theirs(
    made: Made, lines: Sequence[dict[str, Any]], reuse: Reuse = NO_REUSE, sanitize: str = ""
) -> list[Any]:
    """What the C++ backend answers, and "device" after each; the program fails where anything was done that
    must not be done, or is left on the device."""
    text = "".join(f'{json.dumps(own)}\n{{"op": "device"}}\n' for own in lines)
    options = str(made.bundle), str(made.engines), str(reuse.features), str(int(reuse.prefix))
    done = subprocess.run(
        [str(cpp_tool("probe_answers", sanitize)), *options],
        input=text.encode(),
        capture_output=True,
        env=cpp_environment(),
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, b""), done.stderr.decode()[-4000:]
    replies = [json.loads(each) for each in done.stdout.split(b"\n") if each]
    return list(zip(replies[::2], replies[1::2], strict=True))


def some_lines(photos: list[str]) -> list[dict[str, Any]]:
    choices: list[dict[str, Any]] = [
        {},
        {"ratio": 1.0},
        {"ratio": 0.1},
        {"tokens": 3},
        {"selector": "rank"},
        {"selector": "random", "seed": 5},
        {"selector": "none"},
    ]
    lines = [line("hi", photos[:2], **choice) for choice in choices]
    lines += [line("no picture"), line("three", photos[1:]), line("one", photos[3:], max_new_tokens=1)]
    lines.append(line("drawn", photos[2:3], temperature=1.3, seed=11, top_p=0.9))
    return lines


@dataclass
class Both:
    """The Python backend on its double, and ONNX Runtime."""

    device: Device
    python: Generator
    reference: Generator

    def check(self, asked: dict[str, Any], answer: Any, *left_out: str) -> Any:
        """The tokens of both, all else of the Python backend; returns the result."""
        expected = ours(self.python, asked)
        assert plain(answer, *left_out) == plain(expected, *left_out), asked
        reference = ours(self.reference, asked)
        if "result" not in answer:
            assert answer == reference, asked
            return None
        reference = reference["result"]
        for name in ("token_ids", "kept_indices", "text"):
            assert answer["result"][name] == reference[name], (asked, name)
        return answer["result"]


@pytest.fixture
def both(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Both]]:
    with ExitStack() as stack:

        def start(made: Made, reuse: Reuse, device: Device | None = None) -> Both:
            device, bundle = device or Device(), load_bundle(made.bundle)
            stack.enter_context(installed(device, made.engines, monkeypatch))
            python = Generator(bundle, "tensorrt", reuse=reuse)
            return Both(device, python, Generator(bundle, threads=1, reuse=reuse))

        yield start


REUSES = pytest.mark.parametrize("reuse", [NO_REUSE, Reuse()], ids=["nothing kept", "kept"])


@REUSES
@pytest.mark.parametrize("name", [*FROZEN, *FAMILIES])
def test_answers_and_copies_are_those_of_python(
    make: Callable[..., Made], both: Callable[..., Both], name: str, reuse: Reuse, photos: list[str]
) -> None:
    made, lines = make(name), some_lines(photos)
    pair = both(made, reuse)
    for own, (answer, seen) in zip(lines, theirs(made, lines, reuse), strict=True):
        pair.device.to_host.clear()
        pair.check(own, answer)
        assert Counter(seen["to_host"]) == Counter(pair.device.to_host), own


@REUSES
def test_long_prompts_go_in_chunks_and_steps_in_blocks(
    make: Callable[..., Made], both: Callable[..., Both], reuse: Reuse, photos: list[str]
) -> None:
    made = make("llava_next", Limits(max_prompt=1400, max_new_tokens=600, unpruned=True))
    words = "a b c " * 180
    lines = [
        line(words, photos[:2], ratio=1.0, max_new_tokens=300),
        line("hi", photos[:2], max_new_tokens=40),
        line(words + "d", photos[:2], ratio=1.0, max_new_tokens=20),
    ]
    pair = both(made, reuse)
    for own, (answer, seen) in zip(lines, theirs(made, lines, reuse), strict=True):
        result = pair.check(own, answer)
        assert seen["recorded"] >= 1
        if len(own["prompt"]) > 100:
            assert result["prompt_tokens"] > 1024


def test_a_chat_goes_on_from_the_cache(
    make: Callable[..., Made], both: Callable[..., Both], photos: list[str]
) -> None:
    made, pair = make("llava"), both(make("llava"), Reuse())
    first = line("what is it?", photos[:2], max_new_tokens=40)
    answer = ours(pair.reference, first)["result"]["text"].replace("<image>", "")
    turns = [
        line("and why?", history=[["what is it?", photos[:2], answer]], max_new_tokens=30),
        line("and why?", history=[["what is it?", photos[2:], answer]], max_new_tokens=30),
        line("and why?", history=[["what is it?", photos[2:], answer]], max_new_tokens=300),
    ]
    asked = [first, *turns]
    replies = theirs(made, asked, Reuse())
    results = [pair.check(own, answer) for own, (answer, _) in zip(asked, replies, strict=True)]
    assert [result["reused_tokens"] % 4 for result in results] == [0] * 4  # rows of 64 bytes
    assert results[1]["reused_tokens"] > results[0]["visual_tokens_after"][0]
    assert results[2]["reused_tokens"] < results[0]["prompt_tokens"]  # another picture, the same text
    assert results[3]["reused_tokens"] > results[2]["reused_tokens"]  # in a cache that grew
    assert results[3]["kv_bytes_allocated"] == 2 * results[2]["kv_bytes_allocated"]


def test_nothing_is_allocated_after_the_warm_up(make: Callable[..., Made], photos: list[str]) -> None:
    def asked(first: int) -> dict[str, Any]:
        return line("hi", photos[first : first + 1])

    lines = [asked(0) | {"op": "warmup"}, *map(asked, (0, 1, 2))]
    (_, before), *rest = theirs(make("llava"), lines)
    assert before["recorded"] == 1
    for number, (answer, seen) in enumerate(rest, 1):
        assert len(answer["result"]["token_ids"]) == 12
        assert seen["counts"]["cudaGraphLaunch"] == number * 11  # the first token comes from the prompt
        for what in ("cudaMalloc", "cudaMallocHost", "createExecutionContext", "cudaStreamBeginCapture"):
            assert seen["counts"][what] == before["counts"][what], what


def test_memory_does_not_grow_with_requests(make: Callable[..., Made], photos: list[str]) -> None:
    ratios = (0.1, 0.3, 0.7, 1.0)
    lines = [line("hi", photos[turn % 3 :], ratio=ratios[turn % 4]) for turn in range(36)]
    used = [seen["used"] for _, seen in theirs(make("llava"), lines)]
    assert used[12:] == [used[12]] * 24


@pytest.mark.parametrize("op", ["encoded", "stages"])
def test_stages_are_those_of_onnxruntime(make: Callable[..., Made], photos: list[str], op: str) -> None:
    made = make("qwen2_5_vl")
    lines = [line("hi", photos[:1], op=op), line("hi", photos[1:3], op=op, ratio=0.2)]
    command = [str(cpp_tool("probe_generate")), str(made.bundle), "0", "0"]
    text = "".join(json.dumps(own) + "\n" for own in lines).encode()
    done = subprocess.run(command, input=text, capture_output=True, env=cpp_environment(), check=True)
    expected = [plain(json.loads(each), "kv_bytes_allocated") for each in done.stdout.splitlines()]
    found = [plain(answer, "kv_bytes_allocated") for answer, _ in theirs(made, lines)]
    assert found == expected  # the sum of the features, too: only copies are between


def test_devices_that_record_nothing_or_read_host_memory(
    make: Callable[..., Made], photos: list[str]
) -> None:
    made = make("llava")
    for setting in ("unrecordable", "coherent"):
        lines = [{"op": "set", setting: True}, line("hi", photos[:2]), line("hi", photos[1:], ratio=1.0)]
        (_, _), *replies = theirs(made, lines)
        reference = Generator(load_bundle(made.bundle), threads=1, reuse=NO_REUSE)
        for own, (answer, seen) in zip(lines[1:], replies, strict=True):
            expected = ours(reference, own)["result"]
            assert answer["result"]["token_ids"] == expected["token_ids"]
            assert ("cudaGraphLaunch" in seen["counts"]) == (setting == "coherent")
            why = answer.get("warning", "")
            assert why.startswith(NOT_RECORDED if setting == "unrecordable" else ""), why
            assert bool(why) == (setting == "unrecordable")


def test_requests_past_the_engines_are_refused_as_in_python(
    make: Callable[..., Made], both: Callable[..., Both], photos: list[str]
) -> None:
    made = make("llava", Limits(2, 64, 64, max_ratio=0.3))
    lines = [
        line("hi", photos[:2], ratio=0.5),
        line("hi", photos[:2], selector="rank"),
        line("a question of many more letters than there are places" * 9),
        line("hi", max_new_tokens=400),
        line("hi", photos[:2]),
    ]
    pair = both(made, NO_REUSE)
    replies = theirs(made, lines)
    for own, (answer, _) in zip(lines, replies, strict=True):
        assert plain(answer) == plain(ours(pair.python, own)), own
    assert [("message" in answer) for answer, _ in replies] == [True] * 4 + [False]


def test_memory_that_is_short_is_a_sentence(make: Callable[..., Made], photos: list[str]) -> None:
    lines = [
        line("hi"),
        {"op": "set", "free": 4096},
        line("hi", photos, ratio=1.0, max_new_tokens=300),
        {"op": "set", "free": 1 << 30},
        line("hi", photos, ratio=1.0, max_new_tokens=300),
    ]
    replies = [answer for answer, _ in theirs(make("llava"), lines)]
    assert "MiB are needed in one piece: lower the ratio or max_new_tokens" in replies[2]["message"]
    assert len(replies[4]["result"]["token_ids"]) == 300


def test_a_released_graph_leaves_no_recorded_step(make: Callable[..., Made], photos: list[str]) -> None:
    asked = line("hi", photos[:1])
    lines = [asked]
    for graph in ("embed_tokens", "decoder_model_portable"):
        lines += [{"op": "release", "graph": graph}, asked]
    replies = theirs(make("llava"), lines)
    assert [seen["recorded"] for _, seen in replies] == [1, 0, 1, 0, 1]
    assert len({tuple(replies[place][0]["result"]["token_ids"]) for place in (0, 2, 4)}) == 1


def test_the_sanitizers_find_nothing(make: Callable[..., Made], photos: list[str]) -> None:
    made = make("bundle_v3")
    lines = some_lines(photos)
    lines.append(line("and?", history=[["hi", photos[:1], "one two"]], max_new_tokens=300))
    found = [plain(answer) for answer, _ in theirs(made, lines, Reuse(), "address,undefined")]
    assert found == [plain(answer) for answer, _ in theirs(made, lines, Reuse())]


def test_the_command_line_takes_it(make: Callable[..., Made], photos: list[str]) -> None:
    made = make("bundle_v3")
    device = ["--backend", "tensorrt", "--engines", str(made.engines)]
    asked = ["--image", photos[0], "--prompt", "hi", "--max-new-tokens", "9"]

    def fopru(*options: str) -> dict[str, Any]:
        tool = str(cpp_tool("fopru_double"))
        done = subprocess.run(
            [tool, *options, "--json"], capture_output=True, env=cpp_environment(), check=False
        )
        assert (done.returncode, done.stderr) == (0, b""), done.stderr.decode()
        record: dict[str, Any] = json.loads(done.stdout)
        return record

    found = fopru("run", str(made.bundle), *asked, *device)
    assert found["token_ids"] == fopru("run", str(made.bundle), *asked)["token_ids"]
    assert fopru("check", str(made.bundle), *device)["ok"]
    measured = fopru("bench", str(made.bundle), *asked, "--rounds", "2", *device)
    assert measured["device"] == "TensorRT 10.3.0, CUDA 12.6, NVIDIA GeForce RTX 3090 (SM86)"
