"""KV cache, bound runs, allocations while decoding, and the ONNX Runtime backend."""

from __future__ import annotations

import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import runtime.decoder as decoder_module
from runtime import contract
from runtime.backend import Backend, BackendOptions, View, available_backends, create_backend
from runtime.backends.onnxruntime import OrtBackend
from runtime.bundle import load_bundle
from runtime.decoder import DecoderGraph, DecoderRun, Room
from runtime.errors import BackendError, RequestError
from runtime.generator import Generator
from runtime.kv_cache import KVCache, cache_bytes, make_cache
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


def embeds_of(length: int, seed: int = 0) -> np.ndarray:
    return MODEL.weights["embed"][np.arange(4 + seed, 4 + seed + length)][None]


def concat_cache(capacity: int) -> KVCache:
    return make_cache(create_backend("onnxruntime", BackendOptions()), INFO, contract.CONCAT, capacity)


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
    cache = concat_cache(10)
    first, second = cache.past(), cache.present(6)
    cache.advance(6)
    assert cache.length == 6
    past, present = contract.past_name(0, "key"), contract.present_name(0, "key")
    assert cache.past()[past].buffer is second[present].buffer
    assert cache.present(1)[present].buffer is first[past].buffer


def test_cache_bytes() -> None:
    cache = concat_cache(10)
    held = cache.past().values()
    assert cache.nbytes == sum(view.buffer.nbytes for view in held) == cache_bytes(INFO, 10)
    assert cache.allocated_bytes == 2 * cache.nbytes


def test_cache_overflow() -> None:
    cache = concat_cache(4)
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
    run = generator.decoder_run(600, counted(5))
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
    # Names and views of one step come and go, and the last ones stay bound; one copy of the cache is 75 KiB.
    assert peak - before < run.cache.nbytes


def test_logits_come_in_one_buffer(generator: Generator) -> None:
    run = generator.decoder_run(10, counted(3))
    first = run.prefill(embeds_of(3))
    second = run.step(9)
    assert np.shares_memory(first, second)


def test_unknown_backend() -> None:
    devices = ("ort-cuda", "ort-tensorrt", "tensorrt")
    assert available_backends() == ("onnxruntime", "openvino", "openvino-bf16", *devices)
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
        session.bind({contract.INPUT_IDS: ids}, {contract.INPUTS_EMBEDS: embeds}).run()


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
        session.bind({contract.INPUT_IDS: ids}, {contract.INPUTS_EMBEDS: embeds}).run()


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
    seen: list[tuple[tuple[int, ...], list[int]]] = []
    info = DecoderInfo(LAYERS, HEADS, HEAD_DIM, WIDTH, model.vocab, 256, 3)
    ids = np.array([[0, 1, 1, 1, 3], [0, 1, 1, 2, 3], [0, 1, 2, 1, 3]], np.int64)
    graph = toy_decoder(
        backend, root, lambda view: seen.append((view.shape, backend.download(view).reshape(-1).tolist()))
    )
    run = DecoderRun(backend, graph, info, Room(7, Positions(ids, 4)))
    embeds = embeds_of(5)
    logits = run.prefill(embeds).copy()
    np.testing.assert_array_equal(logits, model.logits(embeds, ids))  # sums of eighths
    for step, token in enumerate((9, 77)):
        embeds = np.concatenate([embeds, model.weights["embed"][[[token]]]], axis=1)
        ids = np.concatenate([ids, np.full((3, 1), 4 + step)], axis=1)
        np.testing.assert_array_equal(run.step(token), model.logits(embeds, ids))
    assert seen == [((3, 1, 5), ids[:, :5].reshape(-1).tolist()), ((3, 1, 1), [4] * 3), ((3, 1, 1), [5] * 3)]


@pytest.mark.parametrize("axes", [1, 3])
@pytest.mark.parametrize("rows", [1, 2, 4, 5, 6])
def test_a_prompt_in_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, axes: int, rows: int) -> None:
    monkeypatch.setattr(decoder_module, "PREFILL_ROWS", rows)
    model = ToyModel(axes=axes)
    root = write_toy_bundle(tmp_path / "toy", model)
    backend = create_backend("onnxruntime", BackendOptions(1))
    chunks: list[int] = []
    graph = toy_decoder(backend, root, lambda view: chunks.append(view.shape[-1]))
    info = DecoderInfo(LAYERS, HEADS, HEAD_DIM, WIDTH, model.vocab, 256, axes)
    ids = np.arange(5 * axes, dtype=np.int64).reshape(axes, 5)
    run = DecoderRun(backend, graph, info, Room(6, Positions(ids, 20)))
    np.testing.assert_array_equal(
        run.prefill(embeds_of(5)), model.logits(embeds_of(5), ids)
    )  # sums of eighths
    assert chunks == {1: [1] * 5, 2: [2, 2, 1], 4: [4, 1]}.get(rows, [5])
    run.step(9)
    with pytest.raises(RequestError, match="the KV cache holds 6 positions, but 7 are needed"):
        run.step(9)


@pytest.mark.parametrize("rows", [4, 6])
def test_prefill_takes_the_prompt_of_its_positions(generator: Generator, rows: int) -> None:
    run = generator.decoder_run(12, Positions(np.arange(5, dtype=np.int64)[None], 5))
    with pytest.raises(
        RequestError, match=f"got {rows} rows after 0, but the positions were made for a prompt of 5"
    ):
        run.prefill(embeds_of(rows))
    with pytest.raises(RequestError, match="the cache has 0 rows of a prompt of 5: prefill first"):
        run.step(9)


def test_rewinding_to_a_longer_prompt_with_the_same_beginning(generator: Generator) -> None:
    ids = np.arange(9, dtype=np.int64)[None]
    run = generator.decoder_run(6, Positions(ids[:, :5], 5))
    run.prefill(embeds_of(5))
    run.step(9)
    other = np.concatenate([embeds_of(5)[:, :3], embeds_of(6, seed=3)], axis=1)
    run.rewind(3, Room(12, Positions(ids, 9)))
    assert (run.cache.length, run.cache.capacity) == (3, 12)
    np.testing.assert_array_equal(run.prefill(other[:, 3:]), MODEL.logits(other, ids))  # sums of eighths


@pytest.mark.parametrize("length", [-1, 5, 6])
def test_rewinding_further_than_there_are_rows(generator: Generator, length: int) -> None:
    run = generator.decoder_run(8, Positions(np.arange(4, dtype=np.int64)[None], 4))
    run.prefill(embeds_of(4))
    with pytest.raises(RequestError, match=f"cannot keep {length} rows of a cache of 4 for a prompt of 6"):
        run.rewind(length, Room(8, Positions(np.arange(6, dtype=np.int64)[None], 6)))


def toy_decoder(backend: Backend, root: Path, positions: Callable[[View], object]) -> DecoderGraph:
    """The graphs of a toy bundle; `positions` sees what is bound to the position ids of the decoder."""
    embed, decoder = (
        backend.open(root / contract.graph_file(name)) for name in (contract.EMBED_TOKENS, contract.DECODER)
    )
    real = decoder.bind

    def spying(inputs: dict[str, View], outputs: dict[str, View]) -> object:
        binding = real(inputs, outputs)
        update = binding.update

        def spying_update(inputs: dict[str, View], outputs: dict[str, View]) -> None:
            if contract.POSITION_IDS in inputs:
                positions(inputs[contract.POSITION_IDS])
            update(inputs, outputs)

        binding.update = spying_update  # type: ignore[method-assign]
        return binding

    decoder.bind = spying  # type: ignore[method-assign, assignment]
    return DecoderGraph(embed, decoder, contract.CONCAT)
