"""KV cache, bound runs, allocations while decoding, and the ONNX Runtime backend."""

from __future__ import annotations

import sys
import tracemalloc
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from runtime import contract
from runtime.backend import BackendOptions, View, available_backends, create_backend
from runtime.backends.onnxruntime import OrtBackend
from runtime.bundle import load_bundle
from runtime.decoder import DecoderRun, Room
from runtime.errors import BackendError, RequestError
from runtime.generator import Generator
from runtime.kv_cache import KVCache, cache_bytes
from runtime.manifest import DecoderInfo
from runtime.positions import Positions
from tests.toy_bundle import HEAD_DIM, HEADS, LAYERS, WIDTH, ToyModel, write_toy_bundle

MODEL = ToyModel()
INFO = DecoderInfo(LAYERS, HEADS, HEAD_DIM, WIDTH, MODEL.vocab, 256)


@pytest.fixture(scope="module")
def generator(tmp_path_factory: pytest.TempPathFactory) -> Generator:
    root = write_toy_bundle(tmp_path_factory.mktemp("bundles") / "toy", MODEL)
    return Generator(load_bundle(root), threads=1)


def counted(length: int) -> Positions:
    """Positions 0, 1, 2, ... of a prompt."""
    return Positions(np.arange(length, dtype=np.int64)[None], length)


def embeds_of(length: int) -> np.ndarray:
    return MODEL.weights["embed"][np.arange(4, 4 + length)][None]


def test_prefill_and_steps_equal_one_long_prefill(generator: Generator) -> None:
    tokens = [9, 77, 130]
    run = generator.decoder_run(10, counted(5))
    run.prefill(embeds_of(5))
    stepped = [run.step(token).copy() for token in tokens]
    for count, logits in enumerate(stepped, start=1):
        extended = np.concatenate([embeds_of(5), MODEL.weights["embed"][tokens[:count]][None]], axis=1)
        np.testing.assert_array_equal(
            generator.decoder_run(10, counted(extended.shape[1])).prefill(extended), logits
        )  # bit-equal: sums of eighths
        np.testing.assert_array_equal(MODEL.logits(extended), logits)


def test_empty_past_is_bound_at_prefill(generator: Generator) -> None:
    cache = generator.decoder_run(10, counted(7)).cache
    assert {view.shape for view in cache.past().values()} == {(1, HEADS, 0, HEAD_DIM)}
    assert set(cache.past()) == {
        contract.past_name(n, part) for n in range(LAYERS) for part in ("key", "value")
    }
    assert {view.shape for view in cache.present(7).values()} == {(1, HEADS, 7, HEAD_DIM)}


def test_cache_alternates_between_two_buffers() -> None:
    cache = KVCache(create_backend("onnxruntime", BackendOptions()), INFO, 10)
    first, second = cache.past(), cache.present(6)
    cache.advance(6)
    assert cache.length == 6
    past, present = contract.past_name(0, "key"), contract.present_name(0, "key")
    assert cache.past()[past].buffer is second[present].buffer
    assert cache.present(1)[present].buffer is first[past].buffer


def test_cache_bytes() -> None:
    cache = KVCache(create_backend("onnxruntime", BackendOptions()), INFO, 10)
    held = cache.past().values()
    assert cache.nbytes == sum(view.buffer.nbytes for view in held) == cache_bytes(INFO, 10)
    assert cache.allocated_bytes == 2 * cache.nbytes


def test_cache_overflow() -> None:
    cache = KVCache(create_backend("onnxruntime", BackendOptions()), INFO, 4)
    with pytest.raises(
        RequestError, match="the KV cache holds 4 positions, but 5 are needed: make the cache for"
    ):
        cache.present(5)


def test_no_buffer_is_allocated_while_decoding(generator: Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    real = OrtBackend.allocate

    def counting(self: OrtBackend, elements: int, dtype: str) -> np.ndarray:
        sizes.append(elements)
        return real(self, elements, dtype)

    monkeypatch.setattr(OrtBackend, "allocate", counting)
    run = generator.decoder_run(200, counted(5))
    assert len(sizes) == 2 * 2 * LAYERS + 2  # two copies of key and value per layer, logits, one embedding
    run.prefill(embeds_of(5))
    run.step(9)
    sizes.clear()
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for token in range(10, 110):
            run.step(token)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert sizes == []
    # Names, views and bindings of one step come and go; one copy of the cache would be 25 KiB.
    assert peak - before < 24_000 < run.cache.nbytes


def test_logits_come_in_one_buffer(generator: Generator) -> None:
    run = generator.decoder_run(10, counted(3))
    first = run.prefill(embeds_of(3))
    second = run.step(9)
    assert np.shares_memory(first, second)


def test_unknown_backend() -> None:
    assert available_backends() == ("onnxruntime",)
    with pytest.raises(BackendError, match='backend is "tensorflow", expected one of onnxruntime'):
        create_backend("tensorflow", BackendOptions())


def test_backend_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(
        BackendError, match=r"needs the package onnxruntime, .* pip install 'fopru-edge\[runtime\]'"
    ):
        create_backend("onnxruntime", BackendOptions())


@pytest.mark.parametrize("threads", [0, -1, 1025, 3_000_000_000, 1.5, True, "4"])
def test_threads_out_of_range(threads: object) -> None:
    with pytest.raises(BackendError, match=r"threads is .*, expected 1\.\.1024, or none for all cores"):
        BackendOptions(threads=threads)  # type: ignore[arg-type]


def test_threads_reach_the_session(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import onnxruntime

    seen: list[int] = []
    real = onnxruntime.InferenceSession

    def spying(path: str, settings: onnxruntime.SessionOptions, **rest: object) -> object:
        seen.append(settings.intra_op_num_threads)
        return real(path, settings, **rest)

    monkeypatch.setattr(onnxruntime, "InferenceSession", spying)
    bundle = load_bundle(write_toy_bundle(tmp_path / "toy"))
    for threads in (None, 3):
        Generator(bundle, threads=threads).session(contract.EMBED_TOKENS)
    assert seen == [0, 3]  # 0 is ONNX Runtime's word for its own choice


def test_graph_that_cannot_be_loaded(tmp_path: Path) -> None:
    (tmp_path / "broken.onnx").write_bytes(b"not a graph")
    with pytest.raises(BackendError, match=r"onnxruntime cannot load .*broken.onnx: "):
        create_backend("onnxruntime", BackendOptions()).open(tmp_path / "broken.onnx")


def test_graph_that_fails(generator: Generator) -> None:
    session = generator.session(contract.EMBED_TOKENS)
    with pytest.raises(BackendError, match="onnxruntime failed in embed_tokens: "):
        session.run({contract.INPUT_IDS: np.array([[100_000]], np.int64)})
    ids = View(np.array([100_000], np.int64), (1, 1))
    embeds = View(np.empty(WIDTH, np.float32), (1, 1, WIDTH))
    with pytest.raises(BackendError, match="onnxruntime failed in embed_tokens: "):
        session.run_bound({contract.INPUT_IDS: ids}, {contract.INPUTS_EMBEDS: embeds})


def test_a_failure_is_said_once_and_with_its_numbers(
    generator: Generator, capfd: pytest.CaptureFixture[str]
) -> None:
    session = generator.session(contract.DECODER)
    feeds = {
        name: np.zeros([1 if d is None else d for d in shape], np.float32)
        for name, shape in session.inputs.items()
    }
    for name in (contract.ATTENTION_MASK, contract.POSITION_IDS, contract.NUM_LOGITS_TO_KEEP):
        feeds[name] = feeds[name].astype(np.int64)
    feeds[contract.INPUTS_EMBEDS] = np.zeros((1, 1, WIDTH + 3), np.float32)
    with pytest.raises(BackendError, match=rf"index: 2 Got: {WIDTH + 3} Expected: {WIDTH}$"):
        session.run(feeds)
    feeds[contract.INPUTS_EMBEDS] = np.zeros((1, 1, WIDTH), np.float32)
    feeds[contract.ATTENTION_MASK] = np.ones((1, 7), np.int64)
    with pytest.raises(BackendError, match="onnxruntime failed in decoder_model_merged: "):
        session.run(feeds)
    assert capfd.readouterr().err == ""  # no log line of the engine beside it


def test_a_session_knows_its_tensors(generator: Generator) -> None:
    session = generator.session(contract.EMBED_TOKENS)
    assert session.inputs == {contract.INPUT_IDS: (None, None)}
    assert session.outputs == {contract.INPUTS_EMBEDS: (None, None, WIDTH)}


def test_view_past_the_end_of_its_buffer(generator: Generator) -> None:
    session = generator.session(contract.EMBED_TOKENS)
    ids = View(np.array([9], np.int64), (1, 1), offset=1)
    embeds = View(np.empty(WIDTH, np.float32), (1, 1, WIDTH))
    with pytest.raises(BackendError, match="a view of 1 values from 1 on does not fit its buffer of 1"):
        session.run_bound({contract.INPUT_IDS: ids}, {contract.INPUTS_EMBEDS: embeds})


def test_upload_makes_other_layouts_contiguous(generator: Generator) -> None:
    backend = generator.backend
    array = np.arange(6, dtype=np.float32).reshape(2, 3).T
    view = backend.upload(array)
    np.testing.assert_array_equal(backend.download(view), array)


def test_positions_are_the_given_ones_and_go_on_where_they_say(generator: Generator) -> None:
    ids = np.array([[0, 1, 2, 7, 30]], np.int64)
    run = generator.decoder_run(8, Positions(ids, 50))
    np.testing.assert_array_equal(run.prefill(embeds_of(5)), MODEL.logits(embeds_of(5), ids))
    later = [9, 77]
    for step in range(2):
        measured = run.step(later[step])
        embeds = np.concatenate([embeds_of(5), MODEL.weights["embed"][later[: step + 1]][None]], axis=1)
        positions = np.concatenate([ids, [[50, 51][: step + 1]]], axis=1)
        np.testing.assert_array_equal(measured, MODEL.logits(embeds, positions))  # sums of eighths


def test_three_axes_of_positions(tmp_path: Path) -> None:
    model = ToyModel(axes=3)
    root = write_toy_bundle(tmp_path / "toy", model)
    backend = create_backend("onnxruntime", BackendOptions(1))
    sessions = [
        backend.open(root / contract.graph_file(name)) for name in (contract.EMBED_TOKENS, contract.DECODER)
    ]
    seen: list[tuple[tuple[int, ...], list[int]]] = []
    real = sessions[1].run_bound

    def spying(inputs: dict[str, View], outputs: dict[str, View]) -> None:
        view = inputs[contract.POSITION_IDS]
        seen.append((view.shape, backend.download(view).reshape(-1).tolist()))
        real(inputs, outputs)

    sessions[1].run_bound = spying  # type: ignore[method-assign]
    info = DecoderInfo(LAYERS, HEADS, HEAD_DIM, WIDTH, model.vocab, 256, 3)
    ids = np.array([[0, 1, 1, 1, 3], [0, 1, 1, 2, 3], [0, 1, 2, 1, 3]], np.int64)
    run = DecoderRun(backend, (sessions[0], sessions[1]), info, Room(7, Positions(ids, 4)))
    embeds = embeds_of(5)
    logits = run.prefill(embeds).copy()
    np.testing.assert_array_equal(logits, model.logits(embeds, ids))  # sums of eighths
    for step, token in enumerate((9, 77)):
        embeds = np.concatenate([embeds, model.weights["embed"][[[token]]]], axis=1)
        ids = np.concatenate([ids, np.full((3, 1), 4 + step)], axis=1)
        np.testing.assert_array_equal(run.step(token), model.logits(embeds, ids))
    assert seen == [((3, 1, 5), ids[:, :5].reshape(-1).tolist()), ((3, 1, 1), [4] * 3), ((3, 1, 1), [5] * 3)]


@pytest.mark.parametrize(("first", "second"), [(4, None), (5, 2), (6, None)])
def test_three_axes_take_the_prompt_whole(first: int, second: int | None) -> None:
    backend = create_backend("onnxruntime", BackendOptions(1))
    info = DecoderInfo(LAYERS, HEADS, HEAD_DIM, WIDTH, MODEL.vocab, 256, 3)
    ids = np.tile(np.arange(5, dtype=np.int64), (3, 1))
    session = SimpleNamespace(run_bound=lambda *_: None)
    run = DecoderRun(backend, (session, session), info, Room(12, Positions(ids, 5)))  # type: ignore[arg-type]
    rows, start = first, 0
    if second is not None:
        run.prefill(embeds_of(first))
        rows, start = second, first
    message = (
        rf"got {rows} rows after {start}, but positions of 3 axes were made for a prompt of 5: give it whole"
    )
    with pytest.raises(RequestError, match=message):
        run.prefill(embeds_of(rows))
