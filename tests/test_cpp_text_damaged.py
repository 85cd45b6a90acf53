"""tokenizer.json from outside, read by the C++ runtime: damaged files are refused in a sentence."""

from __future__ import annotations

import copy
import json
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cpp_build import cpp_tool
from tests.text_tokenizers import TextProbe, mixed_lines, tokenizer_json


@pytest.fixture(scope="module")
def probe() -> Iterator[TextProbe]:
    with TextProbe(cpp_tool("probe_text")) as probe:
        yield probe


def _small() -> dict[str, Any]:
    """A file with something of everything."""
    return {
        "version": "1.0",
        "added_tokens": [_token("<s>", 3), _token("</s>", 4)],
        "normalizer": {
            "type": "Sequence",
            "normalizers": [{"type": "NFC"}, {"type": "Prepend", "prepend": "a"}],
        },
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": "\\s+"}, "behavior": "Isolated", "invert": False},
                {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": True},
                {"type": "Digits", "individual_digits": True},
                {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
            ],
        },
        "model": {
            "type": "BPE",
            "unk_token": "a",
            "vocab": {"a": 0, "b": 1, "ab": 2},
            "merges": [["a", "b"]],
        },
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [
                {"SpecialToken": {"id": "<s>", "type_id": 0}},
                {"Sequence": {"id": "A", "type_id": 0}},
            ],
            "pair": [],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [3], "tokens": ["<s>"]}},
        },
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
                {"type": "Strip", "content": " ", "start": 1, "stop": 1},
            ],
        },
    }


def _token(content: str, number: int, **changes: Any) -> dict[str, Any]:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": number, "content": content, "special": True} | flags | changes


def _changed(path: str, value: Any) -> dict[str, Any]:
    file = _small()
    place: Any = file
    *parts, last = [int(part) if part.isdigit() else part for part in path.split(".")]
    for part in parts:
        place = place[part]
    place[last] = value
    return file


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("version", "2.0", 'has the version "2.0", and this runtime knows 1.0'),
        ("added_tokens", {}, "added_tokens is no array"),
        ("added_tokens.0.content", 3, r"added_tokens\[0\].content is no text"),
        ("added_tokens.0.id", -1, r"added_tokens\[0\].id is -1, expected 0 to 4294967294"),
        ("added_tokens.0.lstrip", None, r"added_tokens\[0\].lstrip is missing"),
        ("added_tokens.1.content", "<s>", 'added_tokens has "<s>" twice'),
        ("normalizer", [], "normalizer is no object"),
        ("normalizer.type", "Precompiled", 'has the normalizer "Precompiled", and this runtime knows NFC'),
        ("normalizer.normalizers", 1, "normalizer.normalizers is no array"),
        ("normalizer.normalizers.1.prepend", None, r"normalizer.normalizers\[1\].prepend is missing"),
        (
            "pre_tokenizer.type",
            "BertPreTokenizer",
            'has the pre_tokenizer "BertPreTokenizer", and this runtime knows',
        ),
        ("pre_tokenizer.pretokenizers.0.behavior", "Cut", 'behavior is "Cut", expected Removed'),
        ("pre_tokenizer.pretokenizers.0.pattern", {}, "pattern has neither String nor Regex"),
        ("pre_tokenizer.pretokenizers.0.pattern", {"Regex": "(a"}, "has brackets that do not match"),
        ("pre_tokenizer.pretokenizers.0.pattern", {"Regex": "a)"}, "has brackets that do not match"),
        ("pre_tokenizer.pretokenizers.0.pattern", {"Regex": "[a"}, "has a class without an end"),
        ("pre_tokenizer.pretokenizers.0.pattern", {"Regex": "a\\"}, "ends in a backslash"),
        (
            "pre_tokenizer.pretokenizers.0.pattern",
            {"Regex": "+"},
            "is no pattern: quantifier does not follow",
        ),
        ("pre_tokenizer.pretokenizers.0.pattern", {"Regex": "a{0,70000}"}, "is no pattern: number too big"),
        ("pre_tokenizer.pretokenizers.0.pattern", {"Regex": "(" * 500 + ")" * 500}, "is no pattern"),
        (
            "pre_tokenizer.pretokenizers.0.pattern",
            {"Regex": "x" * 70_000},
            "is a pattern of over 65536 bytes",
        ),
        (
            "pre_tokenizer.pretokenizers.0.pattern",
            {"Regex": "(?:(?:a{200}){200}){200}"},
            "is no pattern",
        ),
        ("pre_tokenizer.pretokenizers.1.replacement", "ab", 'replacement is "ab", expected one character'),
        (
            "pre_tokenizer.pretokenizers.1.prepend_scheme",
            "x",
            'prepend_scheme is "x", expected first, never or always',
        ),
        (
            "pre_tokenizer.pretokenizers.1.add_prefix_space",
            False,
            "add_prefix_space does not match prepend_scheme",
        ),
        ("model", None, "model is missing"),
        ("model.type", "Unigram", 'has the model "Unigram", and this runtime knows BPE'),
        ("model.dropout", 0.1, "has a model with dropout"),
        ("model.vocab", [], "model.vocab is no object"),
        ("model.vocab.a", "0", r'model.vocab\["a"\] is no whole number'),
        ("model.vocab.a", 1, "model.vocab has the id 1 twice"),
        ("model.vocab.a", 2**32, r"is 4294967296, expected 0 to 4294967294"),
        ("model.vocab.a", 0.5, r'model.vocab\["a"\] is no whole number'),
        ("model.merges", [["a"]], r"model.merges\[0\] is no pair of texts"),
        ("model.merges", ["ab"], r'model.merges\[0\] is "ab", expected two texts with a space'),
        ("model.merges", ["a b c"], r'model.merges\[0\] is "a b c", expected two texts'),
        (
            "model.merges",
            [["b", "a"]],
            r'model.merges\[0\] makes or takes "ba", which the vocabulary does not have',
        ),
        (
            "model.continuing_subword_prefix",
            "##",
            r"model.merges\[0\] is shorter than continuing_subword_prefix",
        ),
        ("post_processor.type", "X", 'has the post_processor "X", and this runtime knows'),
        ("post_processor.single.1.Sequence.id", "B", r"post_processor.single\[1\].Sequence.id is not A"),
        ("post_processor.special_tokens", {}, "post_processor.special_tokens.<s> is missing"),
        ("post_processor.special_tokens.<s>.ids", [-5], "post_processor.special_tokens.<s>.ids is -5"),
        ("decoder.type", "CTC", 'has the decoder "CTC", and this runtime knows'),
        ("decoder.decoders.1.start", -1, r"decoder.decoders\[1\].start is -1"),
        ("decoder.decoders.1.content", "", 'content is "", expected one character'),
        ("decoder", {"type": "BPEDecoder", "suffix": ""}, "decoder.suffix is empty"),
    ],
)
def test_refusals_name_the_part(
    path: str, value: Any, message: str, probe: TextProbe, tmp_path: Path
) -> None:
    answer = probe.try_load(json.dumps(_changed(path, value)), tmp_path)
    assert re.search(message, answer.get("error", "")), answer


def test_the_small_file_itself_is_taken(probe: TextProbe, tmp_path: Path) -> None:
    probe.load(json.dumps(_small()), tmp_path)
    assert probe.ask(encode=["b"], special=True)["ids"] == [[3, 0, 0, 0, 2]]


def test_huge_numbers_take_no_memory(probe: TextProbe, tmp_path: Path) -> None:
    file = _changed("decoder.decoders.1.start", 2**32 - 2)
    file["model"]["vocab"]["a"] = 2**32 - 2
    file["added_tokens"] = [_token("<s>", 2**31)]
    probe.load(json.dumps(file), tmp_path)
    assert probe.ask(names=[2**32 - 2, 0, 2**31])["texts"] == ["a", None, None]
    assert probe.ask(decode=[[2**32 - 2] * 3])["texts"] == ["aaa"]


@pytest.mark.parametrize("part", ["normalizer", "pre_tokenizer", "post_processor", "decoder"])
def test_sequences_in_sequences_end_at_the_depth_of_the_json(
    part: str, probe: TextProbe, tmp_path: Path
) -> None:
    key = {"normalizer": "normalizers", "pre_tokenizer": "pretokenizers"}.get(part, "processors")
    inner: dict[str, Any] = {
        "type": "Sequence",
        "processors": [],
        "decoders": [],
        "normalizers": [],
        "pretokenizers": [],
    }
    for depth, taken in ((20, True), (5000, False)):
        text = json.dumps(inner)
        for _ in range(depth):
            text = f'{{"type": "Sequence", "{"decoders" if part == "decoder" else key}": [{text}]}}'
        file = _small() | {part: None}
        answer = probe.try_load(json.dumps(file).replace(f'"{part}": null', f'"{part}": {text}'), tmp_path)
        assert ("error" not in answer) == taken, answer


@pytest.mark.parametrize("regex", ["(?:a+)+$", "(a|aa)+b", "(?:(?:a*)*)*b", "(?:a?){30}a{30}b"])
def test_patterns_that_try_everything_end_in_a_sentence(regex: str, probe: TextProbe, tmp_path: Path) -> None:
    probe.load(json.dumps(_changed("pre_tokenizer.pretokenizers.0.pattern", {"Regex": regex})), tmp_path)
    (answer,) = probe.ask(encode=["a" * 5000 + "c"], special=False)["ids"]
    # What the pattern's compiler sees through gives ids.
    assert isinstance(answer, list) or "did not get through a text of 5001 bytes" in answer


def test_one_of_these_patterns_is_indeed_stopped(probe: TextProbe, tmp_path: Path) -> None:
    probe.load(
        json.dumps(_changed("pre_tokenizer.pretokenizers.0.pattern", {"Regex": "(?:a|aa)+(?=x)"})), tmp_path
    )
    (answer,) = probe.ask(encode=["a" * 5000], special=False)["ids"]
    assert (
        answer == "the patterns of tokenizer.json did not get through a text of 5000 bytes in 8640000 steps: "
        "shorten the text, or pass token ids"
    )


def test_an_unknown_token_that_is_no_token_is_an_error_once_it_is_needed(
    probe: TextProbe, tmp_path: Path
) -> None:
    probe.load(json.dumps(_changed("model.unk_token", "<unk>") | {"pre_tokenizer": None}), tmp_path)
    found = probe.ask(encode=["b", "c"], special=False)["ids"]
    assert found[0] == [2]
    assert "has no token for" in found[1]
    assert 'its unknown token "<unk>" is not in the vocabulary' in found[1]


def _mutated(value: Any, rng: random.Random) -> Any:
    """The value with one random place of it removed, doubled or replaced."""
    odd = (
        None,
        True,
        -1,
        2**31,
        2**63 - 1,
        0.5,
        "",
        "a",
        "\ud7ff",
        [],
        {},
        [[]],
        {"type": "Sequence"},
        "(",
        "\\",
        "[^",
    )
    if isinstance(value, dict) and value and rng.random() < 0.9:
        key = rng.choice(list(value))
        changed = dict(value)
        if rng.random() < 0.15:
            del changed[key]
        else:
            changed[key] = _mutated(value[key], rng)
        return changed
    if isinstance(value, list) and value and rng.random() < 0.9:
        place = rng.randrange(len(value))
        items = list(value)
        if rng.random() < 0.2:
            items.insert(place, copy.deepcopy(items[rng.randrange(len(items))]))
        else:
            items[place] = _mutated(items[place], rng)
        return items
    return rng.choice(odd)


@pytest.mark.parametrize("name", ["qwen2", "llama with a normalizer", "flags", "end of word"])
def test_random_damage_is_an_error_or_a_tokenizer(name: str, probe: TextProbe, tmp_path: Path) -> None:
    rng = random.Random(name)
    file = json.loads(tokenizer_json(name))
    # Small enough to be damaged everywhere.
    file["model"]["merges"] = file["model"]["merges"][:3]
    lines = mixed_lines(20)
    refused = 0
    for _ in range(150):
        answer = probe.try_load(json.dumps(_mutated(_mutated(file, rng), rng)), tmp_path)
        if "error" in answer:
            refused += 1
            assert answer["error"].endswith((": copy the bundle again", "use the Python runtime"))
            continue
        ids = probe.ask(encode=lines, special=True)["ids"]
        probe.ask(decode=[one for one in ids if isinstance(one, list)])
    assert 20 < refused < 150
