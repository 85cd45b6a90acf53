"""What a generator keeps between requests: an answer must not show that anything was reused."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from runtime import contract
from runtime.bundle import load_bundle
from runtime.decoder import DecoderRun, Room
from runtime.errors import BackendError, RequestError
from runtime.generator import Generator
from runtime.positions import Positions
from runtime.prefix import PrefixCache, PromptRows, Start, prompt_rows
from runtime.request import Request, Turn
from runtime.result import Result
from runtime.reuse import NO_REUSE, Reuse
from runtime.vision import Selection
from tests.conftest import Maker
from tests.toy_bundle import BOS, IMAGE, TILES, ToyModel, byte_ids, toy_photo, write_toy_bundle

MODEL = ToyModel()
PHOTO, OTHER = toy_photo(MODEL.size), toy_photo(MODEL.size, seed=11)
SYSTEM = len([BOS, *byte_ids("Q: ")])  # rows before the first picture


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_toy_bundle(tmp_path_factory.mktemp("bundles") / "toy", MODEL)


@pytest.fixture
def generator(root: Path) -> Generator:
    return Generator(load_bundle(root), threads=1)


@pytest.fixture(scope="module")
def plain(root: Path) -> Generator:
    """The same without any reuse: what every answer is compared with."""
    return Generator(load_bundle(root), threads=1, reuse=NO_REUSE)


def four(images: int) -> Selection:
    return Selection(((4,),) * images)


def ask(prompt: str, *images: Any, **options: Any) -> Request:
    return Request(prompt, images, **{"tokens": 4, "max_new_tokens": 6, "ignore_eos": True, **options})


def same_answer(found: Result, expected: Result) -> None:
    """Bit-equal: the sums of the toy are of eighths, in whatever order."""
    assert (found.token_ids, found.text) == (expected.token_ids, expected.text)
    assert (found.prompt_tokens, found.kept_indices) == (expected.prompt_tokens, expected.kept_indices)
    assert (found.visual_tokens_after, found.pruned) == (expected.visual_tokens_after, expected.pruned)


# Common rows


def rows_of(ids: Sequence[int], positions: Sequence[int] | None = None, *images: tuple[int, bytes]) -> Any:
    places = np.arange(len(ids)) if positions is None else np.asarray(positions)
    return PromptRows(np.asarray(ids), Positions(places[None], int(places.max()) + 1), images)


WITH_IMAGE = rows_of([1, 5, 3, 3, 3, 6, 7], None, (2, b"a"))


@pytest.mark.parametrize(
    ("other", "common"),
    [
        (WITH_IMAGE, 7),
        (rows_of([1, 5, 3, 3, 3, 6, 8], None, (2, b"a")), 6),
        (rows_of([1, 5, 3, 3, 3, 6], None, (2, b"a")), 6),
        (rows_of([1, 5, 3, 3, 3, 6, 7], None, (2, b"b")), 2),
        (rows_of([1, 5, 3, 3, 3, 6, 7], [0, 1, 2, 4, 5, 6, 7], (2, b"a")), 3),
        (rows_of([1, 5, 3, 3, 6, 7], None, (2, b"b")), 2),
        (rows_of([1, 5, 3, 3, 3, 6, 7]), 2),  # the model wrote image tokens, of which there is no picture
        (rows_of([9, 5, 3, 3, 3, 6, 7], None, (2, b"a")), 0),
        (rows_of([1, 5, 3, 3, 3, 6, 3], None, (2, b"a"), (6, b"a")), 6),
    ],
    ids=["same", "text", "shorter", "picture", "position", "counts", "no picture", "first", "second picture"],
)
def test_rows_are_common_up_to_the_first_difference(other: PromptRows, common: int) -> None:
    assert WITH_IMAGE.common(other) == other.common(WITH_IMAGE) == common


def test_generated_image_tokens_are_not_pictures() -> None:
    said = rows_of([1, 5]).followed_by([3, 3])
    assert said.common(rows_of([1, 5, 3, 3, 6], None, (2, b"a"))) == 2


def test_generated_rows_go_on_where_the_prompt_says() -> None:
    ids = np.array([[0, 1, 1, 3], [0, 1, 2, 3]])
    rows = PromptRows(np.array([1, 3, 3, 7]), Positions(ids, 9), ((1, b"a"),)).followed_by([4, 5])
    assert rows.ids.tolist() == [1, 3, 3, 7, 4, 5]
    assert rows.positions.ids.tolist() == [[0, 1, 1, 3, 9, 10], [0, 1, 2, 3, 9, 10]]
    assert (rows.positions.next, rows.images) == (11, ((1, b"a"),))


def test_rows_of_a_prompt_know_where_pictures_begin(generator: Generator) -> None:
    images = generator.encode_images(generator.preprocess([PHOTO, OTHER, PHOTO]), four(3))
    ids = generator.tokenize(ask("?", PHOTO, OTHER, PHOTO), [image.plan for image in images])
    prompt = generator.prompt(ids, images)
    rows = prompt_rows(prompt.ids, prompt.positions, images, IMAGE)
    line = len(byte_ids("\n"))
    assert [start for start, _ in rows.images] == [SYSTEM + number * (4 + line) for number in range(3)]
    (_, first), (_, second), (_, third) = rows.images
    assert first == third != second


# The kept run


class FakeRun:
    """A run as far as the prefix cache knows it."""

    def __init__(self, capacity: int = 20) -> None:
        self.cache = SimpleNamespace(capacity=capacity, allocated_bytes=8 * capacity, row_step=1)
        self.rewound: list[tuple[int, int]] = []

    def rewind(self, length: int, room: Room) -> None:
        self.rewound.append((length, room.capacity))


def start(prefix: PrefixCache, ids: Sequence[int], capacity: int = 20) -> Start:
    rows = rows_of(ids)
    return prefix.start(rows, Room(capacity, rows.positions), lambda: FakeRun(capacity))  # type: ignore[return-value,arg-type]


def kept(ids: Sequence[int], tokens: Sequence[int] = (), capacity: int = 20) -> tuple[PrefixCache, Any]:
    prefix = PrefixCache(True)
    begun = start(prefix, ids, capacity)
    prefix.keep(begun, tokens)
    return prefix, begun.run


@pytest.mark.parametrize(
    ("ids", "reused"),
    [([1, 2, 3, 4, 5], 3), ([1, 2, 3, 9, 8], 4), ([1, 2, 3], 2), ([1, 2], 1), ([1, 2, 3, 9, 8, 7], 5)],
    ids=["prompt", "answer", "whole prompt", "shorter", "whole answer"],
)
def test_a_prompt_that_begins_the_same_goes_on(ids: list[int], reused: int) -> None:
    prefix, run = kept([1, 2, 3], [9, 8])
    assert prefix.nbytes == 160
    found = start(prefix, ids, 25)
    assert (found.run, found.reused) == (run, reused)
    assert run.rewound == [(reused, 25)]


def test_rows_are_kept_in_the_steps_of_a_cache() -> None:
    for tokens, reused in (([1, 2, 3, 4, 5], 4), ([1, 2, 3, 9], 2), ([1, 9], 0)):
        prefix, run = kept([1, 2, 3, 4, 5])
        run.cache.row_step = 2
        found = start(prefix, tokens)
        assert (found.reused, found.run is run) == (reused, reused > 0)


def test_a_run_in_use_serves_nobody_else() -> None:
    prefix, run = kept([1, 2, 3])
    assert start(prefix, [1, 2, 3, 4]).run is run
    second = start(prefix, [1, 2, 3, 4])  # the first one was not given back: it failed, or is not done
    assert (second.run is run, second.reused, prefix.nbytes) == (False, 0, 0)


@pytest.mark.parametrize("ids", [[7, 2, 3], [1]], ids=["other first row", "a single row"])
def test_a_run_that_cannot_serve_is_let_go_before_a_fresh_one(ids: list[int]) -> None:
    prefix, run = kept([1, 2, 3])
    seen: list[int] = []
    rows = rows_of(ids)

    def fresh() -> Any:
        seen.append(prefix.nbytes)
        return FakeRun()

    found = prefix.start(rows, Room(20, rows.positions), fresh)
    assert (found.reused, found.run is run, seen) == (0, False, [0])


@pytest.mark.parametrize(("ids", "reused"), [([1, 2, 8, 8, 8], 0), ([1, 2, 3, 8, 8], 3)])
def test_a_large_cache_is_not_kept_for_a_short_prefix(ids: list[int], reused: int) -> None:
    prefix, _ = kept([1, 2, 3, 4], capacity=100)
    assert start(prefix, ids, 49).reused == reused


def test_forgetting_and_no_reuse() -> None:
    prefix, _ = kept([1, 2, 3])
    prefix.forget()
    assert (prefix.nbytes, start(prefix, [1, 2, 3]).reused) == (0, 0)
    off = PrefixCache(False)
    off.keep(Start(FakeRun(), 0, rows_of([1, 2])), [])  # type: ignore[arg-type]
    assert off.nbytes == 0


# Answers


class Counting:
    """Runs of each vision graph, units of all calls."""

    def __init__(self, generator: Generator, monkeypatch: pytest.MonkeyPatch) -> None:
        self.units = 0
        for name in (contract.VISION_ENCODER, contract.VISION_ENCODER_FOPRU):
            session = generator.session(name)
            monkeypatch.setattr(session, "run", self._counted(session.run))

    def _counted(self, real: Any) -> Any:
        def run(feeds: dict[str, np.ndarray]) -> Any:
            self.units += len(feeds[contract.PIXEL_VALUES])
            return real(feeds)

        return run


def test_another_question_about_the_same_picture(
    generator: Generator, plain: Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    counting = Counting(generator, monkeypatch)
    first = generator.generate(ask("what?", PHOTO))
    assert (counting.units, first.reused_tokens, first.reused_images) == (1, 0, 0)
    second = generator.generate(ask("where?", PHOTO))
    assert (counting.units, second.reused_images, second.timings.vision) == (1, 1, 0.0)
    assert second.reused_tokens == SYSTEM + 4 + len(byte_ids("\nwh"))
    for result, prompt in ((first, "what?"), (second, "where?")):
        same_answer(result, plain.generate(ask(prompt, PHOTO)))
    assert plain.generate(ask("what?", PHOTO)).reused_tokens == 0
    ids = [BOS, *byte_ids("Q: "), *[IMAGE] * 4, *byte_ids("\nwhere? A:")]
    pixels = (PHOTO.transpose(2, 0, 1) / 128).astype(np.float32)[None]
    merged = MODEL.merged(np.array([ids]), MODEL.pruned(pixels, 4))
    assert list(second.token_ids) == MODEL.greedy(merged, 6)


def test_the_same_request_runs_its_last_row_only(
    generator: Generator, plain: Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows: list[int] = []
    real = DecoderRun.prefill

    def counting(run: DecoderRun, embeds: np.ndarray) -> np.ndarray:
        rows.append(embeds.shape[1])
        return real(run, embeds)

    monkeypatch.setattr(DecoderRun, "prefill", counting)
    first, second = (generator.generate(ask("what?", PHOTO)) for _ in range(2))
    assert rows == [first.prompt_tokens, 1]
    assert second.reused_tokens == first.prompt_tokens - 1
    same_answer(second, first)


@pytest.mark.parametrize(
    ("request_", "common"),
    [
        (ask("what?", PHOTO, tokens=5), SYSTEM),
        (ask("what?", OTHER), SYSTEM),
        (ask("what?", PHOTO, selector="random"), SYSTEM),
        (ask("what?", PHOTO, selector="uniform"), SYSTEM),
        (ask("what?", PHOTO, tokens=None, ratio=1.0), SYSTEM),
        (ask("what?"), SYSTEM),
        (ask("what?", PHOTO, OTHER), SYSTEM + 4 + len(byte_ids("\n"))),
        (ask("what?", OTHER, PHOTO), SYSTEM),
        (ask("what?", PHOTO, max_new_tokens=90), None),  # grows
        (ask("what?", PHOTO, temperature=1.5, seed=3), None),
    ],
    ids=["counts", "picture", "random", "selector", "ratio", "text", "more", "order", "longer", "sampled"],
)
def test_what_changes_the_prompt_is_computed_again(
    generator: Generator, plain: Generator, request_: Request, common: int | None
) -> None:
    generator.generate(ask("what?", PHOTO))
    result, expected = generator.generate(request_), plain.generate(request_)
    same_answer(result, expected)
    assert result.reused_tokens == (expected.prompt_tokens - 1 if common is None else common)
    same_answer(generator.generate(ask("what?", PHOTO)), plain.generate(ask("what?", PHOTO)))


def test_another_system_prompt_ends_the_prefix(
    generator: Generator, plain: Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator.generate(ask("what?", PHOTO))
    for each in (generator, plain):
        prompter, real = each._prompter, each._prompter.ids

        def other(request: Request, plans: Any, real: Any = real) -> Any:
            ids = real(request, plans)
            ids[1] = ids[1] + 1  # the "Q" after the start token
            return ids

        monkeypatch.setattr(prompter, "ids", other)
    result = generator.generate(ask("what?", PHOTO))
    assert (result.reused_tokens, result.reused_images) == (1, 1)
    same_answer(result, plain.generate(ask("what?", PHOTO)))


@pytest.mark.parametrize(
    "model",
    [ToyModel(), ToyModel(prefix=1), ToyModel(pinpoints=TILES)],
    ids=["single", "prefix rows", "tiles and newlines"],
)
def test_a_chat_goes_on_behind_its_history(tmp_path: Path, model: ToyModel) -> None:
    folder = write_toy_bundle(tmp_path / "toy", model)
    generator = Generator(load_bundle(folder), threads=1)
    plain = Generator(load_bundle(folder), threads=1, reuse=NO_REUSE)
    photos, before = (toy_photo((30, 20)), toy_photo((24, 40), seed=3)), 0
    history: tuple[Turn, ...] = ()
    for number, (prompt, images) in enumerate([("what?", photos[:1]), ("and?", ()), ("this?", photos[1:])]):
        request = ask(prompt, *images, tokens=None, ratio=0.3, history=history)
        result, expected = generator.generate(request), plain.generate(request)
        same_answer(result, expected)
        assert result.reused_tokens >= before
        assert result.reused_images == min(number, 1)
        before = result.prompt_tokens  # the next turn begins with all of it
        history = (*history, Turn(prompt, images, result.text))


def test_answers_at_the_same_time_do_not_meet(generator: Generator, plain: Generator) -> None:
    requests = [ask("what?", PHOTO, max_new_tokens=12), ask("what? where?", PHOTO, max_new_tokens=12)]
    generator.generate(requests[0])
    streams = [generator.stream(request) for request in requests]
    for one, other in zip(*streams, strict=False):
        assert one
        assert other
    for stream, request in zip(streams, requests, strict=True):
        same_answer(stream_result(stream), plain.generate(request))


def stream_result(stream: Any) -> Result:
    list(stream)
    return stream.result  # type: ignore[no-any-return]


def test_an_answer_that_failed_leaves_no_run(
    generator: Generator, plain: Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator.generate(ask("what?", PHOTO))
    assert generator.prefix.nbytes > 0

    def broken(*_: object) -> Any:
        raise BackendError("the power went")

    monkeypatch.setattr(DecoderRun, "step", broken)
    with pytest.raises(BackendError, match="the power went"):
        generator.generate(ask("where?", PHOTO))
    assert generator.prefix.nbytes == 0
    monkeypatch.undo()
    same_answer(generator.generate(ask("where?", PHOTO)), plain.generate(ask("where?", PHOTO)))


def test_a_cancelled_answer_leaves_what_it_fed(generator: Generator, plain: Generator) -> None:
    stream = generator.stream(ask("what?", PHOTO, max_new_tokens=12))
    next(stream)
    stream.cancel()
    history = (Turn("what?", (PHOTO,), stream.result.text),)
    result = generator.generate(ask("and?", history=history))
    assert result.reused_tokens >= stream.result.prompt_tokens
    same_answer(result, plain.generate(ask("and?", history=history)))


def test_the_last_token_of_an_answer_was_not_fed(generator: Generator, plain: Generator) -> None:
    first = generator.generate(ask("a", PHOTO, tokens=16, max_new_tokens=1))
    assert first.text.isascii()  # so that the history has the token that was generated
    request = ask("and?", tokens=16, history=(Turn("a", (PHOTO,), first.text),))
    result = generator.generate(request)
    assert result.reused_tokens == first.prompt_tokens
    same_answer(result, plain.generate(request))


def test_a_refused_request_takes_nothing(generator: Generator) -> None:
    generator.generate(ask("what?", PHOTO))
    with pytest.raises(RequestError, match="lower the ratio or max_new_tokens"):
        generator.generate(ask("what?", PHOTO, max_new_tokens=1000))
    assert generator.generate(ask("what?", PHOTO)).reused_tokens > SYSTEM


def test_visual_tokens_given_count_as_reused(generator: Generator, plain: Generator) -> None:
    images = generator.encode_images(generator.preprocess([PHOTO]), four(1))
    generator.generate(ask("what?", PHOTO))
    result = generator.generate(ask("where?", PHOTO), images)
    assert (result.reused_images, result.reused_tokens > SYSTEM + 4) == (1, True)
    same_answer(result, plain.generate(ask("where?", PHOTO)))


def test_forget_and_release_free_what_is_kept(generator: Generator) -> None:
    generator.generate(ask("what?", PHOTO))
    assert (len(generator.features), generator.prefix.nbytes > 0) == (1, True)
    generator.release(contract.VISION_ENCODER_FOPRU)
    assert generator.prefix.nbytes > 0
    generator.release(contract.DECODER)
    assert (len(generator.features), generator.prefix.nbytes) == (1, 0)
    result = generator.generate(ask("what?", PHOTO))
    assert (result.reused_images, result.reused_tokens) == (1, 0)
    # All is there, so the released encoder stays closed.
    assert contract.VISION_ENCODER_FOPRU not in generator.loaded_graphs
    generator.forget()
    assert (len(generator.features), generator.features.nbytes, generator.prefix.nbytes) == (0, 0, 0)
    result = generator.generate(ask("what?", PHOTO))
    assert (result.reused_images, result.reused_tokens) == (0, 0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"features": -1}, "reuse.features is -1, expected bytes, or 0 to keep none"),
        ({"features": 1.5}, "reuse.features is 1.5, expected bytes"),
        ({"features": True}, "reuse.features is True, expected bytes"),
        ({"prefix": 1}, "reuse.prefix is 1, expected True or False"),
    ],
)
def test_options_out_of_range(options: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        Reuse(**options)


# Models


def logits_of_prefills(monkeypatch: pytest.MonkeyPatch) -> list[np.ndarray]:
    seen: list[np.ndarray] = []
    real = DecoderRun.prefill

    def spying(run: DecoderRun, embeds: np.ndarray) -> np.ndarray:
        seen.append(real(run, embeds).copy())
        return seen[-1]

    monkeypatch.setattr(DecoderRun, "prefill", spying)
    return seen


def picture(seed: int, size: tuple[int, int] = (40, 33)) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8))


def check_model(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With every kind of cache that the bundle has."""
    seen, bundle = logits_of_prefills(monkeypatch), load_bundle(folder)
    for kind in sorted(set(bundle.manifest.decoder.caches.values())):
        generators = Generator(bundle, threads=1), Generator(bundle, threads=1, reuse=NO_REUSE)
        for generator in generators:
            monkeypatch.setattr(generator.backend, "cache_kinds", (kind,))
        check_answers(*generators, seen)


def check_answers(reusing: Generator, plain: Generator, seen: list[np.ndarray]) -> None:
    """Two questions about one picture, a chat of three turns, another ratio: with reuse and without."""

    def both(request: Request) -> Result:
        result, expected = reusing.generate(request), plain.generate(request)
        assert result.token_ids == expected.token_ids
        assert (result.prompt_tokens, result.kept_indices) == (expected.prompt_tokens, expected.kept_indices)
        mine, theirs = seen[-2:]
        # Rows prefilled in two parts are summed in another order, some units in the last place each.
        np.testing.assert_allclose(mine, theirs, rtol=0, atol=1e-5 * np.abs(theirs).max())
        assert expected.reused_tokens == expected.reused_images == 0
        return result

    options: dict[str, Any] = {"ratio": 0.3, "max_new_tokens": 12, "ignore_eos": True}
    photos = picture(0), picture(1, (24, 70))
    both(Request("What is this?", photos[:1], **options))
    again = both(Request("What was that?", photos[:1], **options))
    assert again.reused_images == 1
    assert again.reused_tokens > sum(again.visual_tokens_after)
    history: tuple[Turn, ...] = ()
    before = 0
    for prompt, images in (("What is this?", photos[:1]), ("Why?", ()), ("And this?", photos[1:])):
        result = both(Request(prompt, images, history=history, **options))
        assert result.reused_images == 1
        assert result.reused_tokens > before
        before = sum(result.visual_tokens_after)
        history = (*history, Turn(prompt, images, "It is a cat."))
    more = Request("Why?", (), history=history[:1], **{**options, "ratio": 0.6})
    result = both(more)
    plans = [image.plan for image in plain.preprocess(photos[:1])]
    first_image = plain.tokenize(more, plans).tolist().index(plain.manifest.tokens.image)
    assert (result.reused_images, result.reused_tokens) == (0, first_image)


def test_llava_answers_as_without_reuse(toy_bundle_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_model(toy_bundle_dir, monkeypatch)


def test_three_axes_of_positions_answer_as_without_reuse(
    family_bundle: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_model(family_bundle("qwen2_5_vl"), monkeypatch)
