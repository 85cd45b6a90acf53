"""Answers that go on from the cache of another one are those from nothing, however that one ended."""

from __future__ import annotations

from pathlib import Path

import pytest

from runtime.bundle import load_bundle
from runtime.generator import Generator
from runtime.request import Request, Turn
from runtime.result import Result
from runtime.reuse import NO_REUSE
from tests.toy_bundle import ToyModel, toy_photo, write_toy_bundle

MODEL = ToyModel()
PHOTO = toy_photo(MODEL.size)
ENDS = {
    "length": {},
    "stop": {"stop": ("e", "a", " ")},
    "sampled": {"temperature": 1.5, "top_k": 20, "repetition_penalty": 1.3},
}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_toy_bundle(tmp_path_factory.mktemp("bundles") / "toy", MODEL)


def same_answer(first: Result, second: Result) -> bool:
    parts = ("text", "token_ids", "finish_reason", "prompt_tokens", "kept_indices")
    return all(getattr(first, name) == getattr(second, name) for name in parts)


@pytest.mark.parametrize("end", sorted(ENDS))
def test_a_second_turn_goes_on_from_the_first(root: Path, end: str) -> None:
    reusing = Generator(load_bundle(root), threads=1)
    plain = Generator(load_bundle(root), threads=1, reuse=NO_REUSE)
    first = Request("what?", (PHOTO,), tokens=6, max_new_tokens=12, ignore_eos=True, **ENDS[end])  # type: ignore[arg-type]
    one = reusing.generate(first)
    assert same_answer(one, plain.generate(first))
    assert (one.reused_tokens, one.reused_images) == (0, 0)
    history = (Turn("what?", (PHOTO,), one.text.strip()),)
    second = Request("and?", tokens=6, max_new_tokens=12, ignore_eos=True, history=history)
    two = reusing.generate(second)
    from_nothing = plain.generate(second)
    assert same_answer(two, from_nothing)
    assert two.reused_images == 1
    assert two.reused_tokens >= one.prompt_tokens - 1
    assert (from_nothing.reused_tokens, from_nothing.reused_images) == (0, 0)


def test_a_cancelled_answer_leaves_its_cache(root: Path) -> None:
    reusing = Generator(load_bundle(root), threads=1)
    request = Request("what?", (PHOTO,), max_new_tokens=12, ignore_eos=True)
    stream = reusing.stream(request)
    next(stream)
    stream.cancel()
    assert stream.result.finish_reason == "cancelled"
    again = reusing.generate(request)
    assert again.reused_tokens == again.prompt_tokens - 1
    assert same_answer(again, Generator(load_bundle(root), threads=1, reuse=NO_REUSE).generate(request))


def test_an_answer_that_was_left_halfway_leaves_none(root: Path) -> None:
    reusing = Generator(load_bundle(root), threads=1)
    request = Request("what?", (PHOTO,), max_new_tokens=12, ignore_eos=True)
    next(reusing.stream(request))
    assert reusing.generate(request).reused_tokens == 0
