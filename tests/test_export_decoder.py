"""Decoder graphs of both caches against PyTorch: lengths, batches, windows, soft caps, shared weights."""

from __future__ import annotations

import ctypes
import gc
import platform
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch

from export.decoder import trace
from export.errors import TraceError
from export.families import FAMILIES
from export.pipeline import write_subgraph
from runtime import contract
from runtime.backend import BackendOptions, create_backend
from runtime.decoder import DecoderGraph, DecoderRun, Room
from runtime.positions import Positions
from tests.toy_llava import COMBINATIONS, ToySpec, toy_model, toy_processor

LLAVA = FAMILIES["llava"]
# Groups of query heads, windows, soft caps, normalised keys, fused projections, tied embeddings.
SPECS = {
    "llama": COMBINATIONS["clip-llama"],
    "gemma-tied": COMBINATIONS["clip-full-gemma-tied"],
    "mistral-window": ToySpec(text="mistral", text_options={"sliding_window": 4}),
    "gemma2-window": ToySpec(text="gemma2", text_layers=2, text_options={"sliding_window": 4}),
    "qwen3": ToySpec(text="qwen3"),
    "phi3": ToySpec(text="phi3"),
}
KINDS = {contract.SHARED: contract.DECODER, contract.APPEND: contract.DECODER_PORTABLE}


def write_text(model: Any, folder: Path, opset: int = 20) -> Path:
    """Both decoders and the embedding, as a build writes them."""
    (folder / "onnx").mkdir(parents=True)
    layout = LLAVA.layout(model.config, toy_processor(ToySpec()))
    for graph in LLAVA.subgraphs(model, layout, LLAVA.decoder_info(model)):
        if graph.name != contract.VISION_ENCODER:
            write_subgraph(graph, folder, opset)
    return folder


@pytest.fixture(scope="module", params=sorted(SPECS))
def exported(
    torch_threads: None, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Any, Path]:
    model = toy_model(SPECS[request.param])
    return model, write_text(model, tmp_path_factory.mktemp("text") / request.param)


@pytest.fixture(scope="module")
def gemma(torch_threads: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    model = toy_model(SPECS["gemma-tied"])
    return model, write_text(model, tmp_path_factory.mktemp("text") / "gemma")


def new_run(model: Any, folder: Path, kind: str, room: Room) -> DecoderRun:
    backend = create_backend("onnxruntime", BackendOptions(1))
    embed, decoder = (
        backend.open(folder / contract.graph_file(name)) for name in (contract.EMBED_TOKENS, KINDS[kind])
    )
    return DecoderRun(backend, DecoderGraph(embed, decoder, kind), LLAVA.decoder_info(model), room)


def reference_logits(model: Any, ids: torch.Tensor) -> npt.NDArray[np.float32]:
    """[batch, seq, V] of PyTorch, all at once and without a cache."""
    with torch.no_grad():
        logits: npt.NDArray[np.float32] = model(
            inputs_embeds=model.get_input_embeddings()(ids), attention_mask=torch.ones(ids.shape)
        ).logits.numpy()
    return logits


def embeds_of(model: Any, ids: torch.Tensor) -> npt.NDArray[np.float32]:
    with torch.no_grad():
        embeds: npt.NDArray[np.float32] = model.get_input_embeddings()(ids).numpy()
    return embeds


def tokens(batch: int, length: int) -> torch.Tensor:
    return torch.randint(6, 200, (batch, length), generator=torch.Generator().manual_seed(batch))


def assert_close(measured: npt.NDArray[Any], reference: npt.NDArray[Any]) -> None:
    # float32 sums in another order through one or two layers
    assert measured.shape == reference.shape
    assert np.abs(measured - reference).max() <= 1e-5 * np.abs(reference).max()


def counted(length: int) -> Positions:
    return Positions(np.arange(length, dtype=np.int64)[None], length)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rows", [2, 5, 512])  # prompts in chunks, longer and shorter than the window of 4
def test_in_place(exported: tuple[Any, Path], kind: str, rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runtime.decoder.PREFILL_ROWS", rows)
    model, folder = exported
    ids = tokens(1, 14)
    reference = reference_logits(model, ids)[0]
    run = new_run(model, folder, kind, Room(14, counted(9)))
    assert_close(run.prefill(embeds_of(model, ids[:, :9])), reference[8])
    for place in range(9, 14):
        assert_close(run.step(int(ids[0, place])), reference[place])


@pytest.mark.parametrize("kind", KINDS)
def test_a_kept_beginning(exported: tuple[Any, Path], kind: str) -> None:
    model, folder = exported
    first, second = tokens(1, 9), tokens(1, 12)
    second[:, :5] = first[:, :5]
    run = new_run(model, folder, kind, Room(10, counted(9)))
    run.prefill(embeds_of(model, first))
    run.step(7)
    run.rewind(5, Room(13, counted(12)))
    rest = embeds_of(model, second)[:, 5:]
    assert_close(run.prefill(rest), reference_logits(model, second)[0, 11])
    with_one_more = torch.cat([second, torch.tensor([[33]])], dim=1)
    assert_close(run.step(33), reference_logits(model, with_one_more)[0, 12])


def feeds_of(model: Any, ids: torch.Tensor, done: int, lengths: list[int]) -> dict[str, Any]:
    """Inputs without a cache; row b's mask has `lengths[b]` ones, of as many columns as the longest has."""
    columns = np.arange(max(lengths))
    return {
        contract.INPUTS_EMBEDS: embeds_of(model, ids),
        contract.ATTENTION_MASK: (columns[None] < np.array(lengths)[:, None]).astype(np.int64),
        contract.POSITION_IDS: done + np.arange(ids.shape[1])[None].repeat(len(ids), 0),
        contract.NUM_LOGITS_TO_KEEP: np.array(0),
    }


@pytest.mark.parametrize("kind", KINDS)
def test_batches_and_logits_of_all_rows(exported: tuple[Any, Path], kind: str) -> None:
    """As other hosts call the graphs: batch of two, every logit, cache passed on by hand."""
    model, folder = exported
    ids, info = tokens(2, 8), LLAVA.decoder_info(model)
    reference = reference_logits(model, ids)
    session = ort.InferenceSession(str(folder / contract.graph_file(KINDS[kind])))
    axes = {
        contract.SHARED: (2, info.kv_heads, 0, info.head_dim),
        contract.APPEND: (2, 0, info.kv_heads, info.head_dim),
    }
    names = [value.name for value in session.get_inputs()][4:]
    cache = [np.zeros(axes[kind], np.float32) for _ in names]
    done = 0
    for step in (6, 1, 1):
        new = ids[:, done : done + step]
        feeds = feeds_of(model, new, done, [done + step] * 2) | dict(zip(names, cache, strict=True))
        logits, *present = session.run(None, feeds)
        assert_close(logits, reference[:, done : done + step])
        (last,) = session.run([contract.LOGITS], feeds | {contract.NUM_LOGITS_TO_KEEP: np.array(1)})
        assert last.shape == (2, 1, info.vocab_size)
        assert_close(last[:, 0], logits[:, -1])
        joined = zip(cache, present, strict=True)
        cache = [np.concatenate(pair, axis=1) for pair in joined] if kind == contract.APPEND else present
        done += step


def test_sequences_of_different_lengths_side_by_side(exported: tuple[Any, Path]) -> None:
    """A batch of prompts decodes together, each with as many cached rows as it has."""
    model, folder = exported
    ids, info = tokens(2, 9), LLAVA.decoder_info(model)
    lengths = [8, 5]
    session = ort.InferenceSession(str(folder / contract.graph_file(contract.DECODER)))
    names = [value.name for value in session.get_inputs()][4:]
    capacity = 10
    buffers = {name: np.zeros((2, info.kv_heads, capacity, info.head_dim), np.float32) for name in names}
    for row, length in enumerate(lengths):  # each prompt by itself, into its part of the buffers
        feeds = feeds_of(model, ids[row : row + 1, :length], 0, [length])
        run_in_place(session, feeds, {name: buffer[row : row + 1] for name, buffer in buffers.items()}, info)
    feeds = feeds_of(
        model, torch.stack([ids[row, length, None] for row, length in enumerate(lengths)]), 0, [9, 6]
    )
    feeds[contract.POSITION_IDS] = np.array(lengths)[:, None]
    logits = run_in_place(session, feeds, buffers, info)
    for row, length in enumerate(lengths):
        assert_close(logits[row, 0], reference_logits(model, ids[row : row + 1, : length + 1])[0, length])


def run_in_place(
    session: ort.InferenceSession, feeds: dict[str, Any], cache: dict[str, npt.NDArray[np.float32]], info: Any
) -> npt.NDArray[np.float32]:
    logits = np.empty((*feeds[contract.INPUTS_EMBEDS].shape[:2], info.vocab_size), np.float32)
    binding = session.io_binding()
    for name, array in feeds.items():
        binding.bind_cpu_input(name, array)
    for name, buffer in cache.items():
        address = buffer.ctypes.data
        present = name.replace("past_key_values", "present")
        binding.bind_input(name, "cpu", 0, np.float32, buffer.shape, address)
        binding.bind_output(present, "cpu", 0, np.float32, buffer.shape, address)
    binding.bind_output(contract.LOGITS, "cpu", 0, np.float32, logits.shape, logits.ctypes.data)
    session.run_with_iobinding(binding)
    return logits


def test_the_portable_graph_has_standard_operators_only(exported: tuple[Any, Path]) -> None:
    _, folder = exported
    model = onnx.load(folder / contract.graph_file(contract.DECODER_PORTABLE), load_external_data=False)
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 20)]
    assert {node.domain for node in model.graph.node} == {""}


def test_only_attention_reads_the_past(exported: tuple[Any, Path], tmp_path: Path) -> None:
    """What ONNX Runtime makes of the fused graph has no transposed, repeated or joined copy of the cache."""
    _, folder = exported
    settings = ort.SessionOptions()
    settings.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    settings.log_severity_level = 4
    ort.InferenceSession(str(folder / contract.graph_file(contract.DECODER)), settings)
    graph = onnx.load(tmp_path / "optimised.onnx", load_external_data=False).graph
    readers = {node.op_type for node in graph.node if any("past_key_values" in name for name in node.input)}
    assert readers - {"Shape"} == {"GroupQueryAttention"}


def test_the_portable_graph_joins_scores_and_never_the_cache(exported: tuple[Any, Path]) -> None:
    _, folder = exported
    model = ir.load(folder / contract.graph_file(contract.DECODER_PORTABLE))
    for value in model.graph.inputs:
        if str(value.name).startswith("past_key_values"):
            (reader,) = [use.node for use in value.uses() if use.node.op_type != "Shape"]
            assert reader.op_type == "Transpose"
            assert [after.node.op_type for after in reader.outputs[0].uses()] == ["MatMul"]


def test_tied_embeddings_are_stored_once(gemma: tuple[Any, Path]) -> None:
    model, folder = gemma
    table = model.get_input_embeddings().weight
    assert model.lm_head.weight is table
    for name in KINDS.values():
        graph = onnx.load(folder / contract.graph_file(name), load_external_data=False).graph
        elsewhere = {
            tensor.name: tuple(tensor.dims)
            for tensor in graph.initializer
            for entry in tensor.external_data
            if entry.key == "location" and entry.value == "embed_tokens.onnx_data"
        }
        assert list(elsewhere.values()) == [tuple(table.shape)]
        (head,) = [node for node in graph.node if node.op_type == "Gemm"]
        assert head.input[1] in elsewhere
    own = (folder / contract.data_file(contract.DECODER)).stat().st_size
    layers = sum(value.nbytes for value in model.model.language_model.layers.parameters())
    norm = sum(value.nbytes for value in model.model.language_model.norm.parameters())
    assert own <= layers + norm


def test_both_decoders_share_one_weight_file(exported: tuple[Any, Path]) -> None:
    _, folder = exported
    files = {path.name for path in (folder / "onnx").iterdir()}
    assert files == {
        *("embed_tokens.onnx", "embed_tokens.onnx_data", "decoder_model_merged.onnx"),
        *("decoder_model_merged.onnx_data", "decoder_model_portable.onnx"),
    }


def test_what_is_fused_around_attention_brings_no_weights_of_its_own(exported: tuple[Any, Path]) -> None:
    model, folder = exported
    layers = LLAVA.decoder_info(model).layers
    graph = onnx.load(folder / contract.graph_file(contract.DECODER), load_external_data=False).graph
    kinds = Counter((node.domain, node.op_type) for node in graph.node)
    assert kinds["com.microsoft", "GroupQueryAttention"] == layers
    assert kinds["com.microsoft", "RotaryEmbedding"] == 2 * layers  # of query and key
    assert kinds["", "Pow"] == kinds["", "ReduceMean"] == 0  # no norm is left written out
    inline = sum(len(tensor.raw_data) for tensor in graph.initializer)
    assert inline < 4096  # constants of shapes


def test_without_fusions_of_transformers(
    torch_threads: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "transformers.exporters.onnxruntime_fusions", None)
    model = toy_model(SPECS["llama"])
    folder = write_text(model, tmp_path / "text")
    graph = onnx.load(folder / contract.graph_file(contract.DECODER), load_external_data=False).graph
    assert "RotaryEmbedding" not in {node.op_type for node in graph.node}
    ids = tokens(1, 6)
    run = new_run(model, folder, contract.SHARED, Room(6, counted(6)))
    assert_close(run.prefill(embeds_of(model, ids)), reference_logits(model, ids)[0, 5])


@pytest.mark.parametrize("opset", [20, 23])
def test_opset(torch_threads: None, opset: int, tmp_path: Path) -> None:
    model = toy_model(SPECS["llama"])
    folder = write_text(model, tmp_path / "text", opset)
    ids = tokens(1, 6)
    for kind in KINDS:
        run = new_run(model, folder, kind, Room(6, counted(6)))
        assert_close(run.prefill(embeds_of(model, ids)), reference_logits(model, ids)[0, 5])


def test_a_head_size_that_the_fused_operator_does_not_take(torch_threads: None, tmp_path: Path) -> None:
    model = toy_model(ToySpec(text_options={"head_dim": 4}))
    assert LLAVA.decoder_info(model).caches == {contract.DECODER_PORTABLE: contract.APPEND}
    folder = write_text(model, tmp_path / "text")
    assert not (folder / contract.graph_file(contract.DECODER)).exists()
    ids = tokens(1, 6)
    run = new_run(model, folder, contract.APPEND, Room(6, counted(6)))
    assert_close(run.prefill(embeds_of(model, ids)), reference_logits(model, ids)[0, 5])


def test_attention_sinks_are_refused(
    torch_threads: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    real = trace._attend

    def with_sinks(*args: Any, **options: Any) -> Any:
        return real(*args, **options, s_aux=torch.zeros(2))

    monkeypatch.setattr(trace, "_attend", with_sinks)
    with pytest.raises(
        TraceError, match=r"LlamaAttention has attention sinks \(s_aux\), for which there is no"
    ):
        write_text(toy_model(SPECS["llama"]), tmp_path / "text")


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="asks glibc how much it has handed out")
@pytest.mark.parametrize("kind", KINDS)
def test_decoding_keeps_no_memory(gemma: tuple[Any, Path], kind: str) -> None:
    """Between the 10th and the 60th token the heap of the process stays as large as it is."""
    model, folder = gemma
    run = new_run(model, folder, kind, Room(70, counted(5)))
    run.prefill(embeds_of(model, tokens(1, 5)))
    for token in range(6, 16):
        run.step(token)
    gc.collect()
    before = heap_bytes()
    for token in range(16, 66):
        run.step(token)
    gc.collect()
    # Python objects of a step stay until the next; one key or value of the cache is 70 x 8 x 4 bytes and
    # more.
    assert heap_bytes() - before < 2048


def heap_bytes() -> int:
    """Bytes that malloc has handed out, mapped ones included (mallinfo2 of glibc 2.33 and later)."""

    class Info(ctypes.Structure):
        _fields_ = [
            (name, ctypes.c_size_t)
            for name in (
                "arena",
                "ordblks",
                "smblks",
                "hblks",
                "hblkhd",
                "usmblks",
                "fsmblks",
                "uordblks",
                "fordblks",
                "keepcost",
            )
        ]

    mallinfo = ctypes.CDLL(None).mallinfo2
    mallinfo.restype = Info
    info = mallinfo()
    return int(info.uordblks + info.hblkhd)
