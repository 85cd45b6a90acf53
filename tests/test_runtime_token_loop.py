"""One answer from logits: its text, its end, and stop strings however the text is cut."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from export.checkpoint import load_model, load_processor, open_checkpoint
from export.golden import SAMPLE_IMAGE, open_images
from export.prompt_template import conversation
from export.steps import quiet_libraries
from runtime.bundle import load_bundle
from runtime.detokenize import StopStrings
from runtime.errors import RequestError
from runtime.generator import Generator
from runtime.request import Request
from runtime.token_loop import TokenLoop, Vocabulary
from tests.conftest import Maker

EOS = 256
SIZE = 257


def decode(ids: Sequence[int]) -> str:
    return bytes(token for token in ids if token < EOS).decode("utf-8", "replace")


def loop_for(**rules: object) -> TokenLoop:
    request = Request("?", **{"max_new_tokens": 99, **rules})
    return TokenLoop(request, Vocabulary(SIZE, (EOS,), decode), np.zeros(1, np.int64))


def logits_of(token: int) -> np.ndarray:
    logits = np.zeros(SIZE, np.float32)
    logits[token] = 1.0
    return logits


def pieces_of(loop: TokenLoop, text: str) -> list[str]:
    """What comes for each byte of the text, until the answer ends."""
    pieces: list[str] = []
    for byte in text.encode():
        if not loop.finished:
            pieces.append(loop.push(logits_of(byte)))
    return pieces


def cut(text: str, strings: Sequence[str]) -> str:
    """The text before the stop string that is complete first, begun earliest."""
    for end in range(len(text) + 1):
        if starts := [end - len(string) for string in strings if text[:end].endswith(string)]:
            return text[: min(starts)]
    return text


def certain(text: str, strings: Sequence[str]) -> str:
    """The text without the longest end that some stop string begins with."""
    for start in range(len(text)):
        if any(string.startswith(text[start:]) for string in strings):
            return text[:start]
    return text


TEXTS = st.text("ab\n", max_size=30)
STRINGS = st.lists(st.text("ab\n", min_size=1, max_size=6), max_size=4)


@given(TEXTS, STRINGS)
@example("aab", ["ab"])
@example("abab\n", ["abab\n", "ba"])
def test_character_by_character_shows_all_that_is_certain(text: str, strings: list[str]) -> None:
    filtered, shown = StopStrings(strings), ""
    for end, character in enumerate(text, start=1):
        shown += filtered.push(character)
        before = cut(text[:end], strings)
        if before != text[:end]:
            assert filtered.found
            assert shown == before
            assert (filtered.push("more"), filtered.flush()) == ("", "")
            return
        assert shown == certain(text[:end], strings)  # not less: nothing waits longer than it must
    assert not filtered.found
    assert shown + filtered.flush() == text


@given(TEXTS, STRINGS, st.integers(1, 7))
def test_no_stop_string_is_shown_however_the_text_is_cut(text: str, strings: list[str], size: int) -> None:
    filtered = StopStrings(strings)
    shown = "".join(filtered.push(text[at : at + size]) for at in range(0, len(text), size))
    shown += filtered.flush()
    assert text.startswith(shown)
    assert not any(string in shown for string in strings)
    assert filtered.found == any(string in text for string in strings)
    assert filtered.found or shown == text


def test_without_stop_strings_every_piece_passes() -> None:
    filtered = StopStrings(())
    assert (filtered.push("abc"), filtered.push(""), filtered.flush()) == ("abc", "", "")


def test_an_answer_ends_before_a_stop_string_over_several_tokens() -> None:
    loop = loop_for(stop=("##end", "never"))
    assert pieces_of(loop, "a # n##end more") == [*"a ", "", "# ", "", "n", *[""] * 4]
    assert (loop.text, loop.finish_reason) == ("a # n", "stop")
    assert decode(loop.token_ids) == "a # n##end"


def test_a_stop_string_inside_a_token() -> None:
    words = ("one two", " three. Four", " five")
    vocabulary = Vocabulary(SIZE, (), lambda ids: "".join(words[token] for token in ids))
    loop = TokenLoop(Request("?", stop=(". ",)), vocabulary, np.zeros(1, np.int64))
    assert [loop.push(logits_of(token)) for token in (0, 1)] == ["one two", " three"]
    assert (loop.text, loop.token_ids, loop.finish_reason) == ("one two three", [0, 1], "stop")


def test_what_is_held_back_comes_with_the_end() -> None:
    for end in (lambda loop: loop.push(logits_of(EOS)), TokenLoop.cancel):
        loop = loop_for(stop=("abc",))
        assert pieces_of(loop, "xab") == ["x", "", ""]
        assert end(loop) == "ab"
        assert loop.text == "xab"
    short = loop_for(stop=("abc",), max_new_tokens=3)
    assert pieces_of(short, "xab") == ["x", "", "ab"]
    assert short.finish_reason == "length"


def test_a_stop_string_at_the_length_limit_is_a_stop() -> None:
    loop = loop_for(stop=("abc",), max_new_tokens=4)
    assert pieces_of(loop, "xabc") == ["x", "", "", ""]
    assert (loop.text, loop.finish_reason) == ("x", "stop")


def test_a_stop_string_in_what_the_end_completes() -> None:
    # Half a character is shown once it is clear that the other half does not come.
    loop = loop_for(stop=("a\ufffd",))
    assert [loop.push(logits_of(token)) for token in (*b"xa\xc3", EOS)] == ["x", "", "", ""]
    assert (loop.text, loop.finish_reason) == ("x", "stop")


def test_white_space_before_the_answer_stops_nothing() -> None:
    loop = loop_for(stop=("\n",))
    assert pieces_of(loop, " \n\none\ntwo") == ["", "", "", "o", "n", "e", ""]
    assert (loop.text, loop.finish_reason) == ("one", "stop")


def test_characters_and_stop_strings_are_whole() -> None:
    loop = loop_for(stop=("é!",))
    assert pieces_of(loop, "né, né!") == ["n", "", "", "é,", " ", "n", "", "", ""]
    assert (loop.text, loop.finish_reason) == ("né, n", "stop")


def test_the_end_token_is_kept_and_not_shown() -> None:
    loop = loop_for()
    pieces_of(loop, "ab")
    assert (loop.push(logits_of(EOS)), loop.text) == ("", "ab")
    assert (loop.token_ids, loop.finish_reason) == ([*b"ab", EOS], "eos")
    ignoring = loop_for(ignore_eos=True)
    assert [ignoring.push(logits_of(token)) for token in (EOS, *b"ab")] == ["", "a", "b"]
    assert not ignoring.finished


def test_an_answer_that_has_ended_takes_no_more() -> None:
    loop = loop_for(max_new_tokens=1)
    loop.push(logits_of(65))
    assert (loop.cancel(), loop.finish_reason) == ("", "length")
    with pytest.raises(RequestError, match=r"the answer has ended \(length\): begin another one"):
        loop.push(logits_of(65))


def test_repeated_tokens_are_those_of_prompt_and_answer() -> None:
    request = Request("?", max_new_tokens=9, repetition_penalty=2.0)
    loop = TokenLoop(request, Vocabulary(4, (), lambda ids: "x" * len(ids)), np.array([3, 9]))
    logits = np.array([1.0, 1.5, 0.8, 1.9], np.float32)  # the penalty halves them, once
    for _ in range(5):
        loop.push(logits)
    assert loop.token_ids == [1, 0, 3, 3, 3]


@pytest.mark.parametrize("penalty", [1.0, 1.3])
def test_greedy_answers_are_those_of_generate(
    toy_bundle_dir: Path, toy_checkpoint: Maker, penalty: float
) -> None:
    with quiet_libraries(False):
        checkpoint = open_checkpoint(str(toy_checkpoint("clip-llama")))
        model, processor = load_model(checkpoint), load_processor(checkpoint)
    inputs = processor.apply_chat_template(
        conversation([("Which?", open_images([SAMPLE_IMAGE]), "")]),
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    length = inputs["input_ids"].shape[1]
    options = {"do_sample": False, "max_new_tokens": 32, "eos_token_id": 10**6}  # none ends it
    plain = model.generate(**inputs, **options)[0, length:].tolist()
    made = model.generate(**inputs, **options, repetition_penalty=penalty)[0, length:].tolist()
    assert (made != plain) == (penalty != 1.0)
    result = Generator(load_bundle(toy_bundle_dir), threads=1).generate(
        Request(
            "Which?",
            (SAMPLE_IMAGE,),
            ratio=1.0,
            max_new_tokens=32,
            repetition_penalty=penalty,
            ignore_eos=True,
        )
    )
    assert list(result.token_ids) == made
