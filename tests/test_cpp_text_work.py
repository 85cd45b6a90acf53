"""The steps that the patterns of a tokenizer.json may take in one call: enough for real ones, no more."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cpp_build import cpp_tool
from tests.text_tokenizers import LLAMA3, O200K, TextProbe, mixed_lines

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
PATTERNS = {"gpt2": GPT2, "llama3": LLAMA3, "qwen2": LLAMA3.replace("{1,3}", ""), "o200k": O200K}
REFUSAL = (
    "the patterns of tokenizer.json did not get through a text of {} bytes in {} steps: "
    "shorten the text, or pass token ids"
)
SECONDS = 20.0
"""None takes one; the rest is for a busy machine. Without the limit the cases take minutes."""


@pytest.fixture(scope="module")
def probe() -> Iterator[TextProbe]:
    with TextProbe(cpp_tool("probe_text")) as probe:
        yield probe


@pytest.fixture(scope="module")
def lines() -> list[str]:
    return mixed_lines(10_000)


def _split(regex: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False}


def _file(**parts: Any) -> str:
    vocab = {"a": 0, " ": 1, "\n": 2}
    model = {"type": "BPE", "unk_token": "a", "vocab": vocab, "merges": []}
    return json.dumps({"version": "1.0", "model": model} | parts)


def _limit(size: int) -> int:
    return 8_000_000 + 128 * size


@pytest.mark.parametrize("name", PATTERNS)
def test_real_patterns_use_a_20th_of_the_steps(name: str, lines: list[str], probe: TextProbe) -> None:
    line = "".join(lines).replace("\n", " ") * 3
    size = 1_000_000
    for texts in (lines, [line.encode()[:size].decode(errors="ignore")], [" " * size], ["漢" * (size // 3)]):
        answer = probe.ask(work=PATTERNS[name], texts=texts)
        print(f"{name}: {answer['spent'] / answer['limit']:.2%} of the steps")
        assert answer["limit"] == _limit(sum(len(text.encode()) for text in texts))
        assert 0 < 20 * answer["spent"] < answer["limit"]


@pytest.mark.parametrize(
    "regex",
    [
        # Each place takes 2^16 steps, and none too many of them for a limit of one search.
        r"(?:a?){16}a{16}c|a",
        # No step backwards, but from each place to the end.
        r"[^b]*+[bc]|a",
        r"(?:(?=a*+)a)+",
        r"(?<=a{255})c|a",
        r"a{255}c|a",
        # Each of these runs fails at its last character, which a class of many takes long to find out.
        r"(?:a?){16}[^\p{Zs}\p{Zl}\p{Zp}\p{Cc}\p{Cf}\p{Co}\p{S}]{255}c|a",
        r"(?:a|aa)+c|a",
    ],
)
def test_patterns_that_take_long_at_each_place_are_stopped(
    regex: str, probe: TextProbe, tmp_path: Path
) -> None:
    size = 400_000
    text = ("a" * 249 + "\n") * (size // 250) if r"\p" in regex else "a" * size
    probe.load(_file(pre_tokenizer=_split(regex)), tmp_path)
    begin = time.monotonic()
    (answer,) = probe.ask(encode=[text], special=False)["ids"]
    assert time.monotonic() - begin < SECONDS
    # Or the memory of the search ends first.
    assert answer == REFUSAL.format(size, _limit(size)) or "heap limit exceeded" in answer


def test_a_short_text_is_no_way_round(probe: TextProbe, tmp_path: Path) -> None:
    # Its pieces are short, and they are many: the limit is that of all together.
    parts = [_split("\n"), _split(r"(?:a?){24}a{24}c|a")]
    probe.load(_file(pre_tokenizer={"type": "Sequence", "pretokenizers": parts}), tmp_path)
    text = ("a" * 30 + "\n") * 2000
    begin = time.monotonic()
    (answer,) = probe.ask(encode=[text], special=False)["ids"]
    assert time.monotonic() - begin < SECONDS
    assert answer == REFUSAL.format(len(text), _limit(len(text)))


@pytest.mark.parametrize(
    "parts",
    [
        {"normalizer": {"type": "Sequence", "normalizers": [{"type": "NFC"}] * 5000}},
        {
            "normalizer": {
                "type": "Sequence",
                "normalizers": [{"type": "Replace", "pattern": {"String": "b"}, "content": "c"}] * 5000,
            }
        },
        {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [_split("a")] * 1000}},
        {
            "pre_tokenizer": {
                "type": "Sequence",
                "pretokenizers": [{"type": "Digits", "individual_digits": True}] * 5000,
            }
        },
    ],
    ids=["NFC", "Replace", "Split", "Digits"],
)
def test_many_parts_are_stopped(parts: dict[str, Any], probe: TextProbe, tmp_path: Path) -> None:
    size = 100_000
    probe.load(_file(**parts), tmp_path)
    assert probe.ask(encode=["a"], special=False)["ids"] == [[0]]
    begin = time.monotonic()
    assert probe.ask(encode=["a" * size], special=False)["ids"] == [REFUSAL.format(size, _limit(size))]
    assert time.monotonic() - begin < SECONDS


def test_decoders_have_the_same_limit(probe: TextProbe, tmp_path: Path) -> None:
    replace = {"type": "Replace", "pattern": {"Regex": r"(?:a?){16}a{16}c|a"}, "content": "b"}
    probe.load(_file(decoder={"type": "Sequence", "decoders": [{"type": "Fuse"}, replace]}), tmp_path)
    assert probe.ask(decode=[[0]])["texts"] == ["b"]
    assert probe.ask(decode=[[0] * 20_000])["error"] == REFUSAL.format(20_000, _limit(20_000))


def test_all_added_tokens_are_normalized_within_one_limit(probe: TextProbe, tmp_path: Path) -> None:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "special"), False) | {"normalized": True}
    tokens = [{"id": 3, "content": f"{'a' * 40}{i}"} | flags for i in range(100)]
    replace = {"type": "Replace", "pattern": {"Regex": r"(?:a?){30}a{30}[bc]"}, "content": "b"}
    error = probe.try_load(_file(normalizer=replace, added_tokens=tokens), tmp_path)["error"]
    assert ".content cannot be normalized, as the patterns of tokenizer.json did not get through" in error


def test_a_run_that_is_looked_at_in_one_step_is_short(probe: TextProbe, tmp_path: Path) -> None:
    assert "error" not in probe.try_load(_file(pre_tokenizer=_split("a{255}")), tmp_path)
    for regex in ("a{256}", "a{1000,}", "a{0256}"):
        assert "{" in probe.try_load(_file(pre_tokenizer=_split(regex)), tmp_path)["error"]
