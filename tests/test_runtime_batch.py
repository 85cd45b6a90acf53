"""Several requests decoded side by side: token for token what each of them gets by itself."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from runtime import Generator, Request, contract, load_bundle
from runtime.decoder import Room
from runtime.errors import ImageError, RequestError
from runtime.positions import Positions
from runtime.result import Result
from runtime.reuse import NO_REUSE
from tests.toy_bundle import ToyModel, write_toy_bundle

Maker = Callable[[str], Path]


def photo(height: int, width: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.fixture(scope="module", params=["llava_next", "smolvlm", "qwen2_5_vl"])
def generator(request: pytest.FixtureRequest, family_bundle: Maker) -> Generator:
    return Generator(load_bundle(family_bundle(request.param)), threads=1, reuse=NO_REUSE)


def requests() -> list[Request]:
    """Other lengths, pictures of other sizes and numbers, other ends, other ways to draw."""
    return [
        Request("What is this?", (photo(40, 40, 1),), ratio=0.5, max_new_tokens=9, ignore_eos=True),
        Request("And these?", (photo(60, 30, 2), photo(30, 50, 3)), ratio=0.25, max_new_tokens=3),
        Request("Nothing to see, only a long question about it", max_new_tokens=12, ignore_eos=True),
        Request("Hm", (photo(40, 60, 4),), temperature=1.2, top_k=20, seed=5, max_new_tokens=7),
        Request("One", (photo(40, 60, 4),), max_new_tokens=1),
    ]


def essence(result: Result) -> tuple[object, ...]:
    """All but the figures of time and memory."""
    kept = (result.kept_indices, result.visual_tokens_after, result.pruned, result.reason)
    return (result.token_ids, result.text, result.finish_reason, result.prompt_tokens, result.kv_bytes, *kept)


def test_a_batch_gives_each_request_its_own_answer(generator: Generator) -> None:
    assert generator.batches
    alone = [generator.generate(request) for request in requests()]
    together = generator.generate_batch(requests())
    assert [essence(result) for result in together] == [essence(result) for result in alone]
    assert len({result.token_ids for result in together}) > 1
    longest = max(result.kv_bytes for result in alone)
    assert {result.kv_bytes_allocated for result in together} == {longest}
    assert all(result.timings.prefill > 0 for result in together)


@pytest.mark.parametrize("order", [(1, 0, 2), (2, 1), (0, 0)])
def test_the_order_does_not_matter(generator: Generator, order: tuple[int, ...]) -> None:
    chosen = [requests()[place] for place in order]
    alone = [generator.generate(request) for request in chosen]
    assert [essence(result) for result in generator.generate_batch(chosen)] == [essence(r) for r in alone]


def test_small_batches(generator: Generator) -> None:
    assert generator.generate_batch([]) == []
    (result,) = generator.generate_batch(requests()[:1])
    assert essence(result) == essence(generator.generate(requests()[0]))


def test_one_that_cannot_be_answered_stops_all(generator: Generator) -> None:
    with pytest.raises(ImageError, match=r"there is no image file at nowhere.png"):
        generator.generate_batch([requests()[0], Request("?", ("nowhere.png",))])


def test_caches_that_cannot_batch_answer_one_by_one(tmp_path: Path) -> None:
    generator = Generator(load_bundle(write_toy_bundle(tmp_path / "toy", ToyModel())), threads=1)
    assert not generator.batches
    both = [Request("what?", max_new_tokens=3), Request("and?", (photo(20, 20, 1),), max_new_tokens=4)]
    alone = [generator.generate(request) for request in both]
    assert [essence(result) for result in generator.generate_batch(both)] == [essence(r) for r in alone]


def test_a_full_row(generator: Generator) -> None:
    axes, width = generator.manifest.decoder.position_axes, generator.manifest.decoder.hidden_size
    ids = np.tile(np.arange(4, dtype=np.int64), (axes, 1))
    batch = generator.batch_run([Room(5, Positions(ids, 4))] * 2)
    for row in range(2):
        batch.prefill(row, np.zeros((1, 4, width), np.float32))
    batch.step([5, None])
    batch.step([None, 5])
    with pytest.raises(RequestError, match="the KV cache holds 5 positions, but 6 are needed"):
        batch.step([5, None])


def test_no_buffer_is_allocated_while_decoding(generator: Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(generator.backend), "allocate", _refuse)
    with pytest.raises(AssertionError, match="allocated"):
        generator.generate_batch(requests()[:2])
    monkeypatch.undo()
    steps: list[int] = []

    def stepping(self: object, tokens: list[int | None]) -> object:
        monkeypatch.setattr(type(generator.backend), "allocate", _refuse)
        steps.append(len(tokens))
        return real(self, tokens)

    from runtime.batch import BatchRun

    real = BatchRun.step
    monkeypatch.setattr(BatchRun, "step", stepping)
    generator.generate_batch(requests()[:3])
    assert len(steps) > 5
    assert contract.DECODER in generator.loaded_graphs


def _refuse(*_: object) -> None:
    raise AssertionError("allocated")


def test_a_sequence_of_a_batch_cannot_grow(generator: Generator) -> None:
    axes = generator.manifest.decoder.position_axes
    ids = np.tile(np.arange(4, dtype=np.int64), (axes, 1))
    row = generator.batch_run([Room(5, Positions(ids, 4))] * 2).cache.rows[1]
    row.grow(5)
    with pytest.raises(RequestError, match="a sequence of a batch has 5 rows, but 6 are needed: make a new"):
        row.grow(6)
