"""tokenizer.json whose parts make a text, or the time it takes, many times larger: refused in a sentence.

Without the limits the cases would take some hundred megabytes or some minutes each, not all of the machine.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cpp_build import cpp_tool
from tests.text_tokenizers import TextProbe

TOO_LONG = "bytes of a text, at most 16777216 are tokenized: shorten the text, or pass token ids"
TENFOLD = {"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 10}


@pytest.fixture(scope="module")
def probe() -> Iterator[TextProbe]:
    with TextProbe(cpp_tool("probe_text")) as probe:
        yield probe


def _file(**parts: Any) -> str:
    model = {"type": "BPE", "unk_token": "a", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": [["a", "b"]]}
    return json.dumps({"version": "1.0", "model": model} | parts)


def _token(content: str, **changes: Any) -> dict[str, Any]:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False)
    return {"id": 3, "content": content} | flags | changes


def _normalizers(*parts: dict[str, Any]) -> dict[str, Any]:
    return {"type": "Sequence", "normalizers": list(parts)}


@pytest.mark.parametrize(
    ("parts", "text"),
    [
        ({"normalizer": _normalizers(*[TENFOLD] * 8)}, "a"),
        ({"normalizer": _normalizers(*[{"type": "ByteLevel"}] * 25)}, "é"),
        ({"normalizer": TENFOLD | {"content": "b" * 100_000}}, "a" * 1000),
        # Short each, and long together.
        (
            {
                "normalizer": {"type": "Prepend", "prepend": "b" * 100_000},
                "added_tokens": [_token("<s>")],
            },
            "a<s>" * 1000,
        ),
        (
            {
                "pre_tokenizer": {
                    "type": "Sequence",
                    "pretokenizers": [{"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}]
                    * 25,
                }
            },
            "é",
        ),
    ],
)
def test_a_text_that_becomes_too_long(
    parts: dict[str, Any], text: str, probe: TextProbe, tmp_path: Path
) -> None:
    probe.load(_file(**parts), tmp_path)
    (answer,) = probe.ask(encode=[text], special=False)["ids"]
    assert isinstance(answer, str)
    assert TOO_LONG in answer


def test_tokens_that_become_too_long(probe: TextProbe, tmp_path: Path) -> None:
    probe.load(_file(decoder={"type": "Sequence", "decoders": [TENFOLD] * 8}), tmp_path)
    assert TOO_LONG in probe.ask(decode=[[0]])["error"]
    probe.load(_file(decoder=TENFOLD | {"content": "b" * 100_000}), tmp_path)
    assert TOO_LONG in probe.ask(decode=[[0] * 1000])["error"]


def test_an_added_token_is_normalized_within_the_same_limit(probe: TextProbe, tmp_path: Path) -> None:
    file = _file(normalizer=_normalizers(*[TENFOLD] * 8), added_tokens=[_token("a", normalized=True)])
    error = probe.try_load(file, tmp_path)["error"]
    assert "added_tokens[0].content cannot be normalized" in error
    assert error.endswith(": copy the bundle again")


def test_an_added_token_has_at_most_1024_bytes(probe: TextProbe, tmp_path: Path) -> None:
    error = probe.try_load(_file(added_tokens=[_token("c" * 1025)]), tmp_path)["error"]
    assert "added_tokens[0].content has over 1024 bytes" in error
    probe.load(_file(added_tokens=[_token("c" * 1024)]), tmp_path)
    assert probe.ask(encode=["c" * 1024 + "b"], special=False)["ids"] == [[3, 1]]


@pytest.mark.parametrize("side", ["lstrip", "rstrip"])
def test_white_space_around_added_tokens_takes_linear_time(
    side: str, probe: TextProbe, tmp_path: Path
) -> None:
    probe.load(_file(added_tokens=[_token(" ", **{side: True})]), tmp_path)
    begin = time.monotonic()
    (ids,) = probe.ask(encode=["a" + " " * 1_000_000 + "b"], special=False)["ids"]
    # 5 * 10^11 steps where each space looks at all others; some seconds are a slow machine.
    assert time.monotonic() - begin < 30
    assert (ids[:2], ids[-1]) == ([0, 3], 1)


@pytest.mark.parametrize(
    ("single", "message"),
    [
        ([{"SpecialToken": {"id": "x"}}] * 65, "has over 64 parts"),
        ([{"Sequence": {"id": "A"}}] * 5, "repeats the text over 4 times"),
        ([{"SpecialToken": {"id": "x"}}] * 5, "adds over 4096 ids"),
    ],
)
def test_templates_that_repeat_themselves(
    single: list[Any], message: str, probe: TextProbe, tmp_path: Path
) -> None:
    template = {"type": "TemplateProcessing", "special_tokens": {"x": {"ids": [1] * 1000}}}
    answer = probe.try_load(_file(post_processor=template | {"single": single}), tmp_path)
    assert f"post_processor.single {message}" in answer["error"]
    probe.load(_file(post_processor=template | {"single": single[:4]}), tmp_path)
    probe.ask(encode=["ab"], special=True)
