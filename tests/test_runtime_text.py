"""Prompt template, tokenization and incremental text."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from runtime.bundle import load_bundle
from runtime.detokenize import TextPieces
from runtime.errors import BackendError, BundleError, RequestError
from runtime.layouts.base import IMAGE_SLOT, ImagePlan, Unit, running_offsets
from runtime.layouts.single import SingleLayout
from runtime.manifest import Manifest, PromptTemplate
from runtime.prompt import Prompter, expand_images, fill_turn
from runtime.request import Request, Turn
from tests.toy_bundle import BOS, IMAGE, byte_ids, rehash, write_toy_bundle


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_toy_bundle(tmp_path_factory.mktemp("bundles") / "toy")


@pytest.fixture(scope="module")
def prompter(root: Path) -> Prompter:
    return Prompter(load_bundle(root))


def plans(count: int) -> list[ImagePlan]:
    """Of images with one run of placeholders each."""
    layout = SingleLayout((1, 3), 3, {"height": 4, "width": 4}, None, None)
    return [layout.plan(5, 5) for _ in range(count)]


def tiled(*runs: int) -> ImagePlan:
    """Of an image with text between its runs of placeholders."""
    total = sum(runs)
    parts = "".join(f"[{number}]{IMAGE_SLOT}" for number in range(len(runs)))
    rows, offsets = np.arange(total), running_offsets(runs)
    return ImagePlan((Unit(total, None),), f"{parts}[end]", runs, rows, offsets, runs)


def prompter_with(tmp_path: Path, **changes: object) -> Prompter:
    def edit(manifest: Manifest) -> Manifest:
        return replace(manifest, prompt=replace(manifest.prompt, **changes))

    return Prompter(load_bundle(write_toy_bundle(tmp_path / "toy", edit=edit)))


def test_slots_are_filled_once_whatever_the_prompt_holds() -> None:
    assert (
        fill_turn("A {images}B {prompt} C", "[i]", "{images} {prompt} {x}")
        == "A [i]B {images} {prompt} {x} C"
    )
    assert fill_turn("A {prompt} then {images}", "[i]", "p") == "A p then [i]"


def test_render_of_turns(prompter: Prompter) -> None:
    history = (Turn("one?", ("a.png", "b.png"), "yes"), Turn("two?", (), "no"))
    text = prompter.render(Request("three?", ("c.png",), history=history), plans(3))
    assert text == "Q: <image>\n<image>\none? A:yes\nQ: two? A:no\nQ: <image>\nthree? A:"
    assert prompter.render(Request("hi"), []) == "Q: hi A:"


def test_past_answers_are_written_as_the_template_says(tmp_path: Path) -> None:
    chat = prompter_with(
        tmp_path,
        first_turn="U: {images}{prompt} A:",
        next_turn="</s>U: {images}{prompt} A:",
        generation="A:",
        past_answer="A: {answer}",
    )
    history = (Turn("one?", ("a.png",), "{answer}"), Turn("two?", (), "no"))
    text = chat.render(Request("three?", history=history), plans(1))
    assert text == "U: <image>\none? A: {answer}</s>U: two? A: no</s>U: three? A:"


def test_turns_without_images_may_be_written_differently(tmp_path: Path) -> None:
    chat = prompter_with(tmp_path, first_text="T: {prompt} A:", next_text="; {prompt} A:")
    history = (Turn("one?", (), "yes"), Turn("two?", ("a.png",), "no"), Turn("three?", (), "so"))
    text = chat.render(Request("four?", ("b.png",), history=history), plans(2))
    assert text == ("T: one? A:yes\nQ: <image>\ntwo? A:no; three? A:so\nQ: <image>\nfour? A:")
    first = chat.render(Request("one?", ("a.png",)), plans(1))
    assert first == "Q: <image>\none? A:"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"first_text": "no slot A:"},
            r"prompt.first_text is 'no slot A:', which must hold \{prompt\} exactly",
        ),
        (
            {"next_text": "{prompt}{prompt}"},
            r"prompt.next_text is .*, which must hold \{prompt\} exactly once",
        ),
        (
            {"generation": "A:", "next_text": "{prompt}"},
            "prompt.generation is 'A:', which must end every turn",
        ),
    ],
)
def test_turns_without_images_that_are_refused(tmp_path: Path, changes: dict[str, str], message: str) -> None:
    with pytest.raises(BundleError, match=message):
        prompter_with(tmp_path, **changes)


def test_text_of_an_image_has_the_image_token_in_every_slot(prompter: Prompter) -> None:
    request = Request("what?", ("a.png", "b.png"), history=(Turn("one?", ("c.png",), "yes"),))
    text = prompter.render(request, [tiled(2), *plans(1), tiled(1, 3, 2)])
    first, last = "[0]<image>[end]\n", "[0]<image>[1]<image>[2]<image>[end]\n"
    assert text == f"Q: {first}one? A:yes\nQ: <image>\n{last}what? A:"


def test_ids_have_a_placeholder_per_run(prompter: Prompter) -> None:
    ids = prompter.ids(Request("é?", ("a.png",)), plans(1))
    assert ids.dtype == np.int64
    assert ids.tolist() == [BOS, *byte_ids("Q: "), IMAGE, *byte_ids("\né? A:")]
    runs = prompter.ids(Request("?", ("a.png",)), [tiled(2, 1)])
    text = [*byte_ids("Q: [0]"), IMAGE, *byte_ids("[1]"), IMAGE, *byte_ids("[end]\n? A:")]
    assert runs.tolist() == [BOS, *text]


def test_special_tokens_are_optional(tmp_path: Path) -> None:
    plain = prompter_with(tmp_path, add_special_tokens=False)
    assert plain.ids(Request("hi"), []).tolist() == byte_ids("Q: hi A:")


def test_truncation_and_padding_of_the_tokenizer_are_off(tmp_path: Path) -> None:
    root = write_toy_bundle(tmp_path / "toy")
    tokenizer = Tokenizer.from_file(str(root / "tokenizer.json"))
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=64)
    tokenizer.save(str(root / "tokenizer.json"))
    rehash(root)
    assert Prompter(load_bundle(root)).ids(Request("hi"), []).tolist() == [BOS, *byte_ids("Q: hi A:")]


def test_prompt_with_the_image_token(prompter: Prompter) -> None:
    with pytest.raises(RequestError, match="the prompt contains the image token '<image>': leave it out"):
        prompter.render(Request("what is <image>?"), [])
    with pytest.raises(RequestError, match="the prompt contains the image token '<image>'"):
        prompter.render(Request("?", history=(Turn("a", (), "an <image>"),)), [])


def test_history_without_a_chat_form(tmp_path: Path) -> None:
    single = prompter_with(tmp_path, next_turn=None)
    assert single.render(Request("hi"), []) == "Q: hi A:"
    with pytest.raises(RequestError, match="this model's template has no second turn: ask without history"):
        single.render(Request("hi", history=(Turn("a", (), "b"),)), [])


def test_expansion() -> None:
    ids = np.array([1, 3, 5, 3, 6])
    assert expand_images(ids, 3, [2, 1]).tolist() == [1, 3, 3, 5, 3, 6]
    assert expand_images(np.array([1, 5]), 3, []).tolist() == [1, 5]
    with pytest.raises(
        RequestError, match="the prompt has 2 image tokens for 1 parts of images: write the prompt without"
    ):
        expand_images(ids, 3, [2])


def test_image_text_that_lacks_the_image_token(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"prompt.image is '<picture>', expected '<image>' in it once"):
        prompter_with(tmp_path, image="<picture>")


def test_image_id_that_the_tokenizer_lacks(tmp_path: Path) -> None:
    def edit(manifest: Manifest) -> Manifest:
        return replace(manifest, tokens=replace(manifest.tokens, image=9999))

    bundle = load_bundle(write_toy_bundle(tmp_path / "toy", edit=edit))
    with pytest.raises(
        BundleError, match=r"tokens.image is 9999, which .*tokenizer.json does not have: rebuild"
    ):
        Prompter(bundle)


def test_damaged_tokenizer(tmp_path: Path) -> None:
    root = write_toy_bundle(tmp_path / "toy")
    (root / "tokenizer.json").write_text("{}")
    rehash(root)
    with pytest.raises(BundleError, match=r"tokenizer.json cannot be loaded \(.*\): copy the bundle again"):
        Prompter(load_bundle(root))


def test_bundle_without_tokenizer(tmp_path: Path) -> None:
    root = write_toy_bundle(tmp_path / "toy")
    (root / "tokenizer.json").unlink()
    rehash(root)
    with pytest.raises(BundleError, match=r"has no tokenizer.json: rebuild the bundle"):
        Prompter(load_bundle(root))


def test_tokenizers_not_installed(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(BackendError, match="this needs the package tokenizers, which is not installed"):
        Prompter(load_bundle(root))


@pytest.mark.parametrize("turn", ["Q: {prompt}", "Q: {images}", "{images}{images}{prompt}"])
def test_template_without_its_slots(turn: str) -> None:
    with pytest.raises(
        BundleError, match=r"prompt.first_turn is .*, which must hold \{(images|prompt)\} exactly once"
    ):
        PromptTemplate(turn, None, "<image>", True)
    with pytest.raises(BundleError, match=r"prompt.next_turn is .*, which must hold"):
        PromptTemplate("{images}{prompt}", turn, "<image>", True)


def byte_level() -> Tokenizer:
    tokenizer = Tokenizer(
        models.BPE({text: n for n, text in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}, [])
    )
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def llama_like() -> Tokenizer:
    """Metaspace words with byte fallback, and the leading space stripped, as Llama's tokenizer decodes."""
    words = ["<unk>", *(f"<0x{n:02X}>" for n in range(256)), "▁the", "▁sea", "▁", "s", "e"]
    tokenizer = Tokenizer(models.BPE({text: n for n, text in enumerate(words)}, [], byte_fallback=True))
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return tokenizer


def pieces_of(decode: Callable[[Sequence[int]], str], ids: Sequence[int]) -> list[str]:
    pieces = TextPieces(decode)
    return [*(pieces.push(int(token)) for token in ids), pieces.flush()]


@pytest.mark.parametrize(
    "text", ["plain", "naïve café", "日本語のテキスト", "👩‍👩‍👧 family", " leading", "a\n\nb"]
)
def test_pieces_of_valid_text_are_whole_characters(text: str) -> None:
    tokenizer = byte_level()
    pieces = pieces_of(tokenizer.decode, tokenizer.encode(text).ids)
    assert "".join(pieces) == text
    assert "\ufffd" not in "".join(pieces)
    assert (
        max(len(piece) for piece in pieces) == 1
    )  # one byte per token, so never more than a character at once


@pytest.mark.parametrize("seed", range(20))
def test_pieces_of_any_bytes_are_the_decoded_text(seed: int) -> None:
    tokenizer = byte_level()
    ids = np.random.default_rng(seed).integers(0, tokenizer.get_vocab_size(), 40).tolist()
    assert "".join(pieces_of(tokenizer.decode, ids)) == tokenizer.decode(ids)


@pytest.mark.parametrize("seed", range(20))
def test_pieces_of_words_and_byte_fallback(seed: int) -> None:
    tokenizer = llama_like()
    rng = np.random.default_rng(seed)
    ids: list[int] = []
    for unit in rng.choice(["▁the", "▁sea", "▁", "s", "é", "日", "👩", "\n"], 40):
        known = tokenizer.token_to_id(unit)
        ids += [known] if known is not None else [1 + byte for byte in unit.encode()]
    pieces = pieces_of(tokenizer.decode, ids)
    assert "".join(pieces) == tokenizer.decode(ids)
    assert "\ufffd" not in "".join(pieces)


def test_words_keep_their_spaces() -> None:
    tokenizer = llama_like()
    ids = [tokenizer.token_to_id(word) for word in ("▁the", "▁sea", "s")]
    assert pieces_of(tokenizer.decode, ids) == ["the", " sea", "s", ""]


def test_text_that_stops_inside_a_character() -> None:
    tokenizer = byte_level()
    ids = tokenizer.encode("né").ids[:-1]
    assert pieces_of(tokenizer.decode, ids) == ["n", "", "\ufffd"]
