"""src/text of the C++ runtime against the tokenizers package and detokenize.py: the same ids and text."""

from __future__ import annotations

import json
import random
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from runtime.detokenize import StopStrings, TextPieces
from tests.cpp_build import cpp_tool
from tests.text_tokenizers import TOKENIZERS, TextProbe, mixed_lines, random_text, tokenizer_json

LINES = 10_000
DEMO = Path(__file__).parent.parent / "demo" / "checkpoint" / "tokenizer.json"


@pytest.fixture(scope="module")
def probe() -> Iterator[TextProbe]:
    with TextProbe(cpp_tool("probe_text")) as probe:
        yield probe


@pytest.fixture(params=[*TOKENIZERS, "demo"])
def loaded(request: pytest.FixtureRequest, probe: TextProbe, tmp_path: Path) -> tuple[Tokenizer, TextProbe]:
    """A tokenizer of the package, and the probe with the same file loaded."""
    text = DEMO.read_text(encoding="utf-8") if request.param == "demo" else tokenizer_json(request.param)
    probe.load(text, tmp_path)
    return Tokenizer.from_str(text), probe


def _random_ids(rng: random.Random, size: int) -> list[int]:
    """Ids with and without tokens; a quarter is of the first, where bytes are."""
    beyond = (size, size + 1, 2**31, 2**32 - 1)
    return [
        rng.choice((rng.randrange(size), rng.randrange(size), rng.randrange(260), rng.choice(beyond)))
        for _ in range(rng.randint(1, 12))
    ]


def test_ids_and_texts_are_those_of_the_package(loaded: tuple[Tokenizer, TextProbe]) -> None:
    tokenizer, probe = loaded
    lines = ["", " ", "  ", "\n", "a", "▁", *mixed_lines(LINES)]
    with_special = [encoding.ids for encoding in tokenizer.encode_batch(lines)]
    without = [encoding.ids for encoding in tokenizer.encode_batch(lines, add_special_tokens=False)]
    for special, expected in ((True, with_special), (False, without)):
        found = probe.ask(encode=lines, special=special)["ids"]
        assert [x for x in zip(lines, found, expected, strict=True) if x[1] != x[2]] == []
    texts = probe.ask(decode=with_special)["texts"]
    assert texts == tokenizer.decode_batch(with_special)


def test_any_ids_decode_alike(loaded: tuple[Tokenizer, TextProbe]) -> None:
    tokenizer, probe = loaded
    rng = random.Random(11)
    size = tokenizer.get_vocab_size()
    lists = [[], *(_random_ids(rng, size) for _ in range(3000))]
    expected = ["" if not ids else tokenizer.decode(ids) for ids in lists]
    assert probe.ask(decode=lists)["texts"] == expected
    ids = [*range(size + 3), 2**32 - 1]
    assert probe.ask(names=ids)["texts"] == [tokenizer.id_to_token(number) for number in ids]
    # The package takes no such number at all.
    assert probe.ask(names=[-1, 2**32, 2**40, -(2**40)])["texts"] == [None] * 4


def test_streamed_text_comes_in_the_same_pieces(loaded: tuple[Tokenizer, TextProbe]) -> None:
    tokenizer, probe = loaded
    rng = random.Random(12)
    size = tokenizer.get_vocab_size()
    lists = [tokenizer.encode(line).ids for line in mixed_lines(150, seed=5)]
    lists += [_random_ids(rng, size) for _ in range(150)]

    def decode(part: Sequence[int]) -> str:
        return str(tokenizer.decode(list(part), skip_special_tokens=True)) if part else ""

    for ids in lists:
        pieces = TextPieces(
            lambda part: tokenizer.decode(list(part), skip_special_tokens=True) if part else ""
        )
        expected = [pieces.push(number) for number in ids] + [pieces.flush()]
        found = probe.ask(stream=ids)["pieces"]
        assert found == expected, ids
        assert not any(piece.endswith("\ufffd") for piece in found[:-1])


def test_stop_strings_give_the_same_pieces(probe: TextProbe) -> None:
    rng = random.Random(13)
    alphabet = "ab\n é日😀"
    for _ in range(2000):
        strings = ["".join(rng.choices(alphabet, k=rng.randint(1, 4))) for _ in range(rng.randint(0, 3))]
        texts = ["".join(rng.choices(alphabet, k=rng.randint(0, 4))) for _ in range(rng.randint(1, 8))]
        stop = StopStrings(strings)
        expected, found = [], []
        for text in texts:
            expected.append(stop.push(text))
            found.append(stop.found)
        expected.append(stop.flush())
        assert probe.ask(stop=strings, push=texts) == {"pieces": expected, "found": found}, (strings, texts)


def test_long_texts(loaded: tuple[Tokenizer, TextProbe]) -> None:
    tokenizer, probe = loaded
    rng = random.Random(14)
    texts = [
        " " * 50_000,
        "\n \t" * 10_000 + "x",
        "a" * 50_000,
        "ab" * 20_000,
        "é" * 20_000,
        "\u0301" * 5_000,
        "7" * 20_000,
        "<s>" * 5_000,
        "".join(random_text(rng) for _ in range(2_000)),
    ]
    assert probe.ask(encode=texts, special=True)["ids"] == [tokenizer.encode(text).ids for text in texts]


def test_text_that_is_no_utf8_is_refused_by_the_library(tmp_path: Path) -> None:
    """A lone surrogate cannot be written as UTF-8: the reader of the command refuses it."""
    command = subprocess.run(
        [cpp_tool("probe_text")], input=b'{"encode": ["\xed\xa0\x80"]}\n', capture_output=True, check=True
    )
    answer: dict[str, Any] = json.loads(command.stdout)
    assert "UTF-8" in answer["error"]
