"""src/text of the C++ runtime against the package tokenizers: each part, parts in rows, each code point."""

from __future__ import annotations

import functools
import json
import random
import re
import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from tests.cpp_build import cpp_tool
from tests.text_tokenizers import LLAMA3, O200K, TextProbe, random_text

# All that is assigned, and much that is not.
CODE_POINTS = [
    chr(value)
    for value in (
        *range(0xD800),
        *range(0xE000, 0xE100),
        *range(0xF8F0, 0x32500),
        *range(0xE0000, 0xE01F8),
        0x10FFFF,
    )
]
BYTES = {f"<0x{byte:02X}>": byte for byte in range(256)}

CLASSES = [
    *(
        r"\s",
        r"\S",
        r"\w",
        r"\W",
        r"\d",
        r"\b",
        ".",
        r"[^\s\p{L}\p{N}]",
        r"[^\r\n\p{L}\p{N}]",
        r"\P{L}",
        r"\p{^Nd}",
    ),
    *(r"(?i:s)", r"(?i:[h-k])", r"\p{Han}", r"[\S]"),
    *(
        rf"\p{{{name}}}"
        for name in ("Lu", "Ll", "Lt", "Lm", "Lo", "M", "Mc", "Nd", "No", "P", "S", "Z", "Cc", "Cf")
    ),
]


@pytest.fixture(scope="module")
def probe() -> Iterator[TextProbe]:
    with TextProbe(cpp_tool("probe_text")) as probe:
        yield probe


def _bytes_tokenizer(**model: Any) -> Tokenizer:
    """Every byte and `|` and `a` are tokens, so that what normalizers do is seen."""
    vocab = {**BYTES, "|": 256, "a": 257, "#a": 258}
    return Tokenizer(models.BPE(vocab=vocab, merges=[], byte_fallback=True, **model))


def _same(tokenizer: Tokenizer, probe: TextProbe, folder: Path, lines: list[str]) -> None:
    probe.load(tokenizer.to_str(), folder)
    found = probe.ask(encode=lines, special=False)["ids"]
    expected = [encoding.ids for encoding in tokenizer.encode_batch(lines, add_special_tokens=False)]
    differing = [
        (line, sorted({(a, b) for a, b in zip(one, two, strict=False) if a != b})[:4])
        for line, one, two in zip(lines, found, expected, strict=True)
        if one != two
    ]
    assert differing == []


@functools.cache
def _chunks() -> list[str]:
    return ["a".join(CODE_POINTS[begin : begin + 500]) for begin in range(0, len(CODE_POINTS), 500)]


@pytest.mark.parametrize("regex", CLASSES)
def test_classes_hold_the_same_code_points(regex: str, probe: TextProbe, tmp_path: Path) -> None:
    tokenizer = _bytes_tokenizer()
    tokenizer.normalizer = normalizers.Replace(Regex(regex), "|")
    _same(tokenizer, probe, tmp_path, _chunks())


@pytest.mark.parametrize("name", ["NFC", "NFD", "NFKC", "NFKD", "Lowercase", "StripAccents", "Nmt"])
def test_normalizers_do_the_same_to_each_code_point(name: str, probe: TextProbe, tmp_path: Path) -> None:
    tokenizer = _bytes_tokenizer()
    tokenizer.normalizer = getattr(normalizers, name)()
    _same(tokenizer, probe, tmp_path, _chunks())


@pytest.mark.parametrize("name", ["NFC", "NFKD"])
def test_marks_are_put_in_the_same_order(name: str, probe: TextProbe, tmp_path: Path) -> None:
    marks = [c for c in CODE_POINTS if unicodedata.combining(c) or unicodedata.decomposition(c)[:3] == "030"]
    tokenizer = _bytes_tokenizer()
    tokenizer.normalizer = getattr(normalizers, name)()
    _same(tokenizer, probe, tmp_path, ["a" + a + b + "e" + b + a for a in marks[::9] for b in marks[::13]])


@pytest.mark.parametrize(
    "pre_tokenizer",
    [
        pre_tokenizers.Digits(individual_digits=True),
        pre_tokenizers.Punctuation("removed"),
        pre_tokenizers.WhitespaceSplit(),
        pre_tokenizers.Whitespace(),
    ],
    ids=lambda part: type(part).__name__,
)
def test_pre_tokenizers_split_at_the_same_code_points(
    pre_tokenizer: Any, probe: TextProbe, tmp_path: Path
) -> None:
    # The first character of a piece is written without the prefix.
    tokenizer = _bytes_tokenizer(continuing_subword_prefix="#")
    tokenizer.pre_tokenizer = pre_tokenizer
    _same(tokenizer, probe, tmp_path, _chunks())


def test_single_words_end_at_the_same_code_points(probe: TextProbe, tmp_path: Path) -> None:
    tokenizer = _bytes_tokenizer()
    tokenizer.add_tokens([AddedToken("zq", single_word=True)])
    _same(
        tokenizer,
        probe,
        tmp_path,
        [" ".join(f"zq{a} {a}zq" for a in CODE_POINTS[i : i + 100]) for i in range(0, 0x20000, 100)],
    )


PATTERNS = [
    LLAMA3,
    O200K,
    r"'s|'t| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    r"\s?[A-Za-zÀ-ÿ]++|(?<=a)b|(?<!a)c|(?>x+)y",
    r"^.|.$|^$|\Aa|b\z|c\Z",
    r"\d{1,3}(?=(?:\d{3})*\b)|\w{,2}",
    r"a*|b*?|c?+",
    r"",
    r"[\x{4e00}-\x{9fff}\u3040-\u30ff]+|[!-/:-~]|\x41|\\|\.|\-|\/|[\]\^\-a]",
    r"(a)(?:b|(c))|\t|\v|\f",
]


def _random_normalizer(rng: random.Random) -> Any:
    parts = [
        lambda: normalizers.NFC(),
        lambda: normalizers.NFKD(),
        lambda: normalizers.Lowercase(),
        lambda: normalizers.StripAccents(),
        lambda: normalizers.Nmt(),
        lambda: normalizers.ByteLevel(),
        lambda: normalizers.Strip(left=rng.random() < 0.5, right=rng.random() < 0.5),
        lambda: normalizers.Prepend(rng.choice(("▁", "ab", "é "))),
        lambda: normalizers.Replace(rng.choice((" ", "a", "▁", "ab")), rng.choice(("", "▁", "xy"))),
        # Where these match nothing, the package makes text that stands for none, and writes it twice.
        lambda: normalizers.Replace(Regex(rng.choice(PATTERNS[:4])), rng.choice(("", "▁", "xy"))),
    ]
    return normalizers.Sequence([rng.choice(parts)() for _ in range(rng.randint(0, 3))])


def _random_pre_tokenizer(rng: random.Random) -> Any:
    behavior = rng.choice(("removed", "isolated", "merged_with_previous", "merged_with_next", "contiguous"))
    scheme = rng.choice(("first", "always", "never"))
    pattern = rng.choice((" ", "a", "ab", *map(Regex, PATTERNS)))
    parts = [
        lambda: pre_tokenizers.ByteLevel(add_prefix_space=rng.random() < 0.5, use_regex=rng.random() < 0.5),
        lambda: pre_tokenizers.Split(pattern, behavior, invert=rng.random() < 0.5),
        lambda: pre_tokenizers.Digits(individual_digits=rng.random() < 0.5),
        lambda: pre_tokenizers.Whitespace(),
        lambda: pre_tokenizers.WhitespaceSplit(),
        lambda: pre_tokenizers.Metaspace(prepend_scheme=scheme, split=rng.random() < 0.5),
        lambda: pre_tokenizers.Punctuation(behavior),
    ]
    return pre_tokenizers.Sequence([rng.choice(parts)() for _ in range(rng.randint(0, 3))])


def _or_panic(work: Callable[[], Any]) -> Any:
    """What `work` returns; None where the package panics, as it may on text that it has emptied."""
    try:
        return work()
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        return None


@pytest.mark.parametrize("seed", range(150))
def test_random_rows_of_parts(seed: int, probe: TextProbe, tmp_path: Path) -> None:
    rng = random.Random(seed)
    tokenizer = _bytes_tokenizer(continuing_subword_prefix=rng.choice(("", "#")))
    tokenizer.normalizer = _random_normalizer(rng)
    tokenizer.pre_tokenizer = _random_pre_tokenizer(rng)
    flags = [[rng.random() < 0.5 for _ in range(4)] for _ in range(3)]
    tokens = [
        AddedToken(text, single_word=single, lstrip=left, rstrip=right, normalized=normalized)
        for text, (single, left, right, normalized) in zip(("<s>", "mod", "Added"), flags, strict=True)
    ]
    if _or_panic(lambda: tokenizer.add_tokens(tokens)) is None:
        return
    answer = probe.try_load(tokenizer.to_str(), tmp_path)
    if "error" in answer:
        # The package takes such a file, and finds nothing or panics.
        assert re.search("added_tokens has .*(makes empty|twice)", answer["error"])
        return
    for _ in range(40):
        line = random_text(rng) + rng.choice(("", "<s>", " mod ", "Added")) + random_text(rng)
        expected = _or_panic(lambda line=line: tokenizer.encode(line, add_special_tokens=False).ids)
        if expected is None:
            continue
        assert probe.ask(encode=[line], special=False)["ids"] == [expected], line


def _random_decoder(rng: random.Random) -> Any:
    parts = [
        lambda: decoders.ByteLevel(),
        lambda: decoders.ByteFallback(),
        lambda: decoders.Fuse(),
        lambda: decoders.Strip(rng.choice((" ", "▁", "a")), rng.randint(0, 2), 0),
        lambda: decoders.Replace(rng.choice((" ", "▁", "", Regex(r"\s+|[^a]"))), rng.choice(("", " ", "é"))),
        lambda: decoders.Metaspace(prepend_scheme=rng.choice(("first", "always", "never"))),
        lambda: decoders.BPEDecoder("a"),
    ]
    return decoders.Sequence([rng.choice(parts)() for _ in range(rng.randint(1, 3))])


@pytest.mark.parametrize("seed", range(100))
def test_random_rows_of_decoders(seed: int, probe: TextProbe, tmp_path: Path) -> None:
    rng = random.Random(seed)
    texts = [
        "▁",
        "▁▁",
        "▁a",
        "a▁",
        " a",
        "é",
        "日",
        "ĠaĠ",
        "Ã",
        "©",
        "a",
        "aa",
        "<0x+1>",
        "<0xé>",
        "<0xZZ>",
        "<0xe9>",
    ]
    vocab = BYTES | {text: 256 + number for number, text in enumerate(texts)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.decoder = _random_decoder(rng)
    tokenizer.add_special_tokens(["<s>"])
    probe.load(tokenizer.to_str(), tmp_path)
    size = tokenizer.get_vocab_size() + 1
    lists = [
        [rng.choice((rng.randrange(size), rng.randrange(128, size))) for _ in range(rng.randint(1, 9))]
        for _ in range(80)
    ]
    assert probe.ask(decode=lists)["texts"] == [tokenizer.decode(ids) for ids in lists]


@pytest.mark.parametrize(
    "regex",
    [
        *(
            r"[a[b]]",
            r"[a&&b]",
            r"\h",
            r"\R",
            r"\X",
            r"\K",
            r"\G",
            r"(?<n>a)\k<n>",
            r"(a)\1",
            r"a{2}+",
            r"a{2}?",
            r"\Qa\E",
        ),
        *(
            r"(*UTF)a",
            r"(?i)a",
            r"a(?i)b|c",
            r"(?m)a",
            r"(?x) a",
            r"(?#c)a",
            r"\p{Greek}",
            r"\pL",
            r"\xff",
            r"(?i:ss)",
        ),
        *(
            r"(?i:ß)",
            r"(?i:\p{L})",
            r"(?i:[^a])",
            r"[]a]",
            r"[\D]",
            r"(?~a)",
            r"(?{f})",
            r"\101",
            r"\cA",
            r"[[:alpha:]]",
        ),
    ],
)
def test_what_may_mean_something_else_is_refused(regex: str, probe: TextProbe, tmp_path: Path) -> None:
    part = {"type": "Replace", "pattern": {"Regex": regex}, "content": ""}
    file = {"model": {"type": "BPE", "vocab": {}, "merges": []}, "normalizer": part}
    assert "normalizer.pattern.Regex" in probe.try_load(json.dumps(file), tmp_path)["error"]
