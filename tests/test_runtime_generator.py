"""The generator on the handwritten toy bundle, whose every answer numpy predicts."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from runtime import contract
from runtime import generator as generator_module
from runtime.bundle import load_bundle
from runtime.decoder import DecoderRun
from runtime.detokenize import TextPieces
from runtime.errors import BackendError, ImageError, RequestError
from runtime.generator import Generator
from runtime.manifest import Manifest
from runtime.request import Request, Turn
from runtime.sampling import Sampler
from runtime.vision import EncodedImage, Selection
from tests.toy_bundle import BOS, IMAGE, WIDTH, ToyModel, byte_ids, toy_photo, write_toy_bundle

MODEL = ToyModel()
PHOTO, OTHER = toy_photo(MODEL.size), toy_photo(MODEL.size, seed=11)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_toy_bundle(tmp_path_factory.mktemp("bundles") / "toy", MODEL)


@pytest.fixture
def generator(root: Path) -> Generator:
    return Generator(load_bundle(root), threads=1)


def generator_for(tmp_path: Path, model: ToyModel, **changes: object) -> Generator:
    """A generator of another toy, with fields of the manifest replaced."""

    def edit(manifest: Manifest) -> Manifest:
        return replace(manifest, **{name: change(manifest) for name, change in changes.items()})

    return Generator(load_bundle(write_toy_bundle(tmp_path / "toy", model, edit)), threads=1)


def expected_pixels(*photos: np.ndarray) -> np.ndarray:
    return np.stack([photo.transpose(2, 0, 1) / 128 for photo in photos]).astype(np.float32)


def encode(
    generator: Generator, photos: Sequence[np.ndarray], keep: int, selector: str = "graph", seed: int = 0
) -> tuple[EncodedImage, ...]:
    """The same number of tokens of every photo."""
    selection = Selection(((keep,),) * len(photos), selector, seed)
    return generator.encode_images(generator.preprocess(photos), selection)


def expected_tokens(model: ToyModel, ids: list[int], features: np.ndarray, steps: int) -> list[int]:
    return model.greedy(model.merged(np.array([ids]), features), steps)


@pytest.mark.parametrize("prefix", [0, 1])
@pytest.mark.parametrize("keep", [1, 5, 16])
def test_answer_is_the_predicted_one(tmp_path: Path, prefix: int, keep: int) -> None:
    model = ToyModel(prefix=prefix)
    generator = generator_for(tmp_path, model)
    result = generator.generate(Request("what?", (PHOTO,), tokens=keep, max_new_tokens=24, ignore_eos=True))
    pixels = expected_pixels(PHOTO)
    ids = [BOS, *byte_ids("Q: "), *[IMAGE] * (prefix + keep), *byte_ids("\nwhat? A:")]
    assert list(result.token_ids) == expected_tokens(model, ids, model.pruned(pixels, keep), 24)
    assert result.prompt_tokens == len(ids)
    assert result.kept_indices == (tuple(model.kept(pixels, keep)[0].tolist()),)
    assert (result.visual_tokens_before, result.visual_tokens_after) == ((16,), (keep,))
    assert result.finish_reason == "length"
    assert result.pruned is (keep < 16)


def test_row_strategy_in_the_graph(tmp_path: Path) -> None:
    model = ToyModel(grid=(4, 3), strategy="row")
    generator = generator_for(tmp_path, model)
    photo = toy_photo(model.size)
    result = generator.generate(Request("?", (photo,), ratio=0.5, max_new_tokens=4))
    assert result.visual_tokens_after == (6,)
    assert result.kept_indices[0] == tuple(model.kept(expected_pixels(photo), 6)[0].tolist())
    with pytest.raises(
        RequestError, match=r'strategy "row" keeps whole rows of 3 tokens, not 7: give a multiple'
    ):
        encode(generator, [photo], 7)


def test_ratio_one_runs_the_unpruned_graph_and_says_so(generator: Generator) -> None:
    result = generator.generate(Request("what?", (PHOTO,), ratio=1.0, max_new_tokens=4))
    assert (result.pruned, result.reason) == (False, "ratio 1.0 keeps every token")
    assert result.kept_indices == (tuple(range(16)),)
    assert result.kv_bytes == result.kv_bytes_unpruned
    assert contract.VISION_ENCODER in generator.loaded_graphs
    assert contract.VISION_ENCODER_FOPRU not in generator.loaded_graphs


def test_pruned_graph_at_all_tokens_equals_the_unpruned_graph(generator: Generator) -> None:
    whole = encode(generator, [PHOTO, OTHER], 16)
    plain = generator.encode_unpruned(generator.preprocess([PHOTO, OTHER]))
    assert len(whole) == len(plain) == 2
    for image, other in zip(whole, plain, strict=True):
        # Bit-equal: the same nodes, followed by a gather of everything in order.
        np.testing.assert_array_equal(image.features, other.features)
        assert (image.counts, other.counts, other.scores) == ((16,), (16,), None)


def test_only_the_pruned_encoder_is_loaded_when_pruning(generator: Generator) -> None:
    generator.generate(Request("what?", (PHOTO,), ratio=0.3, max_new_tokens=2))
    assert contract.VISION_ENCODER not in generator.loaded_graphs


def test_text_only_loads_no_encoder_and_says_so(generator: Generator) -> None:
    result = generator.generate(Request("what?", max_new_tokens=6, ignore_eos=True))
    ids = [BOS, *byte_ids("Q: what? A:")]
    assert list(result.token_ids) == expected_tokens(MODEL, ids, np.empty((0, WIDTH), np.float32), 6)
    assert (result.pruned, result.reason) == (False, "the prompt has no image")
    assert result.visual_tokens_before == result.visual_tokens_after == result.kept_indices == ()
    assert set(generator.loaded_graphs) == {contract.EMBED_TOKENS, contract.DECODER}


def test_two_images_keep_their_order_and_their_own_tokens(generator: Generator) -> None:
    result = generator.generate(
        Request("what?", (PHOTO, OTHER), tokens=4, max_new_tokens=12, ignore_eos=True)
    )
    pixels = expected_pixels(PHOTO, OTHER)
    image = [*[IMAGE] * 4, *byte_ids("\n")]
    ids = [BOS, *byte_ids("Q: "), *image, *image, *byte_ids("what? A:")]
    assert list(result.token_ids) == expected_tokens(MODEL, ids, MODEL.pruned(pixels, 4), 12)
    assert result.visual_tokens_after == (4, 4)
    assert [list(row) for row in result.kept_indices] == MODEL.kept(pixels, 4).tolist()


def test_second_turn_has_the_pruned_history(generator: Generator) -> None:
    turn = Turn("what?", (PHOTO,), "it is")
    request = Request("more?", (OTHER,), tokens=4, max_new_tokens=12, ignore_eos=True, history=(turn,))
    result = generator.generate(request)
    pixels = expected_pixels(PHOTO, OTHER)
    first = [BOS, *byte_ids("Q: "), *[IMAGE] * 4, *byte_ids("\nwhat? A:it is")]
    ids = [*first, *byte_ids("\nQ: "), *[IMAGE] * 4, *byte_ids("\nmore? A:")]
    assert result.prompt_tokens == len(ids)
    assert list(result.token_ids) == expected_tokens(MODEL, ids, MODEL.pruned(pixels, 4), 12)


def test_default_ratio_of_the_bundle(generator: Generator) -> None:
    assert generator.generate(Request("?", (PHOTO,), max_new_tokens=1)).visual_tokens_after == (8,)


@pytest.mark.parametrize("selector", ["rank", "random", "uniform", "row"])
def test_host_selectors_prune_the_unpruned_features(generator: Generator, selector: str) -> None:
    pixels = expected_pixels(PHOTO, OTHER)
    encoded = encode(generator, [PHOTO, OTHER], 8, selector, seed=3)
    whole = MODEL.features(pixels)
    for number, image in enumerate(encoded):
        assert (np.diff(image.kept_indices) > 0).all()
        np.testing.assert_array_equal(image.features, whole[number, image.kept_indices])
    same = [encoded[0].kept_indices.tolist() == encoded[1].kept_indices.tolist()]
    assert same == [selector == "uniform"]  # the others differ per image, random too
    assert (contract.VISION_ENCODER_FOPRU in generator.loaded_graphs) is (selector in ("rank", "row"))


def test_host_rank_equals_the_graph(generator: Generator) -> None:
    (host,), (graph,) = (encode(generator, [PHOTO], 5, name) for name in ("rank", "graph"))
    np.testing.assert_array_equal(host.kept_indices, graph.kept_indices)
    np.testing.assert_array_equal(host.features, graph.features)
    for image in (host, graph):
        assert image.scores is not None
        # The energy is a sum of eight squares, in whatever order.
        np.testing.assert_allclose(
            image.scores[0], MODEL.scores(expected_pixels(PHOTO))[0], rtol=1e-6, atol=0
        )


def test_host_selector_keeps_the_prefix_rows(tmp_path: Path) -> None:
    model = ToyModel(prefix=1)
    generator = generator_for(tmp_path, model)
    pixels = expected_pixels(PHOTO)
    (encoded,) = encode(generator, [PHOTO], 3, "uniform")
    assert encoded.kept_indices.tolist() == [2, 8, 13]
    assert encoded.scores is None
    np.testing.assert_array_equal(encoded.features, model.features(pixels)[0, [0, 3, 9, 14]])


def test_selector_none_keeps_all_and_says_so(generator: Generator) -> None:
    result = generator.generate(Request("?", (PHOTO,), ratio=0.3, selector="none", max_new_tokens=1))
    assert (result.visual_tokens_after, result.reason) == ((16,), 'selector "none" keeps every token')
    (encoded,) = encode(generator, [PHOTO], 16, "none")
    assert encoded.kept_indices.tolist() == list(range(16))


def test_encoded_images_serve_several_questions(
    generator: Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = generator.stream(Request("what?", (PHOTO,), tokens=4, max_new_tokens=8, ignore_eos=True))
    direct = [
        generator.generate(Request(text, (PHOTO,), tokens=4, max_new_tokens=8)) for text in ("a?", "b?")
    ]
    list(first)
    monkeypatch.setattr(generator, "encode_images", None)  # would fail when called
    for text, expected in zip(("a?", "b?"), direct, strict=True):
        again = generator.generate(Request(text, (PHOTO,), max_new_tokens=8), first.encoded)
        assert (again.token_ids, again.kept_indices) == (expected.token_ids, expected.kept_indices)
        assert again.timings.vision == again.timings.preprocess == 0.0


def test_encoded_first_images_are_completed(generator: Generator) -> None:
    encoded = encode(generator, [PHOTO], 4)
    request = Request("what?", (PHOTO, OTHER), max_new_tokens=8, ignore_eos=True)
    # The request says nothing, so the second image keeps the bundle's half.
    result = generator.generate(request, encoded)
    assert result.visual_tokens_after == (4, 8)
    features = np.concatenate(
        [MODEL.pruned(expected_pixels(PHOTO), 4)[0], MODEL.pruned(expected_pixels(OTHER), 8)[0]]
    )
    ids = [BOS, *byte_ids("Q: "), *[IMAGE] * 4, *byte_ids("\n"), *[IMAGE] * 8, *byte_ids("\nwhat? A:")]
    assert list(result.token_ids) == expected_tokens(MODEL, ids, features, 8)
    both = replace(request, tokens=4)
    assert generator.generate(both, encoded).token_ids == generator.generate(both).token_ids


def test_encoded_whole_images_are_reported_as_unpruned(generator: Generator) -> None:
    encoded = encode(generator, [PHOTO], 16)
    result = generator.generate(Request("?", (PHOTO,), max_new_tokens=1), encoded)
    assert (result.pruned, result.reason) == (False, "the visual tokens given are not pruned")
    more = generator.generate(Request("?", (PHOTO, OTHER), max_new_tokens=1), encoded)
    assert (more.pruned, more.reason, more.visual_tokens_after) == (True, None, (16, 8))


def test_encoded_pruned_images_beside_a_whole_one(generator: Generator) -> None:
    encoded = encode(generator, [PHOTO], 4)
    result = generator.generate(Request("?", (PHOTO, OTHER), selector="none", max_new_tokens=1), encoded)
    assert (result.pruned, result.visual_tokens_after) == (True, (4, 16))


def test_encoded_images_that_do_not_fit_the_request(generator: Generator) -> None:
    encoded = encode(generator, [PHOTO, OTHER], 4)
    with pytest.raises(RequestError, match="got visual tokens of 2 images for a request with 1: they belong"):
        generator.generate(Request("?", (PHOTO,)), encoded)
    with pytest.raises(
        RequestError,
        match="got 4, 4 visual tokens of the images, but the request asks for 8, 8: encode the images",
    ):
        generator.generate(Request("?", (PHOTO, OTHER), ratio=0.5), encoded)


def test_stops_at_the_end_token(tmp_path: Path) -> None:
    plain = generator_for(tmp_path / "plain", MODEL)
    request = Request("what?", (PHOTO,), tokens=8, max_new_tokens=16)
    tokens = plain.generate(replace(request, ignore_eos=True)).token_ids
    third = tokens[2]
    ending = generator_for(
        tmp_path / "ending", MODEL, tokens=lambda manifest: replace(manifest.tokens, eos=(2, third))
    )
    result = ending.generate(request)
    assert (result.token_ids, result.finish_reason) == (tokens[:3], "eos")
    assert result.text == plain.decode_text(tokens[:2]).lstrip()  # the end token is not shown
    ignoring = ending.generate(replace(request, ignore_eos=True))
    assert (ignoring.token_ids, ignoring.finish_reason) == (tokens, "length")


def test_stream_pieces_are_the_text_and_never_broken(generator: Generator) -> None:
    stream = generator.stream(Request("what?", (PHOTO,), tokens=8, max_new_tokens=40, ignore_eos=True))
    pieces = list(stream)
    assert all(pieces)
    assert "".join(pieces) == stream.result.text == generator.decode_text(stream.result.token_ids).lstrip()
    assert not any(piece.endswith("\ufffd") for piece in pieces[:-1])


def test_white_space_before_an_answer_is_not_shown(
    generator: Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = iter(["  ", "\n one", " two", " ", ""])
    monkeypatch.setattr(TextPieces, "push", lambda *_: next(words))
    monkeypatch.setattr(TextPieces, "flush", lambda *_: "\n")
    stream = generator.stream(Request("what?", max_new_tokens=5, ignore_eos=True))
    assert list(stream) == ["one", " two", " ", "\n"]
    assert stream.result.text == "one two \n"


def test_an_answer_of_white_space_is_empty(generator: Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TextPieces, "push", lambda *_: " ")
    monkeypatch.setattr(TextPieces, "flush", lambda *_: "\n")
    stream = generator.stream(Request("what?", max_new_tokens=2, ignore_eos=True))
    assert list(stream) == []
    assert stream.result.text == ""


def test_cancel_between_pieces(generator: Generator) -> None:
    stream = generator.stream(Request("what?", (PHOTO,), max_new_tokens=40, ignore_eos=True))
    next(stream)
    stream.cancel()
    assert stream.result.finish_reason == "cancelled"
    assert 0 < len(stream.result.token_ids) < 4
    assert list(stream) == []


def test_cancel_before_the_start_runs_nothing(generator: Generator) -> None:
    stream = generator.stream(Request("what?", (PHOTO,)))
    stream.cancel()
    assert (stream.result.token_ids, stream.result.text) == ((), "")
    assert generator.loaded_graphs == ()


def test_result_of_an_unfinished_stream(generator: Generator) -> None:
    stream = generator.stream(Request("what?", (PHOTO,)))
    next(stream)
    with pytest.raises(
        RequestError, match="the answer is not finished: read the stream to its end, or cancel"
    ):
        _ = stream.result


def test_result_of_a_stream_that_failed_is_its_error(generator: Generator) -> None:
    stream = generator.stream(Request("what?", ("nowhere.png",)))
    for ask in (lambda: next(stream), lambda: stream.result, lambda: stream.result):
        with pytest.raises(ImageError, match=r"there is no image file at nowhere.png"):
            ask()
    stream.cancel()
    with pytest.raises(ImageError, match=r"there is no image file at nowhere.png"):
        _ = stream.result


def test_result_of_an_interrupted_stream(generator: Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(DecoderRun, "step", interrupt)
    stream = generator.stream(Request("what?"))
    with pytest.raises(KeyboardInterrupt):
        next(stream)
    with pytest.raises(RequestError, match="the answer was interrupted: ask again"):
        _ = stream.result


def test_only_the_iterating_thread_ends_a_stream(
    generator: Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    inside, go = threading.Event(), threading.Event()
    real = Sampler.pick

    def waiting(*args: object) -> int:
        inside.set()
        assert go.wait(20)
        return real(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(Sampler, "pick", waiting)
    stream = generator.stream(Request("what?", max_new_tokens=40, ignore_eos=True))
    reader = threading.Thread(target=lambda: list(stream))
    reader.start()
    assert inside.wait(20)
    stream.cancel()
    with pytest.raises(RequestError, match="another thread is reading this answer: ask there for the result"):
        _ = stream.result
    go.set()
    reader.join(20)
    assert stream.result.finish_reason == "cancelled"


def test_another_thread_may_end_what_its_reader_left(generator: Generator) -> None:
    stream = generator.stream(Request("what?", max_new_tokens=40, ignore_eos=True))
    reader = threading.Thread(target=lambda: next(stream))
    reader.start()
    reader.join(20)
    stream.cancel()
    assert stream.result.finish_reason == "cancelled"


def test_pictures_of_a_stream_are_what_the_encoder_saw(generator: Generator) -> None:
    stream = generator.stream(Request("what?", (PHOTO, OTHER), max_new_tokens=1))
    assert stream.prepared == ()
    list(stream)
    first, second = stream.prepared
    np.testing.assert_array_equal(
        np.concatenate([first.pixel_values, second.pixel_values]), expected_pixels(PHOTO, OTHER)
    )
    np.testing.assert_array_equal(second.views[0], OTHER)
    again = generator.stream(Request("more?", (PHOTO, OTHER, PHOTO), max_new_tokens=1), stream.encoded)
    list(again)
    assert len(again.prepared) == 1  # the others are encoded already


def test_released_graphs_are_opened_again(generator: Generator) -> None:
    for ratio in (0.5, 1.0):
        generator.generate(Request("?", (PHOTO,), ratio=ratio, max_new_tokens=1))
    encoders = {contract.VISION_ENCODER, contract.VISION_ENCODER_FOPRU}
    assert encoders < set(generator.loaded_graphs)  # requests may alternate without opening graphs again
    generator.release(contract.VISION_ENCODER)
    generator.release(contract.VISION_ENCODER)  # not open any more
    with pytest.raises(
        RequestError, match=r'no graph "vision": release one of .*embed_tokens, vision_encoder, '
    ):
        generator.release("vision")
    assert contract.VISION_ENCODER not in generator.loaded_graphs
    assert generator.generate(Request("?", (PHOTO,), ratio=1.0, max_new_tokens=1)).token_ids


def test_cache_ends_before_the_last_token(generator: Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    capacities: list[int] = []
    real = generator.decoder_run
    monkeypatch.setattr(
        generator, "decoder_run", lambda size, positions: capacities.append(size) or real(size, positions)
    )
    for new in (1, 5):
        generator.forget()  # the cache of the last answer would do
        result = generator.generate(Request("what?", max_new_tokens=new, ignore_eos=True))
        assert capacities.pop() == result.prompt_tokens + new - 1
        assert len(result.token_ids) == new


def test_images_are_opened_one_at_a_time(generator: Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[weakref.ref[Image.Image]] = []
    alive: list[int] = []

    def spying(source: np.ndarray) -> Image.Image:
        gc.collect()
        alive.append(sum(ref() is not None for ref in opened))
        image = Image.fromarray(source)
        opened.append(weakref.ref(image))
        return image

    monkeypatch.setattr(generator_module, "load_image", spying)
    generator.preprocess([PHOTO, OTHER, PHOTO])
    assert alive == [0, 0, 0]


def test_ctrl_c_passes_through(generator: Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(DecoderRun, "step", interrupt)
    with pytest.raises(KeyboardInterrupt):
        generator.generate(Request("what?", (PHOTO,)))
    monkeypatch.undo()
    assert generator.generate(Request("what?", (PHOTO,), max_new_tokens=2)).token_ids  # still usable


def test_sampling_follows_the_seed(generator: Generator) -> None:
    def tokens(seed: int, temperature: float = 1.5) -> tuple[int, ...]:
        request = Request(
            "what?", (PHOTO,), max_new_tokens=16, temperature=temperature, seed=seed, ignore_eos=True
        )
        return generator.generate(request).token_ids

    assert tokens(1) == tokens(1)
    assert tokens(1) != tokens(2)
    assert tokens(1, temperature=0.0) == tokens(2, temperature=0.0)
    narrow = Request("what?", (PHOTO,), max_new_tokens=16, temperature=1.5, top_p=1e-9, ignore_eos=True)
    assert generator.generate(narrow).token_ids == tokens(1, temperature=0.0)


def test_too_long_for_the_model(generator: Generator) -> None:
    with pytest.raises(
        RequestError,
        match="the prompt has 29 tokens and the answer up to 228, but the model has 256 positions: lower the",
    ):
        generator.generate(Request("what?", (PHOTO,), ratio=1.0, max_new_tokens=228))
    generator.generate(Request("what?", (PHOTO,), ratio=1.0, max_new_tokens=227))
    with pytest.raises(RequestError, match="shorten the prompt or lower max_new_tokens"):
        generator.generate(Request("w" * 300))
    with pytest.raises(RequestError, match="256 positions: lower max_new_tokens"):
        generator.generate(Request("what?", (PHOTO,), tokens=1, max_new_tokens=300))


def test_embed_wants_as_many_rows_as_placeholders(generator: Generator) -> None:
    four, three = (encode(generator, [PHOTO], keep) for keep in (4, 3))
    ids = generator.prompt(generator.tokenize(Request("what?", (PHOTO,)), [four[0].plan]), four).ids
    with pytest.raises(
        RequestError, match="the prompt has 4 image placeholders for 3 visual tokens: make the ids"
    ):
        generator.embed(ids, three)
    with pytest.raises(RequestError, match="4 image placeholders for 0 visual tokens"):
        generator.embed(ids, ())


def test_keep_out_of_range(generator: Generator) -> None:
    for keep in (0, 17):
        with pytest.raises(RequestError, match=f"cannot keep {keep} tokens: an image has 16, give 1..16"):
            encode(generator, [PHOTO], keep)
    with pytest.raises(RequestError, match='selector is "best", expected one of graph, none, rank'):
        Selection(((4,),), "best")
    prepared = generator.preprocess([PHOTO])
    with pytest.raises(RequestError, match="got counts for 2 images, but there are 1: make them with plan_p"):
        generator.encode_images(prepared, Selection(((4,), (4,))))
    with pytest.raises(
        RequestError, match="got 2 counts for an image that is seen in 1 parts: make them with plan_pruning"
    ):
        generator.encode_images(prepared, Selection(((4, 4),)))


def test_a_score_that_is_not_a_number(generator: Generator) -> None:
    (prepared,) = generator.preprocess([PHOTO])
    prepared.pixel_values[0, 0, 0, 0] = np.nan
    for selector in ("graph", "rank"):
        with pytest.raises(BackendError, match="the vision encoder gave a token score that is not finite"):
            generator.encode_images([prepared], Selection(((4,),), selector))


def test_times_and_bytes_of_the_result(generator: Generator) -> None:
    result = generator.generate(Request("what?", (PHOTO,), ratio=0.5, max_new_tokens=8, ignore_eos=True))
    times = result.timings
    parts = [times.preprocess, times.vision, times.embed, times.prefill]
    assert all(part > 0 for part in (*parts, times.load, times.decode))
    assert times.ttft == sum(parts)
    assert times.total == pytest.approx(
        times.ttft + times.load + times.decode, rel=1e-12
    )  # same sum, other order
    per_position = 2 * 2 * 2 * 4 * 4  # key and value, layers, heads, head_dim, float32
    assert result.kv_bytes == per_position * (result.prompt_tokens + 7)  # the eighth token is never fed back
    assert result.kv_bytes_unpruned - result.kv_bytes == per_position * 8
    assert result.kv_bytes_allocated == 2 * result.kv_bytes
    assert result.peak_rss_bytes > 10 << 20
    record = result.to_dict()
    assert record["timings"]["ttft"] == times.ttft
    assert record["tokens_per_second"] == 7 / times.decode
    again = generator.generate(Request("what?", (PHOTO,), ratio=0.5, max_new_tokens=1))
    assert again.timings.load < times.load  # the graphs are open
    assert again.tokens_per_second is None


def test_baseline_without_scores_needs_the_unpruned_graph_only(generator: Generator) -> None:
    request = Request("what?", (PHOTO,), tokens=4, selector="random", seed=5, max_new_tokens=3)
    result = generator.generate(request)
    assert result.pruned
    assert result.kept_indices != generator.generate(replace(request, seed=6)).kept_indices
    assert contract.VISION_ENCODER_FOPRU not in generator.loaded_graphs
