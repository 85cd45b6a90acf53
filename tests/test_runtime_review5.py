"""What a second reader found in decoders, caches and reuse."""

from __future__ import annotations

import time
import tracemalloc
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

from export.decoder import trace
from export.errors import TraceError
from runtime import Generator, Request, contract, load_bundle
from runtime.backend import BackendOptions, create_backend
from runtime.costs import costs_of, judged
from runtime.decoder import DecoderGraph, DecoderRun, Room
from runtime.manifest import DecoderInfo
from runtime.parity import STAGES, ParityReport, compare
from runtime.positions import Positions
from tests.conftest import Maker
from tests.test_export_decoder import SPECS, write_text
from tests.toy_bundle import ToyModel, write_toy_bundle
from tests.toy_llava import ToySpec, toy_model


def counted(length: int) -> Positions:
    return Positions(np.arange(length, dtype=np.int64)[None], length)


@pytest.mark.parametrize("text", ["gptj", "codegen"])
def test_a_language_model_without_attention_functions_is_refused(
    torch_threads: None, tmp_path: Path, text: str
) -> None:
    """transformers only warns that it does not take the attention; the past would never be read."""
    options = {"n_embd": 32, "n_head": 4, "n_layer": 1, "rotary_dim": 8}
    with pytest.raises(TraceError, match="has an attention of its own, which does not follow"):
        write_text(toy_model(ToySpec(text=text, text_options=options)), tmp_path / "text")


def portable_only(precision: str) -> dict[str, str]:
    return {contract.DECODER_PORTABLE: precision, contract.EMBED_TOKENS: "fp32"}


def report(**measured: object) -> ParityReport:
    reference = {stage.name: np.arange(4) for stage in STAGES}
    return compare(reference, {**reference, **{name: np.asarray(value) for name, value in measured.items()}})


def test_the_precision_of_the_only_decoder_counts() -> None:
    """Head sizes that are no multiple of 8 have the portable decoder alone: "logits" are its."""
    strict = report(logits=[0, 1, 2, 3.5])
    assert costs_of(strict, portable_only("int4"))["logits"] == 0.5
    assert judged(strict, portable_only("int4"), None).ok


INFO = DecoderInfo(4, 4, 64, 32, 300, 4096, caches={contract.DECODER: contract.SHARED})


class _NoBinding:
    """Keeps what is bound, as every backend must."""

    def __init__(self) -> None:
        self.held: dict[str, Any] = {}

    def update(self, inputs: dict[str, Any], outputs: dict[str, Any]) -> None:
        self.held |= {**inputs, **outputs}

    def run(self) -> None:
        pass


class _NoSession:
    inputs: ClassVar[dict[str, Any]] = {}
    outputs: ClassVar[dict[str, Any]] = {}

    def run(self, feeds: dict[str, Any]) -> dict[str, Any]:
        raise NotImplementedError

    def bind(self, inputs: dict[str, Any], outputs: dict[str, Any]) -> Any:
        binding = _NoBinding()
        binding.update(inputs, outputs)
        return binding


@pytest.mark.parametrize("kind", [contract.SHARED, contract.APPEND])
def test_a_growing_cache_is_not_held_twice(kind: str) -> None:
    backend = create_backend("onnxruntime", BackendOptions(1))
    session: Any = _NoSession()
    tracemalloc.start()
    try:
        run = DecoderRun(backend, DecoderGraph(session, session, kind), INFO, Room(1000, counted(900)))
        run.prefill(np.zeros((1, 900, 32), np.float32))
        run.step(1)
        tracemalloc.reset_peak()
        before = run.cache.nbytes
        run.rewind(900, Room(1100, counted(1000)))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # The new cache, one old tensor of 8, and small buffers.
    assert peak < run.cache.nbytes + before / 4


def test_a_kept_run_does_not_hold_the_prompt(tmp_path: Path) -> None:
    """With max_new_tokens 1 nothing takes the place of the prompt's embeddings in the binding."""
    generator = Generator(load_bundle(write_toy_bundle(tmp_path / "toy", ToyModel())), threads=1)
    generator.generate(Request("x" * 100, max_new_tokens=1))
    assert generator.prefix._kept is not None
    held = generator.prefix._kept[0]._decoder._held  # type: ignore[attr-defined]
    assert held[contract.INPUTS_EMBEDS].buffer.size == generator.manifest.decoder.hidden_size


@pytest.mark.parametrize("graph", [contract.DECODER, contract.EMBED_TOKENS])
def test_a_graph_released_during_an_answer_stays_closed(tmp_path: Path, graph: str) -> None:
    generator = Generator(load_bundle(write_toy_bundle(tmp_path / "toy", ToyModel())), threads=1)
    stream = generator.stream(Request("what?", max_new_tokens=8, ignore_eos=True))
    next(stream)
    generator.release(graph)
    list(stream)
    assert generator.prefix.nbytes == 0  # its run would hold the released session beside a new one


def test_opening_the_decoder_for_a_batch_is_loading(
    family_bundle: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = Generator(load_bundle(family_bundle("llava_next")), threads=1)
    real = generator.backend.open

    def slow(path: Path) -> Any:
        time.sleep(0.2)
        return real(path)

    monkeypatch.setattr(generator.backend, "open", slow)
    first, _ = generator.generate_batch([Request("a", max_new_tokens=2), Request("b", max_new_tokens=2)])
    assert first.timings.load >= 0.4  # embedding and decoder


def test_a_window_in_the_mask_alone_is_refused(
    torch_threads: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As phimoe and qwen2_moe have it: the open attention gets no mask, so the window would be lost."""
    real = trace._attend

    def without_window(*args: Any, sliding_window: int | None = None, **options: Any) -> Any:
        return real(*args, **options)

    monkeypatch.setattr(trace, "_attend", without_window)
    with pytest.raises(TraceError, match="layer 0 of MistralModel is of kind sliding_attention, but says"):
        write_text(toy_model(SPECS["mistral-window"]), tmp_path / "text")


def test_a_mask_of_its_own_is_refused(
    torch_threads: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As doge has it; models give the mask by keyword, too."""
    real = trace._attend

    def with_mask(module: Any, query: Any, key: Any, value: Any, _: Any, **options: Any) -> Any:
        return real(module, query, key, value, attention_mask=torch.zeros(1), **options)

    monkeypatch.setattr(trace, "_attend", with_mask)
    with pytest.raises(TraceError, match=r"LlamaAttention has a mask of its own \(attention_mask\)"):
        write_text(toy_model(SPECS["llama"]), tmp_path / "text")
