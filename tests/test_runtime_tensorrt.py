"""Whole answers of the TensorRT backend on a test double of TensorRT and CUDA: the tokens are those of ONNX
Runtime, and memory, copies and recorded steps are as promised. Says nothing about real hardware."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runtime import contract
from runtime.bundle import load_bundle
from runtime.check import check_bundle
from runtime.device_report.measure import Plan, measure_backend
from runtime.errors import BackendError, RequestError
from runtime.generator import Generator
from runtime.parity import format_report
from runtime.request import Request, Turn
from runtime.reuse import NO_REUSE, Reuse
from runtime.rows import DeviceRows
from runtime.tensorrt.plan import Limits
from tests.conftest import Maker
from tests.tensorrt_double import Device, installed, write_engines

# (height, width): in Qwen2.5-VL of 5 x 4 and 3 x 9 tokens, in LLaVA-NeXT of unlike tiles
SIZES = ((40, 33), (24, 70))


@dataclass
class Pair:
    """The same bundle on the double and on ONNX Runtime."""

    device: Device
    ours: Generator
    reference: Generator

    def same(self, request: Request) -> Any:
        found, expected = self.ours.generate(request), self.reference.generate(request)
        assert found.token_ids == expected.token_ids
        assert found.kept_indices == expected.kept_indices
        assert found.visual_tokens_after == expected.visual_tokens_after
        return found


class Double:
    """Bundles with engines for the double, each made once."""

    def __init__(self, maker: Maker, folder: Path) -> None:
        self._maker, self._folder = maker, folder

    def engines(self, name: str) -> Path:
        folder = self._folder / name
        return folder if folder.is_dir() else write_engines(self._maker(name), folder)

    def bundle(self, name: str) -> Any:
        return load_bundle(self._maker(name))


@pytest.fixture(scope="module")
def double(family_bundle: Maker, tmp_path_factory: pytest.TempPathFactory) -> Double:
    return Double(family_bundle, tmp_path_factory.mktemp("engines"))


@pytest.fixture
def pair(request: pytest.FixtureRequest, double: Double, monkeypatch: pytest.MonkeyPatch) -> Iterator[Pair]:
    """By family, with what is kept between requests."""
    name, reuse = getattr(request, "param", ("llava", Reuse()))
    device, bundle = Device(), double.bundle(name)
    with installed(device, double.engines(name), monkeypatch):
        ours = Generator(bundle, "tensorrt", reuse=reuse)
        yield Pair(device, ours, Generator(bundle, threads=1, reuse=reuse))


def photos(seed: int = 1, sizes: tuple[tuple[int, int], ...] = SIZES) -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(seed)
    return tuple(rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size in sizes)


def ask(prompt: str = "hi", *images: np.ndarray, **options: Any) -> Request:
    return Request(prompt, images, **{"max_new_tokens": 12, "ignore_eos": True, **options})


FAMILIES = [pytest.param((name, Reuse()), id=name) for name in ("llava", "llava_next", "qwen2_5_vl")]
CHOICES: list[dict[str, Any]] = [{}, {"ratio": 1.0}, {"selector": "rank"}, {"selector": "random"}]
NOTHING = pytest.mark.parametrize("pair", [("llava", NO_REUSE)], indirect=True, ids=["llava"])


@pytest.mark.parametrize("pair", FAMILIES, indirect=True)
def test_answers_are_those_of_onnxruntime(pair: Pair) -> None:
    images = photos()
    for choice in CHOICES:
        pair.same(ask("hi", *images, **choice))
    pair.same(ask("no picture"))


@pytest.mark.parametrize("pair", FAMILIES, indirect=True)
def test_features_are_those_of_onnxruntime(pair: Pair) -> None:
    prepared = pair.ours.preprocess(photos())
    for found, expected in zip(
        pair.ours.encode_unpruned(prepared), pair.reference.encode_unpruned(prepared), strict=True
    ):
        assert isinstance(found.features, DeviceRows)
        # The double runs the same graph in the same engine: copies are all that is between.
        np.testing.assert_array_equal(np.asarray(found.features), expected.features)
        assert found.features.nbytes == expected.features.nbytes


@NOTHING
def test_golden_tensors_replay(pair: Pair) -> None:
    report = check_bundle(pair.ours.bundle, "tensorrt")
    assert report.ok, format_report(report)


@NOTHING
def test_only_kept_indices_scores_and_logits_visit_the_host(pair: Pair) -> None:
    result = pair.ours.generate(ask("hi", *photos()))
    manifest = pair.ours.manifest
    kept = [8 * len(own) for own in result.kept_indices]
    tokens = manifest.layout.unit_tokens
    assert tokens is not None
    # Both pictures go through the encoder in one call, and so do their indices and scores to the host.
    expected = [sum(kept), 2 * 4 * tokens, *[4 * manifest.decoder.vocab_size] * 12]
    assert Counter(pair.device.to_host) == Counter(expected)


@NOTHING
def test_nothing_is_allocated_after_the_warm_up(pair: Pair) -> None:
    pair.ours.warmup(ask("hi", *photos(1)))
    before = Counter(pair.device.counts)
    assert before["captured"] == 1
    for seed in (2, 3):
        pair.same(ask("hi", *photos(seed)))
    after = pair.device.counts
    for what in ("malloc", "malloc_host", "contexts", "captured", "free", "events"):
        assert after[what] == before[what], what
    assert after["launched"] == 2 * 11  # the first token of an answer comes from its prompt
    assert len(pair.ours.prefix._kept or ()) == 0


def test_a_kept_picture_costs_its_features_and_no_more(pair: Pair) -> None:
    for seed in (1, 2, 3):
        pair.ours.generate(ask("hi", *photos(seed)))
    before = pair.device.counts["malloc"]
    pair.ours.generate(ask("hi", *photos(3)))
    assert pair.device.counts["malloc"] == before
    pair.ours.generate(ask("hi", *photos(4)))
    assert pair.device.counts["malloc"] == before + 2  # one for each picture


@NOTHING
def test_memory_does_not_grow_with_requests(pair: Pair) -> None:
    ratios = (0.1, 0.3, 0.7, 1.0)
    used = []
    for turn in range(12):
        pair.ours.generate(ask("hi", *photos(turn), ratio=ratios[turn % 4], max_new_tokens=3))
        used.append(pair.device.used)
    assert used[3:] == [used[3]] * 9


@NOTHING
def test_steps_are_recorded_once_for_256_rows(pair: Pair) -> None:
    limit = pair.ours.manifest.decoder.max_positions
    result = pair.same(ask("hi", *photos(), max_new_tokens=limit - 60))
    blocks = -(-(result.prompt_tokens + limit - 62) // 256)
    assert pair.device.counts["captured"] == blocks >= 1
    pair.same(ask("hi", *photos(4), max_new_tokens=limit - 60))
    assert pair.device.counts["captured"] == blocks


def test_a_chat_goes_on_from_the_cache(pair: Pair) -> None:
    images = photos()
    first = pair.same(ask("what is it?", *images, max_new_tokens=40))
    turn = Turn("what is it?", images, first.text.replace("<image>", ""))
    second = pair.same(ask("and why?", history=(turn,), max_new_tokens=30))
    assert second.reused_tokens > first.visual_tokens_after[0]
    other = Turn("what is it?", photos(9), first.text.replace("<image>", ""))
    third = pair.same(ask("and why?", history=(other,), max_new_tokens=30))
    assert third.reused_tokens < first.prompt_tokens  # another picture under the same text
    assert third.reused_images == 0


def test_a_kept_cache_grows(pair: Pair) -> None:
    limit = pair.ours.manifest.decoder.max_positions
    images = photos()
    pair.same(ask("hi", *images, max_new_tokens=5))
    first = pair.ours.prefix.nbytes
    pair.same(ask("hi", *images, max_new_tokens=limit - 60))
    assert pair.ours.prefix.nbytes >= 2 * first


def test_an_answer_survives_another_one_that_needs_more_scratch_memory(pair: Pair) -> None:
    request = ask("hi", *photos(), max_new_tokens=20)
    expected = pair.reference.generate(request).text
    stream = pair.ours.stream(request)
    pieces = [next(stream) for _ in range(2)]
    recorded = pair.device.counts["captured"]
    # The encoder without pruning is opened now, whose engine wants a larger block than those before.
    pair.same(ask("hi", *photos(5), ratio=1.0))
    pieces += list(stream)
    assert "".join(pieces) == expected
    assert pair.device.counts["captured"] >= recorded


def test_rows_of_the_host_are_taken_too(pair: Pair) -> None:
    request = ask("hi", *photos())
    prepared = pair.reference.preprocess(request.images)
    plans = [image.plan for image in prepared]
    encoded = pair.reference.encode_unpruned(prepared)
    ids = pair.reference.prompt(pair.reference.tokenize(request, plans), encoded).ids
    found = pair.ours.embed(ids, encoded)
    assert isinstance(found, DeviceRows)
    np.testing.assert_array_equal(np.asarray(found), pair.reference.embed(ids, encoded))
    # And the other way round.
    back = pair.reference.embed(ids, pair.ours.encode_unpruned(prepared))
    np.testing.assert_array_equal(back, pair.reference.embed(ids, encoded))


def test_a_released_decoder_leaves_no_recorded_run(pair: Pair) -> None:
    pair.ours.generate(ask("hi", *photos()))
    assert pair.device.counts["captured"] == 1
    pair.ours.release(pair.ours.decoder_graph)
    assert pair.device.counts["captured"] == 0
    pair.same(ask("no picture, again"))


def test_without_recording_it_is_slower_and_says_so(pair: Pair) -> None:
    pair.device.unrecordable = True
    request = ask("hi", *photos())
    with pytest.warns(UserWarning, match="not recorded as a CUDA graph, and run slower: CUDA failed in cuda"):
        found = pair.ours.generate(request)
    assert found.token_ids == pair.reference.generate(request).token_ids
    assert pair.device.counts["launched"] == 0


def test_more_visual_tokens_than_the_engines_keep_are_refused(
    double: Double, tmp_path: Path, family_bundle: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    engines = write_engines(family_bundle("llava"), tmp_path, Limits(2, 64, 64, max_ratio=0.3))
    with installed(Device(), engines, monkeypatch):
        generator = Generator(double.bundle("llava"), "tensorrt", reuse=NO_REUSE)
        for choice in ({"ratio": 0.5}, {"selector": "rank"}):  # the second wants the scores of all tokens
            with pytest.raises(
                BackendError, match=r"not built for num_keep \[\d+\], only for \[1\]..\[5\]: ask for less"
            ):
                generator.generate(ask("hi", *photos(), **choice))
        assert generator.generate(ask("hi", *photos())).token_ids


def test_a_device_that_reads_host_memory_is_asked(double: Double, monkeypatch: pytest.MonkeyPatch) -> None:
    with installed(Device(coherent=True), double.engines("llava"), monkeypatch):
        generator = Generator(double.bundle("llava"), "tensorrt")
        found = generator.generate(ask("hi", *photos())).token_ids
    assert found == Generator(double.bundle("llava"), threads=1).generate(ask("hi", *photos())).token_ids


def test_a_prompt_past_the_engines_is_refused(
    double: Double, tmp_path: Path, family_bundle: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    engines = write_engines(family_bundle("llava"), tmp_path, Limits(1, 8, 4))
    with installed(Device(), engines, monkeypatch):
        generator = Generator(double.bundle("llava"), "tensorrt")
        with pytest.raises(
            BackendError,
            match=r"embed_tokens was not built for input_ids of shape \[1, \d+\], only for \[1, 1\]\.\."
            r"\[1, \d+\]: ask for less, or build engines for more with `python -m runtime.engine`",
        ):
            generator.generate(ask("a question of many more letters than eight"))
        assert generator.generate(ask("hi", max_new_tokens=4)).token_ids
        generator.release(contract.EMBED_TOKENS)
        with pytest.raises(
            RequestError,
            match=r"of \d+ rows and its answer need \d+ rows of KV cache, but the engine takes 256: lower "
            "the ratio or max_new_tokens, or build engines for more",
        ):
            generator.generate(ask("hi", max_new_tokens=300))


def test_memory_that_is_short_is_a_sentence(pair: Pair) -> None:
    pair.ours.generate(ask("hi"))
    pair.ours.forget()
    pool = pair.ours.backend.pool  # type: ignore[attr-defined]
    pool.trim()
    pair.device.total = pair.device.used + (16 << 10)
    positions = pair.ours.prompt(np.array([1]), ()).positions
    with pytest.raises(
        BackendError,
        match=r"the device has \d+ of \d+ MiB free, but \d+ MiB are needed in one piece: lower the ratio or",
    ):
        pair.ours.decoder_run(500, positions)
    pair.device.total = 1 << 30
    pair.same(ask("hi", *photos()))


def test_a_report_counts_the_buffers_of_the_process(double: Double, monkeypatch: pytest.MonkeyPatch) -> None:
    with installed(Device(), double.engines("llava"), monkeypatch):
        plan = Plan((), requests=32)
        loop = measure_backend(double.bundle("llava"), "tensorrt", plan, lambda _: None).loop
    assert loop is not None
    assert loop.growth_buffers == 0  # a first round has asked for all
    assert loop.memory.buffers is not None
    assert loop.memory.buffers > 0
    assert loop.ok
